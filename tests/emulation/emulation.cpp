// The two engines: fibers on one thread, and one thread a lane.
#include "tests/emulation/emulation.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <new>
#include <thread>

#include "tests/emulation/engine.hpp"

#if defined(__SANITIZE_THREAD__)
#define Q4_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define Q4_ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define Q4_TSAN 1
#elif __has_feature(address_sanitizer)
#define Q4_ASAN 1
#endif
#endif
#if Q4_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace q4::emulation {
namespace {

constexpr std::size_t kStackBytes = 256 << 10, kGuardBytes = 4096;
constexpr int kCanaryBytes = 256;  // after shared memory
constexpr std::align_val_t kSharedAlignment{1024};

class FiberScheduler;
thread_local Lane* current_lane = nullptr;
thread_local FiberScheduler* current_scheduler = nullptr;

/// A stack as AddressSanitizer wants to be told of it at every switch; nothing in other builds.
struct StackBounds {
  const void* bottom = nullptr;
  std::size_t size = 0;
  void* fake = nullptr;  ///< its own bookkeeping, while the stack is left

  /// Before a switch: leaves this stack (for good if `last`) for `next`.
  void leave_for([[maybe_unused]] const StackBounds& next, [[maybe_unused]] bool last = false) {
#if Q4_ASAN
    __sanitizer_start_switch_fiber(last ? nullptr : &fake, next.bottom, next.size);
#endif
  }
  /// After a switch: this stack is in use again; `from` learns its bounds.
  void enter([[maybe_unused]] StackBounds& from) {
#if Q4_ASAN
    __sanitizer_finish_switch_fiber(fake, &from.bottom, &from.size);
#endif
  }
};

/// Stacks, kept for the next launch: mapping them costs more than a small kernel.
class Stacks {
 public:
  ~Stacks() { clear(); }
  std::byte* get(std::size_t i) {
    while (stacks_.size() <= i) {
      void* memory =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
      stacks_.push_back(static_cast<std::byte*>(memory));
    }
    return stacks_[i];
  }
  void clear() {
    for (auto* stack : stacks_) munmap(stack, kStackBytes);
    stacks_.clear();
  }

 private:
  std::vector<std::byte*> stacks_;
};

/// Runs lanes in turns, each until it waits. A turn in which nobody moves is a deadlock.
class FiberScheduler {
 public:
  explicit FiberScheduler(const std::function<void()>& kernel) : kernel_(kernel) {}

