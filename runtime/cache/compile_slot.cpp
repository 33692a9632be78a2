// Counts the compiles of this process.
#include "runtime/cache/compile_slot.hpp"

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "runtime/base/fork.hpp"
#include "runtime/base/processors.hpp"

namespace q4::cache {
namespace {

struct Slots {
  ForkSafeMutex mutex;
  std::unique_ptr<std::condition_variable_any> freed = std::make_unique<std::condition_variable_any>();
  HomeProcess home;
  int taken = 0;

  /// A child of fork() has none of the threads that held slots.
  void settle() {
    if (!home.left()) return;
    home = HomeProcess(), taken = 0;
    static_cast<void>(freed.release());  // it may remember threads that waited
    freed = std::make_unique<std::condition_variable_any>();
  }
};
Slots& slots() {
  static auto* all = new Slots;  // never destroyed: threads may end after statics
  return *all;
}

}  // namespace

CompileSlot::CompileSlot() {
  auto& all = slots();
  const int most = std::min(usable_threads(), kMost);
  std::unique_lock lock(all.mutex);
  all.settle();
  while (all.taken >= most) all.freed->wait(lock);
  ++all.taken;
}

CompileSlot::~CompileSlot() {
  auto& all = slots();
  {
    const std::lock_guard lock(all.mutex);
    all.settle();
    all.taken = std::max(0, all.taken - 1);
  }
  all.freed->notify_one();
}

}  // namespace q4::cache
