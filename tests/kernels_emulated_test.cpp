// The portable kernels, run on the host: gemv, remap and reconstruct over tails, tiles, units, act-order and both
// types.
#include <array>

#include "kernel_runner.hpp"
#include "kernels/gemv.h"
#include "kernels/reconstruct.h"
#include "on_threads.hpp"
#include "runtime/choose/defaults/remap.hpp"

namespace q4::test {
namespace {

using emulation::emulate;

/// A kernel's tunables beside the case, as one template argument.
struct GemvTest {
  EmulatedCase matrix;
  int half2 = 1, rows = 1, tiles = 2, warps = 4;
  int warp = 32;
  constexpr GemvConfig config() const {
    return {.p = matrix.problem(), .half2 = half2, .rows = rows, .tiles = tiles, .warps = warps};
  }
};

template <GemvTest T>
void check_gemv(const std::string& name) {
  constexpr GemvConfig C = T.config();
  static_assert(valid(C, Limits{}));
  CAPTURE(name);
  // None, one, the tile and its neighbours, two tiles and one. Threads are slow: two m are enough for them.
  const std::vector<int> rows = kThreads ? std::vector<int>{T.rows, T.rows + 1}
                                         : std::vector<int>{0, 1, 2, T.rows - 1, T.rows, T.rows + 1, 2 * T.rows + 1};
  const double error = largest_error(T.matrix, rows, 0, [&](const MatmulArgs& args) {
    emulate({.grid = grid(C, args.m), .threads = threads(C), .shared_bytes = shared_bytes(C), .warp = T.warp},
            [&] { gemv<C>(args); });
  });
  // What adapters add is rounded before B too, and an activation of gate and up sees that twice.
  const double times = T.matrix.lora && multiplies(T.matrix.activation) ? 1.5 : 1;
  CHECK(error <= times * tolerance(T.matrix.bf16 ? DType::kBF16 : DType::kF16));
}
#define CHECK_GEMV(...) check_gemv<GemvTest{__VA_ARGS__}>(#__VA_ARGS__)

TEST_CASE("gemv: tiles and warps, half2 and fp32") {
  CHECK_GEMV(.matrix = {.k = 384, .n = 64}, .half2 = 1, .rows = 1, .tiles = 1, .warps = 4);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 384, .n = 64}, .half2 = 1, .rows = 2, .tiles = 4, .warps = 8);
  CHECK_GEMV(.matrix = {.k = 1024, .n = 128}, .half2 = 1, .rows = 4, .tiles = 2, .warps = 16);
  CHECK_GEMV(.matrix = {.k = 384, .n = 64}, .half2 = 0, .rows = 1, .tiles = 2, .warps = 8);
  CHECK_GEMV(.matrix = {.k = 384, .n = 64}, .half2 = 0, .rows = 4, .tiles = 4, .warps = 4);
  CHECK_GEMV(.matrix = {.k = 128, .n = 64}, .half2 = 0, .rows = 8, .tiles = 1, .warps = 4);
}

TEST_CASE("gemv: tails of k and n") {
  CHECK_GEMV(.matrix = {.k = 8, .n = 8, .group = 8, .unit = 16}, .rows = 1);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 136, .n = 72, .group = 128}, .rows = 2);
  CHECK_GEMV(.matrix = {.k = 248, .n = 104, .group = -1, .unit = 256, .bias = true}, .half2 = 0, .rows = 4);
  CHECK_GEMV(.matrix = {.k = 1000, .n = 8, .group = -1, .unit = 1024}, .rows = 2, .tiles = 1, .warps = 8);
  CHECK_GEMV(.matrix = {.k = 328, .n = 200, .group = 64, .unit = 64}, .rows = 4, .tiles = 4);
}