  void run(std::vector<Lane>& lanes) {
    fibers_.assign(lanes.size(), {});
    for (std::size_t i = 0; i < lanes.size(); ++i) start(fibers_[i], lanes[i], i);
    current_scheduler = this;
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& fiber : fibers_) {
        if (fiber.done || (fiber.ready != nullptr && !(*fiber.ready)())) continue;
        moved = true;
        fiber.ready = nullptr;
        running_ = &fiber;
        current_lane = fiber.lane;
        bounds_.leave_for(fiber.bounds);
        swapcontext(&scheduler_, &fiber.context);
        bounds_.enter(fiber.bounds);
        if (error_) break;
      }
      if (error_) break;
    }
    current_lane = nullptr, current_scheduler = nullptr;
    if (error_) std::rethrow_exception(error_);
    report_waiting();
  }

  void wait(const char* what, const std::function<bool()>& ready) {
    Fiber& fiber = *running_;
    fiber.what = what;
    fiber.ready = &ready;
    fiber.bounds.leave_for(bounds_);
    swapcontext(&fiber.context, &scheduler_);
    fiber.bounds.enter(bounds_);
  }

 private:
  struct Fiber {
    ucontext_t context;
    StackBounds bounds;
    Lane* lane = nullptr;
    const std::function<bool()>* ready = nullptr;  ///< null: may run
    const char* what = "";
    bool done = false;
  };

  void start(Fiber& fiber, Lane& lane, std::size_t i) {
    thread_local Stacks stacks;
    fiber.lane = &lane;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.get(i) + kGuardBytes;
    fiber.context.uc_stack.ss_size = kStackBytes - kGuardBytes;
    fiber.context.uc_link = nullptr;
    fiber.bounds = {fiber.context.uc_stack.ss_sp, fiber.context.uc_stack.ss_size, nullptr};
    makecontext(&fiber.context, &FiberScheduler::entry, 0);
  }

  static void entry() {
    FiberScheduler& scheduler = *current_scheduler;
    Fiber& fiber = *scheduler.running_;
    fiber.bounds.enter(scheduler.bounds_);
    try {
      scheduler.kernel_();
    } catch (...) { scheduler.error_ = std::current_exception(); }
    fiber.done = true;
    fiber.bounds.leave_for(scheduler.bounds_, true);
    setcontext(&scheduler.scheduler_);
  }

  void report_waiting() const {
    const auto waiting = std::find_if(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return !f.done; });
    if (waiting == fibers_.end()) return;
    const auto stuck = std::count_if(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return !f.done; });
    const auto other = std::find_if(waiting, fibers_.end(),
                                    [&](const Fiber& f) { return !f.done && std::strcmp(f.what, waiting->what) != 0; });
    throw EmulationError(fmt::format(
        "emulate: {} of {} lanes wait for ever: lane {} of block {} in {}{}", stuck, fibers_.size(),
        waiting->lane->thread, waiting->lane->block->index, waiting->what,
        other == fibers_.end()
            ? std::string(", the others have returned")
            : fmt::format(", lane {} of block {} in {}", other->lane->thread, other->lane->block->index, other->what)));
  }

  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  ucontext_t scheduler_;
  StackBounds bounds_;  ///< of the stack that the scheduler runs on, learned at the first switch away from it
  Fiber* running_ = nullptr;
  std::exception_ptr error_;
};

/// The blocks of one cluster, with memory that is fresh for every cluster of the grid.
class Memory {
 public:
  explicit Memory(const Launch& launch) : launch_(launch) {
    cluster_.blocks = std::vector<Block>(static_cast<std::size_t>(launch.cluster));
    const auto bytes = static_cast<std::size_t>(launch.shared_bytes + kCanaryBytes);
    for (auto& block : cluster_.blocks) block.shared = static_cast<std::byte*>(::operator new(bytes, kSharedAlignment));
  }
  ~Memory() {
    for (auto& block : cluster_.blocks) ::operator delete(block.shared, kSharedAlignment);
  }
  Memory(const Memory&) = delete;

  void begin(std::int64_t first_block, std::vector<Lane>& lanes) {
    for (std::size_t b = 0; b < cluster_.blocks.size(); ++b) {
      Block& block = cluster_.blocks[b];
      block.index = static_cast<int>(first_block) + static_cast<int>(b);
      block.shared_bytes = launch_.shared_bytes;
      std::memset(block.shared, 0xff, static_cast<std::size_t>(launch_.shared_bytes));
      std::memset(block.shared + launch_.shared_bytes, 0xa5, kCanaryBytes);
      if (block.groups.empty()) block.groups.resize(static_cast<std::size_t>(launch_.threads / 32));
      if (block.warps.empty())
        block.warps.resize(static_cast<std::size_t>((launch_.threads + launch_.warp - 1) / launch_.warp));
    }
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      lanes[i] = Lane{};
      lanes[i].launch = &launch_;
      lanes[i].cluster = &cluster_;
      lanes[i].block = &cluster_.blocks[i / static_cast<std::size_t>(launch_.threads)];
      lanes[i].thread = static_cast<int>(i) % launch_.threads;
    }
  }

  void end() const {
    for (const auto& block : cluster_.blocks)
      for (int i = 0; i < kCanaryBytes; ++i)
        if (block.shared[launch_.shared_bytes + i] != std::byte{0xa5})
          throw EmulationError(fmt::format("emulate: block {} wrote shared memory at byte {} of {}", block.index,
                                           launch_.shared_bytes + i, launch_.shared_bytes));
  }

 private:
  const Launch& launch_;
  Cluster cluster_;
};

