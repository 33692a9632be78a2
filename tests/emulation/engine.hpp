// The machine that models of instructions are written against: lanes, blocks, barriers, exchange among 32 lanes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/emulation/emulation.hpp"

namespace q4::emulation {

/// Suspends the calling lane until `ready()`. Fibers: the scheduler polls. Threads: spins with yields, so `ready` must
/// synchronize (atomics or a lock). `what` names the wait in the error text.
void wait_until(const char* what, const std::function<bool()>& ready);

/// Meets `expected` lanes, again and again. Establishes order between those lanes and no others.
class Barrier {
 public:
  using Generation = std::uint32_t;
  Generation arrive(int expected);                 ///< does not wait; what wait() is to be given
  void wait(Generation before, const char* what);  ///< until all of that generation have arrived
  void arrive_and_wait(int expected, const char* what) { wait(arrive(expected), what); }

 private:
  std::atomic<int> arrived_{0};
  std::atomic<Generation> generation_{0};
};

/// 32 lanes that exchange registers.
struct Group {
  static constexpr std::size_t kSlotBytes = 64;
  Barrier barrier;
  alignas(16) std::byte slots[2][32][kSlotBytes];
};

struct Block {
  int index = 0;  ///< in the grid
  std::byte* shared = nullptr;
  int shared_bytes = 0;
  std::deque<Group> groups;   ///< of 32 lanes
  std::deque<Barrier> warps;  ///< of Launch::warp lanes
  Barrier barriers[16];       ///< 0: the whole block; the rest: named barriers
};

/// Blocks that run at the same time.
struct Cluster {
  std::vector<Block> blocks;
  Barrier barrier;
  struct Arrival {
    std::uint32_t bar, bytes;
    std::function<void()> land;
  };
  std::mutex mutex;
  std::vector<Arrival> arrivals;  ///< copies on their way, each counted by an mbarrier
};

/// A copy that the lane has started and not yet waited for: its bytes arrive at the wait, not before.
struct PendingCopy {
  std::byte* to;
  const void* from;
  int bytes, zeros;  ///< copied, then cleared
};

struct Lane {
  const Launch* launch = nullptr;
  Cluster* cluster = nullptr;
  Block* block = nullptr;
  int thread = 0;
  int parity = 0;  ///< which of the group's two sets of slots is next
  Barrier::Generation cluster_generation = 0;
  std::deque<std::vector<PendingCopy>> copies{1};              ///< committed groups, oldest first, and the open one
  std::deque<std::vector<std::function<void()>>> products{1};  ///< wgmma, likewise
  std::vector<std::function<void()>> stores;                   ///< of tensors
};

/// The calling lane; outside emulate() it throws EmulationError.
Lane& self();

// ---- shared memory by its 32-bit address: the block's place in the cluster, 8 bits, and the offset, 24 bits ---------
std::uint32_t address_of(const void* shared);
/// Checks bounds and alignment.
std::byte* at_address(std::uint32_t address, int bytes, int alignment);

// ---- mbarriers ------------------------------------------------------------------------------------------------------
/// `arrivals` of lanes, and `bytes` to expect (or, negative, that have come).
void mbarrier_update(std::uint32_t bar, std::uint32_t arrivals, std::int32_t bytes);
/// Bytes that land, by `land`, when a lane waits for the barrier: as late as they may.
void arrive_later(std::uint32_t bar, std::uint32_t bytes, std::function<void()> land);

/// Publishes `mine` to the 32 lanes of the group and returns all of theirs, valid until the call after the next: a lane
/// can be one exchange ahead of another, never two, and the slots alternate.
template <class T>
struct Exchanged {
  const std::byte* slots;
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, slots + static_cast<std::size_t>(lane) * Group::kSlotBytes, sizeof value);
    return value;
  }
};
template <class T>
Exchanged<T> exchange(const T& mine, const char* what) {
  static_assert(sizeof(T) <= Group::kSlotBytes);
  Lane& lane = self();
  Group& group = lane.block->groups[static_cast<std::size_t>(lane.thread / 32)];
  auto& slots = group.slots[lane.parity];
  lane.parity ^= 1;
  std::memcpy(slots[lane.thread % 32], &mine, sizeof mine);
  group.barrier.arrive_and_wait(32, what);
  return {slots[0]};
}

}  // namespace q4::emulation
