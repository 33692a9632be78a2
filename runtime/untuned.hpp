// Problems that ran without a tuning record, appended to a file for q4-autotune --shapes.
#pragma once

#include <mutex>
#include <q4/tuning.hpp>
#include <set>
#include <string>

#include "runtime/base/fork.hpp"

namespace q4 {

/// One line a problem: {"k":4096,"n":6144,"group":128,"act_order":false,"activation":"fp16"}. A line is one write with
/// O_APPEND, so that processes may share a file; what the file holds already is not written again. Thread-safe.
class UntunedLog {
 public:
  void open(std::string path) { path_ = std::move(path); }  ///< before any note(); empty: nothing is written
  /// Trouble is told once in `problem`, and no further attempt is made.
  void note(const TuningKey& key, std::string& problem);

 private:
  std::string path_;
  ForkSafeMutex mutex_;
  bool begun_ = false;
  std::set<std::string> lines_;
};

}  // namespace q4
