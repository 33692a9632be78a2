// Times of other libraries, from a CSV: peer,k,n,group,act_order,m,us[,...].
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include "autotune/workload.hpp"

namespace q4::tools {

/// At one point; 0 or "-" where the file says nothing.
struct Peers {
  std::string best = "-";  ///< the fastest 4-bit peer
  double best_us = 0;
  double dense_us = 0;  ///< peer "cublas_fp16": dense, no 4-bit peer
  double floor_us = 0;  ///< peer "read_floor": only reads the bytes
};

class Baseline {
 public:
  /// Throws kIo, or kCorrupt with the line.
  static Baseline read(const std::string& path);
  static Baseline parse(const std::string& text, const std::string& name);
  Peers at(const autotune::Problem& problem, std::int64_t m) const;

 private:
  explicit Baseline(const class Csv& csv);

  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, std::int64_t>;
  std::map<Key, Peers> points_;
};

}  // namespace q4::tools
