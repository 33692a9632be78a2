// Models of kernels/async.h. Copies land when the lane waits for them, as late as the hardware may: a missing wait
// reads NaN. An mbarrier is one word in shared memory, as on the GPU, with fields of our own.
#include "kernels/hopper.h"

#include <fmt/format.h>

#include <atomic>

#include "tests/emulation/engine.hpp"

namespace q4 {
namespace {

using emulation::at_address;
using emulation::EmulationError;
using emulation::self;

/// The fields of a barrier's 64 bits. `magic` tells a barrier from memory that nobody has initialized.
struct BarrierWord {
  u32 magic : 7, phase : 1, count : 12, pending : 12;
  i32 bytes;  ///< still to come; may be negative for a moment
};
static_assert(sizeof(BarrierWord) == 8);
constexpr u32 kMagic = 0x35;

std::atomic_ref<u64> barrier_at(u32 bar) {
  return std::atomic_ref<u64>(*reinterpret_cast<u64*>(at_address(bar, 8, 8)));
}

BarrierWord read(u32 bar, u64 bits) {
  const auto word = bit_cast<BarrierWord>(bits);
  if (word.magic != kMagic) throw EmulationError(fmt::format("no mbarrier was initialized at {}", bar & 0xffffffu));
  return word;
}

/// The copies that this barrier counts, here and now.
void land_all(u32 bar) {
  auto& cluster = *self().cluster;
  const std::scoped_lock lock(cluster.mutex);
  for (std::size_t i = 0; i < cluster.arrivals.size();) {
    if (cluster.arrivals[i].bar != bar) {
      ++i;
      continue;
    }
    const auto arrival = cluster.arrivals[i];
    cluster.arrivals.erase(cluster.arrivals.begin() + static_cast<std::ptrdiff_t>(i));
    arrival.land();
    emulation::mbarrier_update(bar, 0, -static_cast<i32>(arrival.bytes));
  }
}

}  // namespace

namespace emulation {

void mbarrier_update(u32 bar, u32 arrivals, i32 bytes) {
  const auto atomic = barrier_at(bar);
  u64 before = atomic.load();
  for (;;) {
    BarrierWord word = read(bar, before);
    if (arrivals > word.pending) throw EmulationError("more arrivals than the mbarrier counts");
    word.pending -= arrivals;
    word.bytes += bytes;
    if (word.pending == 0 && word.bytes == 0) word.phase ^= 1u, word.pending = word.count;
    if (atomic.compare_exchange_weak(before, bit_cast<u64>(word))) return;
  }
}

void arrive_later(u32 bar, u32 bytes, std::function<void()> land) {
  auto& cluster = *self().cluster;
  const std::scoped_lock lock(cluster.mutex);
  cluster.arrivals.push_back({bar, bytes, std::move(land)});
}

}  // namespace emulation

u32 shared_address(const void* p) { return emulation::address_of(p); }

void async_copy16(u32 to, const void* from, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0 || (bytes != 0 && bytes != 16))
    throw EmulationError("async_copy16: 0 or 16 bytes from a 16-byte boundary");
  self().copies.back().push_back({at_address(to, 16, 16), from, bytes, 16 - bytes});
}
void async_commit() { self().copies.emplace_back(); }
template <int kPending>
void async_wait() {
  auto& copies = self().copies;
  while (static_cast<int>(copies.size()) - 1 > kPending) {
    for (const auto& copy : copies.front()) {
      std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
      std::memset(copy.to + copy.bytes, 0, static_cast<std::size_t>(copy.zeros));
    }
    copies.pop_front();
  }
}
template void async_wait<0>();
template void async_wait<1>();
template void async_wait<2>();
template void async_wait<3>();
template void async_wait<4>();
template void async_wait<5>();
template void async_wait<6>();

void named_barrier(int id, int threads) {
  if (id < 1 || id > 15 || threads % 32 != 0) throw EmulationError("named_barrier: id 1 to 15, whole warps");
  self().block->barriers[id].arrive_and_wait(threads, "named_barrier");
}

void wait_previous_kernel() {}
void allow_next_kernel() {}

u32 cluster_rank() { return static_cast<u32>(self().block - self().cluster->blocks.data()); }
void cluster_arrive() {
  auto& lane = self();
  lane.cluster_generation = lane.cluster->barrier.arrive(lane.launch->threads * lane.launch->cluster);
}
void cluster_wait() { self().cluster->barrier.wait(self().cluster_generation, "cluster_wait"); }

void mbar_init(u32 bar, u32 count) { barrier_at(bar).store(bit_cast<u64>(BarrierWord{kMagic, 0, count, count, 0})); }
void mbar_fence_init() {}
void mbar_expect(u32 bar, u32 bytes) { emulation::mbarrier_update(bar, 1, static_cast<i32>(bytes)); }
void mbar_wait(u32 bar, u32 parity) {
  emulation::wait_until("mbar_wait", [=] {
    const auto ended = [&] { return read(bar, barrier_at(bar).load()).phase != parity; };
    if (ended()) return true;
    land_all(bar);
    return ended();
  });
}

void mbar_wait_cluster(u32 bar, u32 parity) { mbar_wait(bar, parity); }

u32 remote_address(u32 address, u32 block) { return (address & 0xffffffu) | block << 24; }

}  // namespace q4