TEST_CASE("gemv: every unit, groups that are no unit") {
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 16, .unit = 16});
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 32, .unit = 32}, .half2 = 0, .rows = 2);
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 64, .unit = 64, .zeros = ZeroFormat::kV2}, .rows = 2);
  CHECK_GEMV(.matrix = {.k = 768, .n = 64, .group = 256, .unit = 256}, .rows = 2);
  CHECK_GEMV(.matrix = {.k = 512, .n = 64, .group = 256, .unit = 128});
  CHECK_GEMV(.matrix = {.k = 240, .n = 64, .group = 24, .unit = 32}, .half2 = 0);  // 24 rows padded to 32
  CHECK_GEMV(.matrix = {.k = 200, .n = 64, .group = 40, .unit = 16}, .rows = 2);   // 40 to 48, and k / group odd
  CHECK_GEMV(.matrix = {.k = 72, .n = 64, .group = 8, .unit = 16, .fused = false}, .rows = 2);
}

TEST_CASE("gemv: act-order, gathered inside and before") {
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted}, .rows = 2);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 256, .n = 72, .group = 128, .unit = 128, .act_order = ActOrder::kPermuted, .fused = false},
             .rows = 4);
  CHECK_GEMV(.matrix = {.k = 264, .n = 64, .group = 128, .unit = 128, .act_order = ActOrder::kPermuted, .bf16 = true},
             .half2 = 0, .rows = 2);
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 32, .unit = 32, .act_order = ActOrder::kUneven, .spare_rows = 256},
             .rows = 2);
  CHECK_GEMV(.matrix = {.k = 256,
                        .n = 64,
                        .group = 32,
                        .unit = 16,
                        .act_order = ActOrder::kUneven,
                        .fused = false,
                        .spare_rows = 128},
             .half2 = 0);
}

TEST_CASE("gemv: bf16, bias, 64-wide waves") {
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .bf16 = true, .bias = true}, .half2 = 0, .rows = 2, .warp = 64);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 256, .n = 40, .bias = true}, .half2 = 1, .rows = 4, .warp = 64);
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .bf16 = true}, .half2 = 0, .rows = 8, .tiles = 1);
}

TEST_CASE("gemv: large values do not overflow inside") {
  // Products reach 15 * 6e4, far beyond fp16; the sums, times small scales, do not.
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .scale_divisor = 1000, .x_size = 15000}, .half2 = 1, .rows = 2);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .scale_divisor = 1000, .x_size = 15000}, .half2 = 0, .rows = 1);
}

TEST_CASE("gemv: infinities and NaNs give what fp64 gives, and sums beyond the type's largest value infinity") {
  constexpr auto kAsFp64 = EmulatedCase::Extremes::kAsFp64;
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .scale_divisor = 1, .x_size = 15000, .extremes = kAsFp64}, .rows = 2);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 248, .n = 40, .bias = true, .extremes = kAsFp64}, .half2 = 0, .rows = 4);
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .bf16 = true, .extremes = kAsFp64}, .half2 = 0, .rows = 2);
}

TEST_CASE("gemv: a row's bits do not depend on m or on its place") {
  constexpr GemvTest kOne{{.k = 384, .n = 64}, 1, 1}, kFour{{.k = 384, .n = 64}, 1, 4};
  std::array<std::vector<u16>, 2> bits;
  const auto run = [&]<GemvTest T>(std::vector<u16>& all) {
    constexpr GemvConfig C = T.config();
    largest_error(T.matrix, {5}, 0, [&](const MatmulArgs& args) {
      emulate({.grid = grid(C, args.m), .threads = threads(C), .shared_bytes = shared_bytes(C)},
              [&] { gemv<C>(args); });
      for (int r = 0; r < 5; ++r)
        all.insert(all.end(), args.out + r * args.out_stride, args.out + r * args.out_stride + 64);
    });
  };
  run.operator()<kOne>(bits[0]);
  run.operator()<kFour>(bits[1]);
  CHECK(bits[0] == bits[1]);
}

