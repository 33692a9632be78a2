// The tile kernel on the host, with the plain FMAs of mma_tile.h: tails, units, act-order and both types. (The matrix
// instructions themselves run in amd_interpreted_test.cpp.)
#include "kernel_runner.hpp"
#include "kernels/tile.h"
#include "on_threads.hpp"
#include "runtime/choose/defaults/tile.hpp"

namespace q4::test {
namespace {

struct TileTest {
  EmulatedCase matrix;
  int half2 = 1, rows = 32, warp = 32;
  constexpr TileConfig config() const { return {.p = matrix.problem(), .half2 = half2, .rows = rows}; }
};

template <TileTest T>
void check_tile(const char* name, const std::vector<int>& rows) {
  constexpr TileConfig C = T.config();
  static_assert(valid(C, {.shared_bytes = 65536}));
  CAPTURE(name);
  const double error = largest_error(T.matrix, rows, 0, [&](const MatmulArgs& args) {
    emulation::emulate(
        {.grid = grid(C, args.m), .threads = threads(C), .shared_bytes = shared_bytes(C), .warp = T.warp},
        [&] { tile<C>(args); });
  });
  CHECK(error <= tolerance(T.matrix.bf16 ? DType::kBF16 : DType::kF16));
}
#define CHECK_TILE(rows, ...) check_tile<TileTest{__VA_ARGS__}>(#__VA_ARGS__, rows)

const std::vector<int> kRows = {1, 16, 31, 32, 33};

TEST_CASE("tile: rows, tails of k and n, half2 and fp32") {
  CHECK_TILE(std::vector<int>{33}, .matrix = {.k = 256, .n = 64});
  if (skipped_on_threads()) return;
  CHECK_TILE(kRows, .matrix = {.k = 136, .n = 72, .bias = true}, .half2 = 0);
  CHECK_TILE((std::vector<int>{0, 63, 65}), .matrix = {.k = 384, .n = 64}, .rows = 64, .warp = 64);
  CHECK_TILE((std::vector<int>{100, 129}), .matrix = {.k = 248, .n = 104, .group = -1, .unit = 256}, .rows = 128);
}

TEST_CASE("tile: infinities and NaNs give what fp64 gives, and sums beyond the type's largest value infinity") {
  constexpr auto kAsFp64 = EmulatedCase::Extremes::kAsFp64;
  CHECK_TILE(std::vector<int>{17},
             .matrix = {.k = 256, .n = 64, .scale_divisor = 1, .x_size = 15000, .extremes = kAsFp64});
  if (skipped_on_threads()) return;
  CHECK_TILE(std::vector<int>{5}, .matrix = {.k = 136, .n = 72, .bf16 = true, .bias = true, .extremes = kAsFp64},
             .half2 = 0);
}

TEST_CASE("tile: every unit, act-order inside and before, bf16") {
  if (skipped_on_threads()) return;
  CHECK_TILE(kRows, .matrix = {.k = 256, .n = 64, .group = 16, .unit = 16});
  CHECK_TILE(kRows, .matrix = {.k = 256, .n = 64, .group = 32, .unit = 32, .bf16 = true}, .half2 = 0);
  CHECK_TILE(kRows, .matrix = {.k = 256, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted});
  CHECK_TILE(kRows, .matrix = {.k = 240, .n = 64, .group = 24, .unit = 32, .fused = false}, .half2 = 0, .rows = 64);
}

TEST_CASE("tile: a default for every m, as large as the device is small") {
  const Problem p{.k = 4096, .n = 4096, .x_k = 4096};
  const Limits amd{.arch = 0, .units = 60, .shared_bytes = 65536},
      nvidia{.arch = 90, .units = 132, .shared_bytes = 232448};
  CHECK(choose::tile_default(p, 16, amd).rows == 32);
  CHECK(choose::tile_default(p, 256, amd).rows == 128);
  CHECK(choose::tile_default(p, 256, {.arch = 0, .units = 304, .shared_bytes = 65536}).rows == 32);
  CHECK(valid(choose::tile_default(p, 4096, amd), amd));
  CHECK_FALSE(valid(choose::tile_default(p, 4096, nvidia), nvidia));  // they have kernels of their own
}

TEST_CASE("tile: scales and zeros apart") {
  CHECK_TILE(std::vector<int>{33}, .matrix = {.k = 256, .n = 128, .apart = true});
  if (kThreads) return;
  CHECK_TILE(kRows, .matrix = {.k = 256, .n = 64, .group = 16, .unit = 16, .apart = true}, .half2 = 0);
  CHECK_TILE(kRows, .matrix = {.k = 512, .n = 192, .group = 256, .unit = 256, .bf16 = true, .apart = true}, .half2 = 0);
}

TEST_CASE("tile: activations of gates and ups, and residuals") {
  using enum Activation;
  CHECK_TILE((std::vector<int>{33, 2}),
             .matrix = {.k = 256, .n = 80, .bias = true, .activation = kSiluMul, .residual = true});
  if (skipped_on_threads()) return;
  CHECK_TILE((std::vector<int>{33, 64}), .matrix = {.k = 136, .n = 72, .bf16 = true, .bias = true, .residual = true},
             .half2 = 0, .rows = 64, .warp = 64);
  CHECK_TILE(std::vector<int>{33}, .matrix = {.k = 136, .n = 96, .activation = kGeluMul}, .warp = 64);
}

TEST_CASE("tile: adapters") {
  CHECK_TILE((std::vector<int>{33, 2}), .matrix = {.k = 136, .n = 72, .bias = true, .lora = true});
}

}  // namespace
}  // namespace q4::test
