// Heap: pieces of blocks do not overlap, little is held beyond them, and blocks go back.
#include "runtime/gpu/heap.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "reference.hpp"

namespace q4::test {
namespace {

/// Blocks of addresses that nothing is behind.
struct Addresses {
  std::map<std::uintptr_t, std::size_t> blocks;
  std::uintptr_t next = 1 << 20;
  std::size_t limit = std::size_t{1} << 40, held = 0, taken = 0;
  int settled = 0;

  void* take(std::size_t bytes) {
    if (held + bytes > limit) fail(ErrorCode::kOutOfMemory, "no more");
    held += bytes, ++taken;
    blocks[next] = bytes;
    return reinterpret_cast<void*>(std::exchange(next, next + bytes + 4096));
  }
  void give(void* block) {
    const auto at = blocks.find(reinterpret_cast<std::uintptr_t>(block));
    REQUIRE(at != blocks.end());
    held -= at->second;
    blocks.erase(at);
  }
};

struct Case {
  Addresses addresses;
  gpu::Heap heap;
  void* take(std::size_t bytes) {
    return heap.take(bytes, [&](std::size_t size) { return addresses.take(size); });
  }
  bool give(void* memory) {
    return heap.give(
        memory, [&] { ++addresses.settled; }, [&](void* block) { addresses.give(block); });
  }
};

TEST_CASE("heap: random pieces do not overlap, and little is held beyond them") {
  Random random(5);
  for (int round = 0; round < 20; ++round) {
    Case c;
    std::map<std::uintptr_t, std::size_t> used;
    std::size_t in_use = 0, most = 0, largest = 0;
    for (int step = 0; step < 600; ++step) {
      if (!used.empty() && random.below(step < 400 ? 3 : 1) == 0) {
        auto at = used.begin();
        std::advance(at, random.below(static_cast<int>(used.size())));
        in_use -= at->second;
        CHECK(c.give(reinterpret_cast<void*>(at->first)));
        CHECK_FALSE(c.give(reinterpret_cast<void*>(at->first)));  // it is no longer there
        used.erase(at);
        continue;
      }
      const std::size_t bytes = gpu::Heap::kLeast << random.below(9);
      const std::size_t asked = bytes + static_cast<std::size_t>(random.below(1000)) * 16;
      const auto at = reinterpret_cast<std::uintptr_t>(c.take(asked));
      CHECK(at % 256 == 0);
      const auto next = used.lower_bound(at);
      CHECK((next == used.end() || at + asked <= next->first));
      CHECK((next == used.begin() || std::prev(next)->first + std::prev(next)->second <= at));
      const auto block = std::prev(c.addresses.blocks.upper_bound(at));
      CHECK(at + asked <= block->first + block->second);
      used[at] = asked;
      in_use += asked, largest = std::max(largest, asked), most = std::max(most, in_use);
      CHECK(c.heap.held() == c.addresses.held);
      if (in_use == most) CHECK(c.heap.held() <= 2 * most + largest + (2 << 20));
    }
    for (const auto& [at, bytes] : used) CHECK(c.give(reinterpret_cast<void*>(at)));
    CHECK(c.heap.held() == 0);
    CHECK(c.addresses.blocks.empty());
    CHECK(c.addresses.settled > 0);
  }
}

TEST_CASE("heap: a model takes few blocks, and an eighth of its memory or less beyond what it needs") {
  Case c;
  std::size_t in_use = 0;
  std::vector<void*> all;
  for (int layer = 0; layer < 32; ++layer)
    for (const std::size_t codes : {8u << 20, 2u << 20, 2u << 20, 8u << 20, 28u << 20, 28u << 20, 28u << 20})
      for (const std::size_t bytes : {codes, codes / 128 * 5}) all.push_back(c.take(bytes)), in_use += bytes;
  CHECK(all.size() == 448);
  CHECK(c.addresses.taken < 60);
  CHECK(c.heap.held() <= in_use + in_use / 8);
  for (void* memory : all) CHECK(c.give(memory));
  CHECK(c.addresses.blocks.empty());
}

TEST_CASE("heap: pieces that were given back beside each other are one") {
  constexpr std::size_t kPiece = 1 << 20;
  Case c;
  c.take(32 << 20);
  std::vector<void*> pieces;
  for (int i = 0; i < 8; ++i) pieces.push_back(c.take(kPiece));  // a block of 8 MB
  REQUIRE(c.addresses.taken == 2);
  for (const int i : {1, 2, 6, 5}) c.give(pieces[static_cast<std::size_t>(i)]);
  CHECK(c.take(2 * kPiece) == pieces[1]);
  CHECK(c.take(2 * kPiece) == pieces[5]);
  c.give(pieces[1]);
  c.give(pieces[5]);
  c.give(pieces[3]);
  c.give(pieces[4]);  // with free ones on both sides
  CHECK(c.take(6 * kPiece) == pieces[1]);
  CHECK(c.addresses.taken == 2);
}

TEST_CASE("heap: where a larger block is refused, one that is just enough will do") {
  Case c;
  std::vector<void*> all;
  for (int i = 0; i < 10; ++i) all.push_back(c.take(4 << 20));
  c.addresses.limit = c.addresses.held + (1 << 20);  // not a block more
  for (bool full = false; !full;) {
    try {
      all.push_back(c.take(1 << 20));
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kOutOfMemory);
      full = true;
    }
  }
  CHECK(c.addresses.held == c.addresses.limit);
  int elsewhere = 0;
  CHECK_FALSE(c.give(&elsewhere));
  for (void* memory : all) CHECK(c.give(memory));
  CHECK(c.addresses.held == 0);
}

TEST_CASE("heap: threads take and give at once") {
  gpu::Heap heap;
  const auto work = [&](unsigned seed) {
    Random random(seed);
    std::vector<std::pair<std::byte*, std::size_t>> mine;
    for (int step = 0; step < 300; ++step) {
      const std::size_t bytes = gpu::Heap::kLeast + static_cast<std::size_t>(random.below(100)) * 256;
      auto* const memory =
          static_cast<std::byte*>(heap.take(bytes, [](std::size_t size) { return std::aligned_alloc(256, size); }));
      std::memset(memory, static_cast<int>(seed), bytes);
      mine.emplace_back(memory, bytes);
      if (mine.size() < 8) continue;
      const auto [old, size] = mine[mine.size() / 2];
      CHECK(old[0] == std::byte(seed));
      CHECK(std::memcmp(old, old + 1, size - 1) == 0);
      heap.give(
          old, [] {}, [](void* block) { std::free(block); });
      mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(mine.size() / 2));
    }
    for (const auto& [memory, bytes] : mine)
      heap.give(
          memory, [] {}, [](void* block) { std::free(block); });
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  CHECK(heap.held() == 0);
}

}  // namespace
}  // namespace q4::test
