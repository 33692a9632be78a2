// The prefill kernel, run on the host with modelled wgmma, tensor copies,
// mbarriers and clusters.
#include "kernels/prefill.h"

#include "kernel_runner.hpp"
#include "on_threads.hpp"
#include "runtime/choose/defaults/prefill.hpp"
#include "tests/emulation/tensor_map.hpp"

namespace q4::test {
namespace {

constexpr Limits kHopper{.arch = 90, .units = 6, .shared_bytes = 232448};

/// A kernel's tunables beside the case, as one template argument.
struct PrefillTest {
  EmulatedCase matrix;
  int rows = 64, strips = 1, teams = 1, split = 1, share = 1, cut = 0, fold = 0;
  int shrinking = 2;  ///< clusters that shrink, with matrix.within
  constexpr PrefillConfig config() const {
    return {.p = matrix.problem(),
            .rows = rows,
            .strips = strips,
            .teams = teams,
            .split = split,
            .share = share,
            .cut = cut,
            .fold = fold};
  }
};

template <PrefillTest T>
void check_prefill(const std::string& name, std::vector<int> m) {
  constexpr PrefillConfig C = T.config();
  static_assert(valid(C, kHopper) && (!T.matrix.within || lora_fits(C)));
  CAPTURE(name);
  std::size_t workspace = 0;
  for (const int rows : m) workspace = std::max(workspace, static_cast<std::size_t>(workspace_bytes(C, rows, kHopper)));
  const double error = largest_error(T.matrix, m, workspace, [](MatmulArgs args) {
    constexpr PrefillConfig C = T.config();
    if (T.matrix.within && args.m % 2) args.lora.maker = kLoraFirst;
    args.lora.blocks = T.matrix.within ? T.shrinking * cluster(C) : 0;
    const TensorMap x_map =
        emulation::map_of({const_cast<u16*>(args.x), args.m, C.p.x_k, args.x_stride, x_box_rows(C, args.m)});
    const TensorMap out_map = emulation::map_of(
        {args.out, args.m, out_columns(C.p, C.p.n), args.out_stride, C.rows, out_columns(C.p, kStripColumns)});
    emulation::emulate({.grid = grid(C, args.m, kHopper) + args.lora.blocks,
                        .threads = threads(C),
                        .shared_bytes = shared_bytes(C),
                        .cluster = cluster(C)},
                       [&] { prefill<C>(args, &x_map, &out_map); });
  });
  CHECK(error <= tolerance(T.matrix.bf16 ? DType::kBF16 : DType::kF16));
}
#define CHECK_PREFILL(m, ...) check_prefill<PrefillTest{__VA_ARGS__}>(#__VA_ARGS__, m)
using M = std::vector<int>;

TEST_CASE("prefill: by default clusters of three and more fit on the device at once") {
  constexpr Limits kH200{.arch = 90, .units = 132, .shared_bytes = 232448};
  constexpr int kResident[] = {0, 132, 66, 39, 30, 22, 17};  // cuOccupancyMaxActiveClusters
  int wide = 0;
  for (const int k : {2048, 4096, 13824})
    for (int n = 512; n <= 12288; n += 256)
      for (const int m : {16, 32, 64, 128, 256}) {
        const PrefillConfig c = choose::prefill_default({.k = k, .n = n, .x_k = k}, m, kH200);
        if (c.split <= 2) continue;
        CAPTURE(k);
        CAPTURE(n);
        CAPTURE(m);
        ++wide;
        CHECK(tiles(c, m) <= kResident[c.split]);
      }
  CHECK(wide > 0);
  CHECK(choose::prefill_default({.k = 13824, .n = 5120, .x_k = 13824}, 16, kH200).split == 4);
}

TEST_CASE("prefill: infinities and NaNs give what fp64 gives, and sums beyond the type's largest value infinity") {
  constexpr auto kAsFp64 = EmulatedCase::Extremes::kAsFp64;
  CHECK_PREFILL(M({17}), .matrix = {.k = 256, .n = 64, .scale_divisor = 1, .x_size = 15000, .extremes = kAsFp64},
                .rows = 16);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({9}), .matrix = {.k = 512, .n = 64, .extremes = kAsFp64}, .rows = 16, .split = 2, .fold = 1);
  CHECK_PREFILL(M({9}), .matrix = {.k = 248, .n = 72, .bf16 = true, .bias = true, .extremes = kAsFp64}, .rows = 16);
}

TEST_CASE("prefill: rows and strips") {
  CHECK_PREFILL(M({1, 16, 17}), .matrix = {.k = 256, .n = 64}, .rows = 16);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({33}), .matrix = {.k = 256, .n = 192}, .rows = 32, .strips = 2);
  CHECK_PREFILL(M({63, 65}), .matrix = {.k = 384, .n = 128}, .rows = 64, .strips = 2);
  CHECK_PREFILL(M({130}), .matrix = {.k = 256, .n = 128}, .rows = 128, .strips = 2);
  // More slabs than stages: the rings go round, with one team and with two.
  CHECK_PREFILL(M({64}), .matrix = {.k = 1280, .n = 64}, .rows = 64);
  CHECK_PREFILL(M({16}), .matrix = {.k = 3328, .n = 64}, .rows = 16, .teams = 2, .fold = 1);
  CHECK_PREFILL(M({128}), .matrix = {.k = 1408, .n = 64}, .rows = 128, .teams = 2);
  CHECK_PREFILL(M({200}), .matrix = {.k = 128, .n = 128}, .rows = 256, .strips = 2);
}

