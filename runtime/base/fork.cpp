// Counts forks with pthread_atfork.
#include "runtime/base/fork.hpp"

#include <pthread.h>

#include <atomic>

#include "runtime/base/check.hpp"

namespace q4 {
namespace {

std::atomic<std::uint32_t> forks{0};

}  // namespace

std::uint32_t HomeProcess::generation() {
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  return forks.load(std::memory_order_relaxed);
}

const char* HomeProcess::text() {
  return "this process was forked from one that had used its GPUs, and GPU drivers do not survive fork(): fork before "
         "the first use of a GPU, or start the child anew (exec; in Python multiprocessing's 'spawn')";
}

void HomeProcess::check() const {
  if (left()) [[unlikely]]
    fail(ErrorCode::kDevice, "{}", text());
}

}  // namespace q4