TEST_CASE("remap: any columns, strides, and places outside x") {
  constexpr RemapConfig C{.threads = 64};
  for (const int cols : {1, 63, 64, 200}) {
    std::vector<i32> map;
    Random random(9);
    for (int c = 0; c < cols; ++c) map.push_back(static_cast<i32>(random.below(102)) - 1);  // -1 and 100 are outside
    const HostRows x = random_rows(DType::kF16, 5, 100, 1, 103);
    HostRows x_new(DType::kF16, 5, cols, cols + 3);
    const RemapArgs args{
        static_cast<const u16*>(x.data()), static_cast<u16*>(x_new.data()), map.data(), 103, cols + 3, 5, cols, 100, 1};
    emulate({.grid = 7, .threads = C.threads}, [&] { remap<C>(args); });
    for (int r = 0; r < 5; ++r)
      for (int c = 0; c < cols; ++c) {
        const double expected = map[c] >= 0 && map[c] < 100 ? x.at(r, map[c]) : 0;
        REQUIRE(x_new.at(r, c) == expected);
      }
    CHECK(x_new.padding_intact());
  }
}

TEST_CASE("remap staged in shared memory: pieces of rows, rows together, no map, and places outside x") {
  constexpr RemapConfig C{.threads = 64, .staged = 1};
  CHECK(choose::remap_pieces(1, 4096, 132) == 8);
  CHECK(choose::remap_pieces(132, 4096, 132) == 1);
  CHECK(choose::remap_together(263, 4096, 132, 232448) == 1);
  CHECK(choose::remap_together(527, 4096, 132, 232448) == 2);
  CHECK(choose::remap_together(528, 4096, 132, 232448) == 4);
  CHECK(choose::remap_together(4096, 28672, 132, 232448) == 2);
  CHECK(choose::remap_together(4096, 29568, 132, 232448) == 1);
  for (const auto& [pieces, together] : {std::pair{1, 1}, {3, 1}, {8, 1}, {1, 2}, {2, 4}, {1, 0}}) {  // 0: no map
    CAPTURE(together);
    constexpr int cols = 1208, x_cols = 1000;
    std::vector<i32> map;
    Random random(5);
    for (int c = 0; c < cols; ++c) map.push_back(together ? static_cast<i32>(random.below(x_cols + 2)) - 1 : c);
    const HostRows x = random_rows(DType::kF16, 3, x_cols, 2, x_cols + 8);
    HostRows x_new(DType::kF16, 3, cols, cols + 16);
    const RemapArgs args{static_cast<const u16*>(x.data()),
                         static_cast<u16*>(x_new.data()),
                         together ? map.data() : nullptr,
                         x_cols + 8,
                         cols + 16,
                         3,
                         cols,
                         x_cols,
                         pieces,
                         std::max(1, together)};
    const int shared_bytes = static_cast<int>(choose::remap_shared_bytes(x_cols, together));
    emulate({.grid = 2, .threads = C.threads, .shared_bytes = shared_bytes}, [&] { remap<C>(args); });
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < cols; ++c) REQUIRE(x_new.at(r, c) == (map[c] >= 0 && map[c] < x_cols ? x.at(r, map[c]) : 0));
    CHECK(x_new.padding_intact());
  }
}