TEST_CASE("prefill: tails, units, bias, types") {
  CHECK_PREFILL(M({20}), .matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bias = true}, .rows = 32);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({20}), .matrix = {.k = 256, .n = 40, .group = 32, .unit = 32, .bf16 = true, .bias = true},
                .rows = 32);
  CHECK_PREFILL(M({20}), .matrix = {.k = 1000, .n = 64, .group = -1, .unit = 1024, .bf16 = true}, .rows = 16);
  CHECK_PREFILL(M({70}), .matrix = {.k = 256, .n = 64, .group = 64, .unit = 64, .zeros = ZeroFormat::kV2}, .rows = 64);
  CHECK_PREFILL(M({20}), .matrix = {.k = 256, .n = 64, .act_order = ActOrder::kPermuted, .fused = false}, .rows = 32);
}

TEST_CASE("prefill: parts of k are summed") {
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 512, .n = 64}, .rows = 16, .teams = 2);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 768, .n = 72, .bias = true}, .rows = 16, .split = 2);
  CHECK_PREFILL(M({64}), .matrix = {.k = 1024, .n = 64}, .rows = 64, .teams = 2, .split = 2);
  CHECK_PREFILL(M({128}), .matrix = {.k = 512, .n = 64, .bf16 = true}, .rows = 128, .split = 2);
  // More parts than slices of the sums, and blocks that only send.
  CHECK_PREFILL(M({9, 40}), .matrix = {.k = 904, .n = 120, .bias = true}, .rows = 16, .strips = 2, .split = 3);
  CHECK_PREFILL(M({40}), .matrix = {.k = 768, .n = 64, .bf16 = true}, .rows = 32, .teams = 2, .split = 3);
  CHECK_PREFILL(M({64}), .matrix = {.k = 512, .n = 64}, .rows = 64, .split = 4);
  CHECK_PREFILL(M({128}), .matrix = {.k = 512, .n = 64}, .rows = 128, .split = 3);
  CHECK_PREFILL(M({16}), .matrix = {.k = 768, .n = 64}, .rows = 16, .split = 6, .fold = 1);
  CHECK_PREFILL(M({16}), .matrix = {.k = 768, .n = 64}, .rows = 16, .split = 5, .fold = 1);
  CHECK_PREFILL(M({150}), .matrix = {.k = 512, .n = 192}, .rows = 64, .cut = 1);
  CHECK_PREFILL(M({150}), .matrix = {.k = 512, .n = 192}, .rows = 64, .cut = 2);
}

TEST_CASE("prefill: x shared by multicast, scales folded into the sums") {
  CHECK_PREFILL(M({40}), .matrix = {.k = 256, .n = 128}, .rows = 64, .share = 2);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({16, 20}), .matrix = {.k = 512, .n = 64}, .rows = 16, .fold = 1);
  CHECK_PREFILL(M({20}), .matrix = {.k = 512, .n = 64, .group = 256, .unit = 256, .bf16 = true}, .rows = 32, .teams = 2,
                .fold = 1);
  CHECK_PREFILL(M({20}), .matrix = {.k = 512, .n = 64, .group = 64, .unit = 64}, .rows = 32, .teams = 2, .fold = 1);
  CHECK_PREFILL(M({9}), .matrix = {.k = 392, .n = 72, .group = 32, .unit = 32, .bf16 = true, .bias = true}, .rows = 16,
                .strips = 2, .split = 2, .fold = 1);
}

