// The decode kernel, run on the host with modelled mma, cp.async, named barriers and clusters.
#include "kernels/decode.h"

#include "kernel_runner.hpp"
#include "on_threads.hpp"

namespace q4::test {
namespace {

/// A kernel's tunables beside the case, as one template argument.
struct DecodeTest {
  EmulatedCase matrix;
  int batch = 1, tiles = 2, side = 1, brick = 1, teams = 2, depth = 2, x_slots = 3, cluster = 1, early = 0, staged = 0,
      share = 0;
  constexpr DecodeConfig config() const {
    return {.p = matrix.problem(),
            .batch = batch,
            .tiles = tiles,
            .side = side,
            .brick = brick,
            .teams = teams,
            .depth = depth,
            .x_slots = x_slots,
            .cluster = cluster,
            .early = early,
            .staged = staged,
            .share = share};
  }
};

template <DecodeTest T>
void check_decode(const std::string& name) {
  constexpr DecodeConfig C = T.config();
  static_assert(valid(C, Limits{.arch = 90, .shared_bytes = 232448}));
  CAPTURE(name);
  const int most = C.staged > 0 ? C.staged : rows(C);
  std::vector<int> m = {1, 2, most - 1, most};
  if (kThreads || most < 2) m = {most};
  if (most == 2) m = {1, 2};
  const double error = largest_error(T.matrix, m, 0, [](const MatmulArgs& args) {
    emulation::emulate({.grid = grid(T.config(), args.m) + (T.matrix.within ? kLoraParts : 0),
                        .threads = threads(T.config()),
                        .shared_bytes = shared_bytes(T.config()),
                        .cluster = cluster(T.config())},
                       [&] { decode<T.config()>(args); });
  });
  CHECK(error <= tolerance(T.matrix.bf16 ? DType::kBF16 : DType::kF16));
}
#define CHECK_DECODE(...) check_decode<DecodeTest{__VA_ARGS__}>(#__VA_ARGS__)

TEST_CASE("decode: teams, sides, bricks, depths") {
  CHECK_DECODE(.matrix = {.k = 512, .n = 64}, .tiles = 2, .teams = 2);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 1024, .n = 64}, .tiles = 4, .side = 2, .brick = 2, .teams = 2, .depth = 1);
  CHECK_DECODE(.matrix = {.k = 1024, .n = 128}, .batch = 2, .tiles = 4, .side = 4, .teams = 4);
  CHECK_DECODE(.matrix = {.k = 640, .n = 48}, .tiles = 3, .teams = 4, .depth = 3);  // slabs that do not divide by teams
  CHECK_DECODE(.matrix = {.k = 128, .n = 64}, .tiles = 1, .teams = 2);              // a team with nothing to do
  CHECK_DECODE(.matrix = {.k = 1152, .n = 64}, .tiles = 1, .teams = 9, .depth = 1);  // parts of the sum without teams
  CHECK_DECODE(.matrix = {.k = 1152, .n = 64}, .tiles = 4, .brick = 4, .depth = 1, .early = 1);
  CHECK_DECODE(.matrix = {.k = 1152, .n = 96}, .tiles = 6, .brick = 2, .depth = 1);  // too many sums to sum x itself
  CHECK_DECODE(.matrix = {.k = 1024, .n = 128, .bf16 = true}, .batch = 2, .tiles = 4, .side = 2, .early = 1);
}

TEST_CASE("decode: tails, units, zeros, bias, types") {
  CHECK_DECODE(.matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bias = true});
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 8, .n = 8, .group = 8, .unit = 16});
  CHECK_DECODE(.matrix = {.k = 512, .n = 40, .group = 32, .unit = 32, .bf16 = true, .bias = true}, .batch = 2);
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .group = 64, .unit = 64, .zeros = ZeroFormat::kV2});
  CHECK_DECODE(.matrix = {.k = 1000, .n = 200, .group = -1, .unit = 1024, .bf16 = true}, .tiles = 4, .brick = 2);
  CHECK_DECODE(.matrix = {.k = 768, .n = 64, .group = 256, .unit = 256});
  CHECK_DECODE(.matrix = {.k = 768, .n = 64, .group = 16, .unit = 16}, .tiles = 4, .brick = 4, .depth = 1, .early = 1);
  CHECK_DECODE(.matrix = {.k = 768, .n = 128, .group = 32, .unit = 32}, .tiles = 8, .side = 2, .brick = 4, .early = 1);
}

