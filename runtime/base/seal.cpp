// What a sealed Runtime says.
#include "runtime/base/seal.hpp"

#include "runtime/base/check.hpp"

namespace q4 {

void Seal::set(Sealing mode, std::function<void(const std::string&)> warn) {
  const std::lock_guard lock(mutex_);
  warn_ = std::move(warn);
  said_.clear();
  mode_.store(mode, std::memory_order_relaxed);
}

void Seal::check(const std::string& what) const {
  const auto now = mode();
  if (now == Sealing::kOff) [[likely]]
    return;
  if (now == Sealing::kError)
    fail(ErrorCode::kUnsupported,
         "the runtime is sealed, but {}: include it in the warm-up before seal(), or seal with kWarn", what);
  std::function<void(const std::string&)> warn;
  {
    const std::lock_guard lock(mutex_);
    if (!said_.insert(what).second) return;
    warn = warn_;
  }
  if (warn) warn("sealed runtime: " + what + "; include it in the warm-up before seal()");
}

}  // namespace q4
