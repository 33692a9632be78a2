// The emulator: fp16 arithmetic against the reference, shuffles and barriers on both engines, and what it must refuse.
#include "tests/emulation/emulation.hpp"

#include <doctest/doctest.h>
#include <cmath>
#include <vector>

#include "kernels/mma.h"
#include "on_threads.hpp"
#include "reference.hpp"

namespace q4::test {
namespace {

using emulation::emulate;
using emulation::EmulationError;
using emulation::Engine;

constexpr bool same(u16 a, u16 b) { return a == b || ((a & 0x7fffu) > 0x7c00u && (b & 0x7fffu) > 0x7c00u); }

/// |value of bits - exact / 2^48| * 2^48
__int128 distance(u16 bits, __int128 exact) {
  const __int128 difference = static_cast<__int128>(half_value(bits) * 0x1p24) * (__int128{1} << 24) - exact;
  return difference < 0 ? -difference : difference;
}
/// `bits` is the half nearest to exact / 2^48, the even one of two.
bool is_nearest(u16 bits, __int128 exact) {
  const __int128 mine = distance(bits, exact);
  for (const int step : {-1, 1}) {
    const auto neighbour = static_cast<u16>(bits + step);
    if ((neighbour & 0x7c00u) == 0x7c00u || ((neighbour ^ bits) & 0x8000u)) continue;  // infinite, or across zero
    const __int128 other = distance(neighbour, exact);
    if (other < mine || (other == mine && bits % 2 != 0)) return false;
  }
  return true;
}

TEST_CASE("fp16 arithmetic has one rounding") {
  Random random(3);
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const auto bits = static_cast<u16>(h);
    const double value = half_value(bits);
    if (!std::isnan(value) && half_to_float(bits) != value) FAIL("half_to_float " << h);
    const float near = static_cast<float>(value * (0.9995 + 0.001 * random.uniform()));
    if (!same(float_to_half(near), half_bits(near))) FAIL("float_to_half " << h);
  }
  for (int i = 0; i < 300000; ++i) {
    // Near exponents, so that sums meet ties and cancel.
    const auto a = static_cast<u16>(random.bits()), b = static_cast<u16>(random.bits());
    const double x = half_value(a), y = half_value(b);
    const u16 c = i % 2 ? static_cast<u16>(random.bits()) : static_cast<u16>(half_bits(-x * y) + random.below(16));
    const double z = half_value(c);
    const u32 sum = half2_add(a, static_cast<u32>(a) << 16 | b), product = half2_mul(static_cast<u32>(b) << 16 | a, b);
    if (!same(static_cast<u16>(sum), half_bits(x + y))) FAIL("add " << a << " " << b);
    if (!same(static_cast<u16>(sum >> 16), half_bits(x + 0.))) FAIL("add, high " << a);
    if (!same(static_cast<u16>(product), half_bits(x * y))) FAIL("mul " << a << " " << b);
    const auto fma = static_cast<u16>(half2_fma(a, b, c));
    if (!std::isfinite(x) || !std::isfinite(y) || !std::isfinite(z) || std::fabs(x * y + z) > 65504) continue;
    const auto integer = [](double v) { return static_cast<__int128>(v * 0x1p24); };
    if (!is_nearest(fma, integer(x) * integer(y) + integer(z) * (__int128{1} << 24)))
      FAIL("fma " << a << " " << b << " " << c << " gives " << fma);
  }
  CHECK(half2_fma(0x3c00, 0x7bff, 0x7bff) == 0x7c00);  // 65504 + 65504: infinity
}

TEST_CASE("lanes exchange, blocks meet") {
  for (const Engine engine : {emulation::default_engine(), Engine::kThreads})
    for (const int warp : {32, 64}) {
      std::vector<int> sums(3 * 96), rotated(3 * 96);
      emulate({.grid = 3, .threads = 96, .shared_bytes = 4, .warp = warp, .engine = engine}, [&] {
        int v = thread_index();
        for (int mask = 1; mask < 32; mask *= 2) v += shuffle_xor(v, mask);
        const int turned = shuffle(thread_index(), thread_index() + 1);
        const int at = block_index() * 96 + thread_index();
        sync_warp();
        int* shared = reinterpret_cast<int*>(shared_memory());
        if (thread_index() == 95) *shared = v;
        sync_block();
        sums[at] = v + *shared, rotated[at] = turned;
        CHECK(block_count() == 3);
      });
      for (int at = 0; at < 3 * 96; ++at) {
        const int first = at % 96 / 32 * 32;
        CHECK(sums[at] == 32 * first + 496 + 32 * 64 + 496);
        CHECK(rotated[at] == first + (at % 96 + 1) % 32);
      }
    }
}

TEST_CASE("shared memory begins as NaN in every block") {
  int bad = 0;
  emulate({.grid = 2, .threads = 32, .shared_bytes = 128, .engine = Engine::kFibers}, [&] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    if (!std::isnan(shared[thread_index()])) ++bad;
    shared[thread_index()] = 1;
  });
  CHECK(bad == 0);
}

