// Seal: after warm-up, what would compile or take memory is reported or refused.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <q4/memory.hpp>
#include <set>
#include <string>

#include "runtime/base/fork.hpp"

namespace q4 {

/// Thread-safe; costs one load while it is off.
class Seal {
 public:
  /// `warn` receives each text once.
  void set(Sealing mode, std::function<void(const std::string&)> warn);
  Sealing mode() const { return mode_.load(std::memory_order_relaxed); }
  /// Before something that a sealed Runtime must not do: "cuda:0: 4096 bytes of workspace are allocated". Throws
  /// kUnsupported in kError.
  void check(const std::string& what) const;

 private:
  std::atomic<Sealing> mode_{Sealing::kOff};
  mutable ForkSafeMutex mutex_;  // of what follows
  std::function<void(const std::string&)> warn_;
  mutable std::set<std::string> said_;
};

}  // namespace q4
