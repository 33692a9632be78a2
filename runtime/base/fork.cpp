// Handlers of fork(): one counts, one closes the gate that every holder of a ForkSafeMutex passes.
#include "runtime/base/fork.hpp"

#include <pthread.h>

#include <atomic>

#include "runtime/base/check.hpp"

namespace q4 {
namespace {

std::atomic<std::uint32_t> forks{0};

/// Threads that hold or wait for a ForkSafeMutex, and forks that wait for them to leave.
std::atomic<int> inside{0}, forking{0};
thread_local int depth = 0;  // mutexes that this thread holds or waits for

void enter() {
  while (depth == 0) {
    inside.fetch_add(1);
    if (forking.load() == 0) break;
    inside.fetch_sub(1);
    inside.notify_all();
    for (int some; (some = forking.load()) != 0;) forking.wait(some);
  }
  ++depth;
}

void leave() {
  if (--depth > 0) return;
  inside.fetch_sub(1);
  if (forking.load() != 0) inside.notify_all();
}

void before_fork() {
  forking.fetch_add(1);
  const int own = depth > 0 ? 1 : 0;
  for (int some; (some = inside.load()) > own;) inside.wait(some);
}

void in_parent() {
  forking.fetch_sub(1);
  forking.notify_all();
}

void in_child() {
  forks.fetch_add(1, std::memory_order_relaxed);
  inside.store(depth > 0 ? 1 : 0);
  forking.store(0);
}

/// When the library is loaded: at the first use of a lock, another thread might be forking already.
[[maybe_unused]] const int registered = pthread_atfork(before_fork, in_parent, in_child);

}  // namespace

std::uint32_t HomeProcess::generation() { return forks.load(std::memory_order_relaxed); }

const char* HomeProcess::text() {
  return "this process was forked from one that had used its GPUs, and GPU drivers do not survive fork(): fork before "
         "the first use of a GPU, or start the child anew (exec; in Python multiprocessing's 'spawn')";
}

void HomeProcess::check() const {
  if (left()) [[unlikely]]
    fail(ErrorCode::kDevice, "{}", text());
}

void ForkSafeMutex::lock() {
  enter();
  mutex_.lock();
}

void ForkSafeMutex::unlock() {
  mutex_.unlock();
  leave();
}

void ProcessMutex::lock() {
  const std::uint32_t held = 2 * HomeProcess::generation() + 1;
  std::uint32_t seen = word_.load();
  do
    for (; seen == held; seen = word_.load()) word_.wait(held);
  while (!word_.compare_exchange_weak(seen, held));
}

void ProcessMutex::unlock() {
  word_.store(2 * HomeProcess::generation());
  word_.notify_one();
}

}  // namespace q4