template <EmulatedCase T>
void check_reconstruct(int first_strip, int columns) {
  constexpr ReconstructConfig C{.p = T.problem()};
  const PlainMatrix plain = unpack(
      make_gptq({.k = T.k, .n = T.n, .group_size = T.group, .act_order = T.act_order, .zeros = T.zeros}).tensors());
  const PackedMatrix packed = pack_reference(plain, T.unit, T.packed_k());
  const ApartMeta pieces = apart(packed);
  const DeviceBytes codes(packed.codes), meta(T.apart ? pieces.scales : packed.meta), zeros(pieces.zeros);
  HostRows w(T.bf16 ? DType::kBF16 : DType::kF16, T.k, columns, columns + 8);
  const ReconstructArgs args{codes.data(),
                             meta.data(),
                             packed.x_map.data(),
                             static_cast<u16*>(w.data()),
                             columns + 8,
                             first_strip,
                             columns,
                             T.apart ? zeros.data() : nullptr};
  emulate({.grid = grid(C, columns), .threads = threads(C), .shared_bytes = shared_bytes(C)},
          [&] { reconstruct<C>(args); });
  HostRows expected(w.dtype(), 1, 1);
  for (int r = 0; r < T.k; ++r)
    for (int c = 0; c < columns; ++c) {
      // scale * (q - zero) is exact in fp32, so there is one rounding
      expected.set(0, 0, plain.weight(r, first_strip * kStripColumns + c));
      REQUIRE(w.at(r, c) == expected.at(0, 0));
    }
  CHECK(w.padding_intact());
}

TEST_CASE("reconstruct: the matrix itself, rounded once") {
  check_reconstruct<EmulatedCase{.k = 136, .n = 72}>(0, 72);
  if (skipped_on_threads()) return;
  check_reconstruct<EmulatedCase{.k = 256, .n = 200, .group = 64, .unit = 64}>(1, 136);
  check_reconstruct<EmulatedCase{.k = 256, .n = 200, .group = 64, .unit = 64}>(1, 64);
  check_reconstruct<EmulatedCase{.k = 240, .n = 64, .group = 24, .unit = 16, .bf16 = true}>(0, 64);
  check_reconstruct<EmulatedCase{.k = 256, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted}>(0, 64);
  check_reconstruct<EmulatedCase{
      .k = 256, .n = 40, .group = 32, .unit = 32, .act_order = ActOrder::kUneven, .spare_rows = 256}>(0, 40);
  check_reconstruct<EmulatedCase{.k = 256, .n = 192, .group = 64, .unit = 64, .apart = true}>(1, 128);
}

TEST_CASE("gemv: scales and zeros apart") {
  CHECK_GEMV(.matrix = {.k = 256, .n = 128, .group = 64, .unit = 64, .apart = true}, .rows = 2);
  if (kThreads) return;
  CHECK_GEMV(.matrix = {.k = 768, .n = 192, .group = 256, .unit = 256, .bf16 = true, .bias = true, .apart = true},
             .half2 = 0, .rows = 2, .tiles = 4);
  CHECK_GEMV(.matrix = {.k = 256, .n = 64, .group = 16, .unit = 16, .act_order = ActOrder::kPermuted, .apart = true});
}

TEST_CASE("gemv: activations of gates and ups, and residuals") {
  using enum Activation;
  CHECK_GEMV(.matrix = {.k = 256, .n = 80, .bias = true, .activation = kSiluMul, .residual = true}, .rows = 2);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 136, .n = 72, .bf16 = true, .bias = true, .residual = true}, .half2 = 0, .rows = 4);
  CHECK_GEMV(.matrix = {.k = 256, .n = 96, .activation = kGeluMul}, .rows = 4, .tiles = 4);
  CHECK_GEMV(.matrix = {.k = 256, .n = 96, .activation = kGeluTanhMul}, .half2 = 0, .tiles = 1);
  CHECK_GEMV(.matrix = {.k = 256, .n = 96, .activation = kRelu2Mul}, .half2 = 0);  // a cube of half2's errors
  CHECK_GEMV(.matrix = {.k = 256, .n = 72, .activation = kSilu});
}

TEST_CASE("gemv: adapters") {
  CHECK_GEMV(.matrix = {.k = 264, .n = 72, .bias = true, .lora = true}, .rows = 2);
  if (skipped_on_threads()) return;
  CHECK_GEMV(.matrix = {.k = 256, .n = 80, .activation = Activation::kSiluMul, .lora = true}, .half2 = 0);
  CHECK_GEMV(.matrix = {.k = 256, .n = 80, .bf16 = true, .lora = true}, .half2 = 0);
}

}  // namespace
}  // namespace q4::test