TEST_CASE("decode: act-order, gathered inside and before") {
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .group = 128, .act_order = ActOrder::kPermuted}, .staged = 8);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 264, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted, .bf16 = true},
               .batch = 2, .staged = 16);
  CHECK_DECODE(
          .matrix = {.k = 256, .n = 64, .group = 32, .unit = 32, .act_order = ActOrder::kUneven, .spare_rows = 256},
          .staged = 4);
  CHECK_DECODE(.matrix = {.k = 240, .n = 64, .group = 24, .unit = 32, .fused = false});
  // More slabs than x_slots: gathered as the loop goes; several warps side by side, two blocks, one row.
  CHECK_DECODE(.matrix = {.k = 1664, .n = 128, .act_order = ActOrder::kPermuted}, .tiles = 4, .side = 2, .brick = 2,
               .x_slots = 3, .cluster = 2, .staged = 8);
  CHECK_DECODE(.matrix = {.k = 1664, .n = 64, .act_order = ActOrder::kPermuted}, .depth = 1, .staged = 2);
  CHECK_DECODE(.matrix = {.k = 256, .n = 64, .act_order = ActOrder::kPermuted}, .teams = 3,
               .staged = 1);  // an idle team
  CHECK_DECODE(.matrix = {.k = 1152, .n = 64, .act_order = ActOrder::kPermuted}, .teams = 9, .depth = 1, .staged = 1);
}

TEST_CASE("decode: clusters split k") {
  CHECK_DECODE(.matrix = {.k = 1024, .n = 64}, .tiles = 2, .teams = 2, .cluster = 2);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 1152, .n = 72, .bias = true}, .batch = 2, .tiles = 4, .teams = 2, .cluster = 4);
  // A block owns whole items of four columns.
  constexpr Limits kHopper{.arch = 90, .shared_bytes = 232448};
  CHECK(valid({.p = {.k = 4096, .n = 1024, .x_k = 4096}, .tiles = 6, .teams = 4, .cluster = 8}, kHopper));
  CHECK_FALSE(valid({.p = {.k = 4096, .n = 1024, .x_k = 4096}, .tiles = 5, .brick = 1, .cluster = 8}, kHopper));
  CHECK_FALSE(
      valid({.p = {.k = 4096, .n = 1024, .x_k = 4096, .gated = 1}, .tiles = 6, .teams = 4, .cluster = 8}, kHopper));
}

TEST_CASE("decode: all of x at once, by one block or two side by side") {
  CHECK_DECODE(.matrix = {.k = 1024, .n = 64}, .tiles = 2, .teams = 2, .share = 2);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 1024, .n = 64}, .tiles = 2, .teams = 2, .share = 1);
  CHECK_DECODE(.matrix = {.k = 1152, .n = 136, .bias = true}, .batch = 2, .tiles = 4, .side = 2, .teams = 2,
               .share = 2);
  CHECK_DECODE(.matrix = {.k = 640, .n = 48}, .tiles = 1, .teams = 4, .depth = 1,
               .share = 2);  // no block beside the last
  CHECK_DECODE(.matrix = {.k = 128, .n = 64, .bf16 = true}, .tiles = 1, .teams = 2, .share = 2);  // an idle team
  CHECK_DECODE(.matrix = {.k = 1152, .n = 96, .group = 32, .unit = 32}, .tiles = 6, .brick = 2, .depth = 1, .share = 2);
  CHECK_DECODE(.matrix = {.k = 512, .n = 96, .activation = Activation::kSiluMul, .residual = true}, .tiles = 2,
               .share = 2);
  CHECK_DECODE(.matrix = {.k = 1024, .n = 64}, .tiles = 1, .teams = 2, .depth = 4, .share = 4);
}

TEST_CASE("decode: an infinity in x gives infinity or NaN in its row, and nothing elsewhere") {
  constexpr auto kOrNan = EmulatedCase::Extremes::kInfinityOrNan;
  CHECK_DECODE(.matrix = {.k = 256, .n = 64, .scale_divisor = 1, .x_size = 15000, .extremes = kOrNan});
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 256, .n = 64, .bf16 = true, .extremes = kOrNan}, .batch = 2);
}

TEST_CASE("decode: large values do not overflow inside") {
  CHECK_DECODE(.matrix = {.k = 256, .n = 64, .scale_divisor = 1000, .x_size = 15000});
}