TEST_CASE("prefill: scales and zeros apart") {
  CHECK_PREFILL(M({17}), .matrix = {.k = 256, .n = 192, .apart = true}, .rows = 16, .strips = 2);
  if (kThreads) return;
  CHECK_PREFILL(M({20}), .matrix = {.k = 512, .n = 64, .group = 256, .unit = 256, .bf16 = true, .apart = true},
                .rows = 32, .teams = 2, .fold = 1);
  CHECK_PREFILL(M({20}), .matrix = {.k = 256, .n = 128, .group = 16, .unit = 16, .bias = true, .apart = true},
                .rows = 32);
  CHECK_PREFILL(M({40}), .matrix = {.k = 512, .n = 192, .group = 32, .unit = 32, .apart = true}, .rows = 64,
                .strips = 2, .split = 2);
  CHECK_PREFILL(M({150}), .matrix = {.k = 512, .n = 192, .group = 64, .unit = 64, .apart = true}, .rows = 64, .cut = 1);
}

TEST_CASE("prefill: activations of gates and ups, and residuals") {
  using enum Activation;
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 256, .n = 80, .bias = true, .activation = kSiluMul, .residual = true},
                .rows = 16, .split = 2);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({16, 33}), .matrix = {.k = 256, .n = 208, .activation = kSiluMul}, .rows = 16, .strips = 2);
  CHECK_PREFILL(M({70, 63}), .matrix = {.k = 256, .n = 192, .bias = true, .residual = true}, .rows = 64, .strips = 2);
  CHECK_PREFILL(M({70, 63}), .matrix = {.k = 256, .n = 192, .bf16 = true, .activation = kGeluMul, .residual = true},
                .rows = 64, .strips = 2);
  CHECK_PREFILL(M({16, 9}), .matrix = {.k = 768, .n = 72, .residual = true}, .rows = 16, .teams = 2, .split = 2);
  CHECK_PREFILL(M({16, 9}), .matrix = {.k = 768, .n = 80, .activation = kRelu2Mul, .residual = true}, .rows = 16,
                .teams = 2, .split = 2);
  CHECK_PREFILL(M({40, 31}), .matrix = {.k = 768, .n = 80, .residual = true}, .rows = 32, .split = 2);
  CHECK_PREFILL(M({40, 31}), .matrix = {.k = 768, .n = 80, .activation = kGeluTanhMul}, .rows = 32, .split = 3);
  CHECK_PREFILL(M({128, 99}), .matrix = {.k = 512, .n = 72, .residual = true}, .rows = 128, .split = 2);
  CHECK_PREFILL(M({128, 99}), .matrix = {.k = 512, .n = 80, .activation = kSiluMul, .residual = true}, .rows = 128,
                .split = 2);
  CHECK_PREFILL(M({256, 201}), .matrix = {.k = 256, .n = 128, .activation = kSiluMul, .residual = true}, .rows = 256,
                .strips = 2);
  CHECK_PREFILL(M({16, 33}), .matrix = {.k = 256, .n = 80, .activation = kSiluMul, .residual = true}, .rows = 16);
  // Slices of two sums: one of the two columns that a thread has.
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 1024, .n = 40, .bias = true, .residual = true}, .rows = 16, .teams = 2,
                .split = 4);
  for (const int m : {150, 149})  // cut tiles, and whole ones after them
    CHECK_PREFILL(M({m}), .matrix = {.k = 512, .n = 192, .residual = true}, .rows = 64, .cut = 1);
  CHECK_PREFILL(M({150}), .matrix = {.k = 512, .n = 192, .activation = kSiluMul, .residual = true}, .rows = 64,
                .cut = 2);
  CHECK_PREFILL(M({40}), .matrix = {.k = 256, .n = 128, .activation = kRelu2, .residual = true}, .rows = 64,
                .share = 2);
}

