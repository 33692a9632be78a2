// What q4-bench adds to a matmul on request: adapters of its rows, a residual.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "autotune/rig.hpp"

namespace q4::tools {

/// As --lora and --residual say.
struct EpilogueChoice {
  std::int64_t adapters = 0, rank = 0;  ///< rows are dealt to so many adapters in turn; 0: none
  bool residual = false;

  bool any() const { return adapters > 0 || residual; }
  Epilogue epilogue() const { return {Activation::kNone, residual, adapters > 0}; }
};
/// "8,16": 8 adapters of rank 16.
void parse_lora(const std::string& text, EpilogueChoice& choice);

/// Adapters and residual of one shape, on a rig's device. Adapters are in so many tables that each run of a replayed
/// graph reads its own from memory, as it does the weights.
class BenchEpilogue {
 public:
  BenchEpilogue(const Runtime& runtime, const autotune::Rig& rig, const autotune::Workload& workload,
                const EpilogueChoice& choice, std::int64_t max_m);

  void give(autotune::Variant& variant, std::int64_t m) const;
  /// What is added to the products, in fp64.
  autotune::Workload::Finish finish() const;

 private:
  double value(std::size_t at) const;  ///< of what A, B and the residual are made of
  std::size_t a_begin(std::int64_t adapter) const;
  std::size_t b_begin(std::int64_t adapter) const;

  const autotune::Rig& rig_;
  const autotune::Workload& workload_;
  const EpilogueChoice choice_;
  const std::int64_t k_, n_;
  const float scale_;
  std::vector<std::byte> source_;
  std::vector<LoraAdapters> tables_;
};

}  // namespace q4::tools