TEST_CASE("decode: scales and zeros apart") {
  CHECK_DECODE(.matrix = {.k = 512, .n = 128, .apart = true}, .tiles = 4, .brick = 2);
  if (kThreads) return;
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .group = 32, .unit = 32, .bf16 = true, .apart = true}, .batch = 2);
  CHECK_DECODE(.matrix = {.k = 768, .n = 128, .group = 16, .unit = 16, .apart = true}, .tiles = 8, .side = 2,
               .brick = 4, .depth = 1, .early = 1);
  CHECK_DECODE(.matrix = {.k = 1024, .n = 192, .group = 256, .unit = 256, .apart = true}, .tiles = 2, .cluster = 2);
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted, .apart = true},
               .staged = 8);
}

TEST_CASE("decode: activations of gates and ups, and residuals") {
  using enum Activation;
  CHECK_DECODE(.matrix = {.k = 512, .n = 48, .bias = true, .activation = kSiluMul, .residual = true}, .tiles = 3,
               .teams = 2, .cluster = 2);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 512, .n = 80, .bf16 = true, .activation = kGeluMul}, .batch = 2, .tiles = 4, .brick = 2);
  CHECK_DECODE(.matrix = {.k = 512, .n = 72, .bias = true, .residual = true}, .tiles = 4, .brick = 2);
  CHECK_DECODE(.matrix = {.k = 1024, .n = 72, .residual = true}, .batch = 2, .tiles = 4, .cluster = 2);
  // More of out than lanes at once.
  CHECK_DECODE(.matrix = {.k = 256, .n = 256, .activation = kGeluTanhMul, .residual = true}, .batch = 2, .tiles = 8,
               .side = 2, .teams = 1, .depth = 1);
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .activation = kRelu2Mul}, .teams = 4);
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .activation = kGelu, .residual = true}, .teams = 4);
}

TEST_CASE("decode: x is normalized first") {
  CHECK_DECODE(.matrix = {.k = 640, .n = 48, .norm = true}, .tiles = 3, .teams = 4, .depth = 2, .staged = 8);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 1024, .n = 128, .activation = Activation::kSiluMul, .norm = true}, .tiles = 8, .side = 2,
               .brick = 4, .teams = 3, .depth = 1, .early = 1, .staged = 4);
  CHECK_DECODE(.matrix = {.k = 1152, .n = 96, .residual = true, .norm = true}, .tiles = 6, .brick = 2, .depth = 1,
               .staged = 2);
  CHECK_DECODE(.matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bias = true, .norm = true}, .teams = 3,
               .staged = 1);
  CHECK_DECODE(.matrix = {.k = 512, .n = 40, .group = 32, .unit = 32, .bf16 = true, .bias = true, .norm = true},
               .batch = 2, .staged = 16);
  CHECK_DECODE(.matrix = {.k = 1024, .n = 128, .bf16 = true, .norm = true}, .batch = 2, .tiles = 4, .side = 4,
               .teams = 3, .staged = 16);
}

TEST_CASE("decode: adapters") {
  CHECK_DECODE(.matrix = {.k = 512, .n = 40, .bias = true, .lora = true}, .tiles = 4, .brick = 2, .cluster = 2);
  if (skipped_on_threads()) return;
  CHECK_DECODE(.matrix = {.k = 520, .n = 80, .bf16 = true, .activation = Activation::kSiluMul, .lora = true},
               .batch = 2, .tiles = 4, .side = 2);
  CHECK_DECODE(.matrix = {.k = 512, .n = 64, .act_order = ActOrder::kPermuted, .lora = true}, .staged = 8);
  CHECK_DECODE(.matrix = {.k = 512, .n = 40, .bias = true, .lora = true, .within = true}, .tiles = 4, .brick = 2,
               .cluster = 2);
  CHECK_DECODE(
          .matrix = {.k = 520, .n = 80, .bf16 = true, .activation = Activation::kSiluMul, .lora = true, .within = true},
          .batch = 2, .tiles = 4, .side = 2);
  CHECK_DECODE(.matrix = {.k = 1160, .n = 64, .act_order = ActOrder::kPermuted, .lora = true, .within = true},
               .staged = 8);
  CHECK_DECODE(.matrix = {.k = 2056, .n = 32, .lora = true, .within = true}, .teams = 5);
}

}  // namespace
}  // namespace q4::test