TEST_CASE("prefill: adapters") {
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 264, .n = 72, .bias = true, .lora = true}, .rows = 16, .split = 2);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({68, 63}), .matrix = {.k = 256, .n = 192, .bf16 = true, .residual = true, .lora = true}, .rows = 64,
                .strips = 2);
  CHECK_PREFILL(M({40}), .matrix = {.k = 768, .n = 80, .activation = Activation::kSiluMul, .lora = true}, .rows = 32,
                .teams = 2, .split = 2);
  CHECK_PREFILL(M({150, 149}), .matrix = {.k = 512, .n = 192, .lora = true}, .rows = 64, .cut = 1);
  CHECK_PREFILL(M({201}), .matrix = {.k = 128, .n = 64, .lora = true}, .rows = 256);
  CHECK_PREFILL(M({9, 16}), .matrix = {.k = 264, .n = 72, .bias = true, .lora = true, .within = true}, .rows = 16,
                .split = 2);
  CHECK_PREFILL(M({150, 63}),
                .matrix = {.k = 256, .n = 192, .bf16 = true, .residual = true, .lora = true, .within = true},
                .rows = 64, .strips = 2);
  CHECK_PREFILL(M({40}),
                .matrix = {.k = 768, .n = 80, .activation = Activation::kSiluMul, .lora = true, .within = true},
                .rows = 32, .teams = 2, .split = 2);
  // Units of up to eight octets, of a list that blocks share (130: of two lists, a block each).
  CHECK_PREFILL(M({128, 130}), .matrix = {.k = 288, .n = 72, .lora = true, .within = true}, .rows = 128, .split = 2);
  CHECK_PREFILL(M({201}), .matrix = {.k = 128, .n = 64, .bf16 = true, .lora = true, .within = true}, .rows = 256);
  // Three clusters share an item; five items over three clusters; more clusters than parts of two items.
  CHECK_PREFILL(M({61}), .matrix = {.k = 512, .n = 72, .lora = true, .within = true}, .rows = 64, .split = 2,
                .shrinking = 3);
  CHECK_PREFILL(M({300, 96}), .matrix = {.k = 256, .n = 72, .bf16 = true, .lora = true, .within = true}, .rows = 64,
                .shrinking = 3);
  CHECK_PREFILL(M({30}), .matrix = {.k = 512, .n = 80, .lora = true, .within = true}, .rows = 16, .split = 2,
                .shrinking = 5);
  // Items without adapters before items with them; several spans of k, the last one short.
  CHECK_PREFILL(M({203}), .matrix = {.k = 512, .n = 72, .lora = true, .within = true}, .rows = 64, .split = 2,
                .shrinking = 1);
  CHECK_PREFILL(M({20, 27}), .matrix = {.k = 1288, .n = 72, .lora = true, .within = true}, .rows = 32, .shrinking = 1);
  // Several tiles a block, so that the next one's words come before this one's are used.
  CHECK_PREFILL(M({500}), .matrix = {.k = 128, .n = 256, .lora = true, .within = true}, .rows = 64, .share = 2);
}

TEST_CASE("prefill: adapters, spread for wgmma where the rows of a tile differ") {
  CHECK_PREFILL(M({200}), .matrix = {.k = 264, .n = 72, .bf16 = true, .lora = true, .within = true}, .rows = 128,
                .strips = 2);
  if (skipped_on_threads()) return;
  CHECK_PREFILL(M({301}), .matrix = {.k = 128, .n = 144, .activation = Activation::kSiluMul, .lora = true}, .rows = 256,
                .strips = 2, .share = 2);
  CHECK_PREFILL(M({388}), .matrix = {.k = 128, .n = 192, .bias = true, .lora = true}, .rows = 128, .strips = 2);
  // Parts of k: each has chunks of its own, and spreads where the last x was.
  CHECK_PREFILL(M({98, 128}), .matrix = {.k = 1152, .n = 72, .residual = true, .lora = true}, .rows = 128, .teams = 2,
                .split = 2);
  CHECK_PREFILL(M({74}), .matrix = {.k = 640, .n = 136, .bf16 = true, .lora = true, .within = true}, .rows = 128,
                .strips = 2, .split = 2);
  CHECK_PREFILL(M({206}), .matrix = {.k = 1024, .n = 128, .lora = true}, .rows = 256, .strips = 2, .split = 2);
}

}  // namespace
}  // namespace q4::test
