// Problems that ran without a tuning record, appended to a file for q4-autotune --shapes.
#pragma once

#include <mutex>
#include <q4/tuning.hpp>
#include <set>
#include <string>

#include "runtime/base/fork.hpp"
#include "runtime/base/result.hpp"

namespace q4 {

/// One line a problem: {"k":4096,"n":6144,"group":128,"act_order":false,"activation":"fp16"}. A line is one write with
/// O_APPEND, so that processes may share a file; what the file holds already is not written again. Thread-safe.
class UntunedLog {
 public:
  void open(std::string path) { path_ = std::move(path); }  ///< before any note(); empty: nothing is written
  /// A failure is reported once, and no further attempt is made.
  Result<void> note(const TuningKey& key);

 private:
  std::string path_;
  ForkSafeMutex mutex_;
  bool begun_ = false;
  std::set<std::string> lines_;
};

}  // namespace q4