TEST_CASE("fibers refuse what a GPU would not survive") {
  if (skipped_on_threads("fibers")) return;
  const auto run = [](const std::function<void()>& kernel) { emulate({.threads = 64, .shared_bytes = 8}, kernel); };
  CHECK_THROWS_WITH_AS(
      run([] {
        if (thread_index() < 32) sync_block();
      }),
      "emulate: 32 of 64 lanes wait for ever: lane 0 of block 0 in sync_block, the others have returned",
      EmulationError);
  CHECK_THROWS_WITH_AS(run([] {
                         if (thread_index() == 5)
                           sync_block();
                         else
                           sync_warp();
                       }),
                       doctest::Contains("lane 5 of block 0 in sync_block"), EmulationError);
  CHECK_THROWS_AS(run([] {
                    if (thread_index() % 2) shuffle_xor(1, 1);
                  }),
                  EmulationError);
  CHECK_THROWS_AS(run([] { shared_memory()[8 + thread_index()] = 1; }), EmulationError);
  CHECK_THROWS_AS(run([] { mbar_wait_cluster(shared_address(shared_memory()), 0); }),
                  EmulationError);  // never initialized
  CHECK_THROWS_AS(run([] {
                    if (thread_index() == 0) mbar_init(0, 1);
                    sync_block();
                    mbar_wait_cluster(0, 0);  // nobody arrives
                  }),
                  EmulationError);
  CHECK_THROWS_AS(run([] { async_copy16(4, nullptr, 0); }), EmulationError);
  CHECK_THROWS_AS(run([] { throw std::logic_error("from a lane"); }), std::logic_error);
  CHECK_THROWS_AS(thread_index(), EmulationError);
  run([] { sync_block(); });  // and goes on working afterwards
}

TEST_CASE("mma multiplies the fragments that the manual draws") {
  // Random A 16 x 16 and B 16 x 8 of small integers: exact in every format.
  Random random(4);
  double a[16][16], b[16][8];
  for (auto& row : a)
    for (auto& v : row) v = static_cast<double>(random.below(17)) - 8;
  for (auto& row : b)
    for (auto& v : row) v = static_cast<double>(random.below(17)) - 8;
  double found[2][16][8] = {};
  emulate({}, [&] {
    const int g = thread_index() / 4, t = thread_index() % 4;
    const auto run = [&]<bool kBf16>(double(&d)[16][8]) {
      const auto pair = [](double low, double high) {
        return kBf16 ? bf16_bits(low) | static_cast<u32>(bf16_bits(high)) << 16
                     : half_bits(low) | static_cast<u32>(half_bits(high)) << 16;
      };
      u32 fragment[4];
      for (int i = 0; i < 4; ++i) {
        const double* row = a[g + i % 2 * 8];
        fragment[i] = pair(row[2 * t + i / 2 * 8], row[2 * t + 1 + i / 2 * 8]);
      }
      const u32 b0 = pair(b[2 * t][g], b[2 * t + 1][g]), b1 = pair(b[2 * t + 8][g], b[2 * t + 9][g]);
      float sums[4];
      mma_16816_first<kBf16>(sums, fragment, b0, b1);
      mma_16816<kBf16>(sums, fragment, b0, b1);
      for (int i = 0; i < 4; ++i) d[g + i / 2 * 8][2 * t + i % 2] = sums[i];
    };
    run.operator()<false>(found[0]);
    run.operator()<true>(found[1]);
  });
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 8; ++c) {
      double expected = 0;
      for (int k = 0; k < 16; ++k) expected += 2 * a[r][k] * b[k][c];
      CHECK(found[0][r][c] == expected);
      CHECK(found[1][r][c] == expected);
    }
}

TEST_CASE("copies land when they are waited for; ldmatrix spreads rows") {
  std::vector<u16> rows(32 * 8);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<u16>(i);
  alignas(16) u16 source[32 * 8];
  std::copy(rows.begin(), rows.end(), source);
  emulate({.threads = 32, .shared_bytes = 1024}, [&] {
    const int lane = thread_index();
    u8* row = shared_memory() + lane * 16;
    const u32 address = shared_address(row);
    async_copy16(address, source + lane * 8, 16);
    async_commit();
    async_copy16(address + 512, source + lane * 8, 0);
    async_commit();
    const auto first = [&] { return *reinterpret_cast<u16*>(row); };
    CHECK(first() == 0xffff);
    async_wait<1>();
    CHECK(first() == lane * 8);
    CHECK(*reinterpret_cast<u16*>(row + 512) == 0xffff);
    async_wait<0>();
    CHECK(*reinterpret_cast<u16*>(row + 512) == 0);
    sync_warp();
    u32 d[4];
    load_matrix4(d, address);
    for (int i = 0; i < 4; ++i) {
      const u32 element = static_cast<u32>((8 * i + lane / 4) * 8 + lane % 4 * 2);
      CHECK(d[i] == (element | (element + 1) << 16));
    }
  });
}

TEST_CASE("blocks of a cluster write to each other, counted by a barrier") {
  std::vector<float> got(2 * 2 * 32);
  emulate({.grid = 4, .threads = 32, .shared_bytes = 528, .cluster = 2}, [&] {
    float* inbox = reinterpret_cast<float*>(shared_memory());
    const u32 bar = shared_address(shared_memory() + 512), mine = shared_address(inbox + 4 * thread_index());
    if (thread_index() == 0) mbar_init(bar, 1), mbar_expect(bar, 512), mbar_fence_init();
    cluster_arrive();
    cluster_wait();
    const u32 other = 1 - cluster_rank();
    const float v[4] = {static_cast<float>(block_index() * 100 + thread_index()), 1, 2, 3};
    store_remote(remote_address(mine, other), v, remote_address(bar, other));
    mbar_wait_cluster(bar, 0);
    got[block_index() * 32 + thread_index()] = inbox[4 * (31 - thread_index())];
  });
  for (int block = 0; block < 4; ++block)
    for (int t = 0; t < 32; ++t) CHECK(got[block * 32 + t] == (block ^ 1) * 100 + 31 - t);
}

}  // namespace
}  // namespace q4::test
