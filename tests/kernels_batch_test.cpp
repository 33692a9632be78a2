// The batch kernel, run on the host with modelled mma, ldmatrix and cp.async.
#include "kernels/batch.h"

#include "kernel_runner.hpp"
#include "on_threads.hpp"

namespace q4::test {
namespace {

constexpr Limits kSmallest{.arch = 86, .units = 6, .shared_bytes = 101376};  // sm_86 and sm_89

/// A kernel's tunables beside the case, as one template argument.
struct BatchTest {
  EmulatedCase matrix;
  int rows = 16, strips = 2, teams = 1, stages = 3, split = 1;
  constexpr BatchConfig config() const {
    return {.p = matrix.problem(), .rows = rows, .strips = strips, .teams = teams, .stages = stages, .split = split};
  }
};

template <BatchTest T>
void check_batch(const std::string& name, std::vector<int> m) {
  constexpr BatchConfig C = T.config();
  static_assert(valid(C, kSmallest));
  CAPTURE(name);
  std::size_t workspace = 0;
  for (const int rows : m) workspace = std::max(workspace, static_cast<std::size_t>(workspace_bytes(C, rows)));
  const double error = largest_error(T.matrix, m, workspace, [](const MatmulArgs& args) {
    constexpr BatchConfig C = T.config();
    emulation::emulate({.grid = grid(C, args.m), .threads = threads(C), .shared_bytes = shared_bytes(C)},
                       [&] { batch<C>(args); });
  });
  CHECK(error <= tolerance(T.matrix.bf16 ? DType::kBF16 : DType::kF16));
}
#define CHECK_BATCH(m, ...) check_batch<BatchTest{__VA_ARGS__}>(#__VA_ARGS__, m)
using M = std::vector<int>;

TEST_CASE("batch: infinities and NaNs give what fp64 gives, and sums beyond the type's largest value infinity") {
  constexpr auto kAsFp64 = EmulatedCase::Extremes::kAsFp64;
  CHECK_BATCH(M({17}), .matrix = {.k = 256, .n = 64, .scale_divisor = 1, .x_size = 15000, .extremes = kAsFp64});
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({5}), .matrix = {.k = 248, .n = 72, .bf16 = true, .bias = true, .extremes = kAsFp64});
}

TEST_CASE("batch: rows and strips") {
  CHECK_BATCH(M({1, 16, 17}), .matrix = {.k = 256, .n = 64});
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({33}), .matrix = {.k = 256, .n = 192}, .rows = 32);
  CHECK_BATCH(M({63, 65}), .matrix = {.k = 384, .n = 128}, .rows = 64, .stages = 2);
  CHECK_BATCH(M({129}), .matrix = {.k = 256, .n = 64}, .rows = 128, .strips = 1, .stages = 4);
  CHECK_BATCH(M({250}), .matrix = {.k = 128, .n = 64}, .rows = 256, .strips = 1, .stages = 2);
  CHECK_BATCH(M({1030}), .matrix = {.k = 128, .n = 128}, .rows = 64);  // two bands of rows
}

TEST_CASE("batch: tails, units, bias, types") {
  CHECK_BATCH(M({20}), .matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bias = true});
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({20}), .matrix = {.k = 256, .n = 40, .group = 32, .unit = 32, .bf16 = true, .bias = true});
  CHECK_BATCH(M({20}), .matrix = {.k = 1000, .n = 64, .group = -1, .unit = 1024, .bf16 = true});
  CHECK_BATCH(M({70}), .matrix = {.k = 256, .n = 264, .group = 64, .unit = 64, .zeros = ZeroFormat::kV2}, .rows = 64,
              .strips = 4);
  CHECK_BATCH(M({20}), .matrix = {.k = 768, .n = 64, .group = 256, .unit = 256}, .rows = 32);
  CHECK_BATCH(M({20}), .matrix = {.k = 256, .n = 64, .act_order = ActOrder::kPermuted, .fused = false}, .rows = 32);
}

TEST_CASE("batch: parts of k are summed") {
  CHECK_BATCH(M({9, 16}), .matrix = {.k = 512, .n = 64}, .strips = 1, .teams = 2);
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({9}), .matrix = {.k = 384, .n = 128, .bias = true}, .teams = 4);  // teams without a turn
  CHECK_BATCH(M({40}), .matrix = {.k = 520, .n = 72}, .split = 3);
  CHECK_BATCH(M({70, 30}), .matrix = {.k = 768, .n = 192, .bf16 = true}, .rows = 32, .strips = 2, .teams = 2,
              .split = 2);
}

TEST_CASE("batch: scales and zeros apart") {
  CHECK_BATCH(M({17}), .matrix = {.k = 256, .n = 192, .apart = true});
  if (kThreads) return;
  CHECK_BATCH(M({20}), .matrix = {.k = 256, .n = 128, .group = 16, .unit = 16, .bias = true, .apart = true});
  CHECK_BATCH(M({20}), .matrix = {.k = 512, .n = 64, .group = 32, .unit = 32, .bf16 = true, .apart = true}, .teams = 2);
  CHECK_BATCH(M({70}), .matrix = {.k = 768, .n = 128, .group = 256, .unit = 256, .apart = true}, .rows = 64,
              .split = 2);
}

TEST_CASE("batch: activations of gates and ups, and residuals") {
  using enum Activation;
  CHECK_BATCH(M({16, 17}), .matrix = {.k = 256, .n = 80, .bias = true, .activation = kSiluMul, .residual = true});
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({33, 70}), .matrix = {.k = 256, .n = 192, .bf16 = true, .activation = kGeluMul}, .rows = 32);
  CHECK_BATCH(M({33, 70}), .matrix = {.k = 256, .n = 200, .bias = true, .residual = true}, .rows = 64);
  CHECK_BATCH(M({40}), .matrix = {.k = 520, .n = 80, .activation = kRelu2Mul, .residual = true}, .split = 3);
  CHECK_BATCH(M({20}), .matrix = {.k = 256, .n = 64, .activation = kGeluTanh}, .strips = 1, .teams = 2);
}

TEST_CASE("batch: adapters") {
  CHECK_BATCH(M({16, 17}), .matrix = {.k = 264, .n = 72, .bias = true, .lora = true});
  if (skipped_on_threads()) return;
  CHECK_BATCH(M({70, 33}), .matrix = {.k = 520, .n = 200, .bf16 = true, .lora = true}, .rows = 32, .teams = 2,
              .split = 2);
}

}  // namespace
}  // namespace q4::test