void run_threads(const Launch& launch, Memory& memory, std::vector<Lane>& lanes, const std::function<void()>& kernel) {
  const int count = static_cast<int>(lanes.size());
  Barrier edge;  // between clusters: lanes do not run into the next one's memory
  const auto body = [&](int i) noexcept {
    for (std::int64_t first = 0; first < launch.grid; first += launch.cluster) {
      if (i == 0) memory.begin(first, lanes);
      edge.arrive_and_wait(count, "the beginning of a block");
      current_lane = &lanes[static_cast<std::size_t>(i)];
      kernel();
      edge.arrive_and_wait(count, "the end of a block");
      if (i == 0) memory.end();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (auto& thread : threads) thread.join();
}

}  // namespace

Engine default_engine() {
#if Q4_TSAN
  return Engine::kThreads;
#else
  return Engine::kFibers;
#endif
}

Lane& self() {
  if (current_lane == nullptr) throw EmulationError("a device function was called outside emulate()");
  return *current_lane;
}

void wait_until(const char* what, const std::function<bool()>& ready) {
  if (ready()) return;
  if (current_scheduler != nullptr) return current_scheduler->wait(what, ready);
  while (!ready()) std::this_thread::yield();
}

Barrier::Generation Barrier::arrive(int expected) {
  const Generation before = generation_.load(std::memory_order_relaxed);  // cannot move on without this lane
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == expected) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_acq_rel);
    generation_.notify_all();
  }
  return before;
}

void Barrier::wait(Generation before, const char* what) {
  if (current_scheduler == nullptr) return generation_.wait(before, std::memory_order_acquire);
  if (generation_.load(std::memory_order_relaxed) == before)
    current_scheduler->wait(what, [&] { return generation_.load(std::memory_order_relaxed) != before; });
}

std::uint32_t address_of(const void* shared) {
  const auto& lane = self();
  const auto offset = static_cast<const std::byte*>(shared) - lane.block->shared;
  if (offset < 0 || offset > lane.block->shared_bytes)
    throw EmulationError("shared_address: not a pointer into this block's shared memory");
  return static_cast<std::uint32_t>(lane.block - lane.cluster->blocks.data()) << 24 |
         static_cast<std::uint32_t>(offset);
}

std::byte* at_address(std::uint32_t address, int bytes, int alignment) {
  const auto& lane = self();
  const std::size_t rank = address >> 24;
  const int offset = static_cast<int>(address & 0xffffffu);
  if (rank >= lane.cluster->blocks.size() || offset + bytes > lane.block->shared_bytes || offset % alignment != 0)
    throw EmulationError(
        fmt::format("lane {} of block {}: {} bytes at shared address {}, block {} of the cluster: of {} bytes, "
                    "aligned to {}",
                    lane.thread, lane.block->index, bytes, offset, rank, lane.block->shared_bytes, alignment));
  return lane.cluster->blocks[rank].shared + offset;
}

void emulate(const Launch& launch, const std::function<void()>& kernel) {
  if (launch.threads < 32 || launch.threads > 1024 || launch.threads % 32 != 0 || launch.grid % launch.cluster != 0)
    throw EmulationError(fmt::format("emulate: {} threads, {} blocks in clusters of {}: no such launch", launch.threads,
                                     launch.grid, launch.cluster));
  Memory memory(launch);
  std::vector<Lane> lanes(static_cast<std::size_t>(launch.threads * launch.cluster));
  if (launch.engine == Engine::kThreads) return run_threads(launch, memory, lanes, kernel);
  for (std::int64_t first = 0; first < launch.grid; first += launch.cluster) {
    memory.begin(first, lanes);
    FiberScheduler(kernel).run(lanes);
    memory.end();
  }
}

}  // namespace q4::emulation
