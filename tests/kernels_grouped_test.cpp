// Mixtures of experts, run on the host: the grouped form of every kernel that has one against fp64, with experts that many,
// few or no rows choose.
#include <algorithm>

#include "kernel_runner.hpp"
#include "kernels/combine.h"
#include "kernels/decode.h"
#include "kernels/gemv.h"
#include "kernels/prefill.h"
#include "kernels/tile.h"
#include "router.hpp"
#include "tests/emulation/tensor_map.hpp"

namespace q4::test {
namespace {

const bool kThreads = emulation::default_engine() == emulation::Engine::kThreads;
constexpr Limits kHopper{.arch = 90, .units = 3, .shared_bytes = 232448};

// ---- grouped kernels ------------------------------------------------------------------------------------------------

/// A grouped problem: EmulatedCase's matrix for every expert, each with weights of its own.
struct GroupedTest {
  EmulatedCase matrix;
  bool gated = false, indirect = false, routed = false;
  constexpr Problem problem() const {
    Problem p = matrix.problem();
    p.x_k = matrix.gather() ? matrix.packed_k() : matrix.k;
    p.gather = 0;
    p.grouped = indirect ? kGroupedIndirect : kGroupedSorted;
    if (routed) p.grouped |= kGroupedRouted;
    if (gated) p.gated = 1, p.activation = kSilu;
    return p;
  }
};

/// Experts in one allocation, with some bytes between them.
struct Experts {
  std::vector<PlainMatrix> plain;  ///< columns as they are packed
  std::vector<u8> memory;          ///< of each: codes, meta, bias
  std::vector<i32> maps;
  i64 stride = 0, meta = 0, bias = 0;

  Experts(const GroupedTest& test, int count) {
    const EmulatedCase& m = test.matrix;
    const DType dtype = m.bf16 ? DType::kBF16 : DType::kF16;
    for (int e = 0; e < count; ++e) {
      const GptqMatrix gptq = make_gptq({.k = m.k,
                                         .n = m.n,
                                         .group_size = m.group,
                                         .act_order = m.act_order,
                                         .zeros = m.zeros,
                                         .bias = m.bias,
                                         .scale = 1.0 / m.scale_divisor,
                                         .seed = static_cast<std::uint64_t>(e) + 11});
      plain.push_back(unpack(gptq.tensors()));
      const PackedMatrix packed = pack_reference(plain.back(), m.unit, m.packed_k());
      meta = static_cast<i64>(packed.codes.size()), bias = meta + round_up(static_cast<int>(packed.meta.size()), 16);
      stride = bias + 2 * m.n + 240;
      stride -= stride % 16;
      memory.resize(static_cast<std::size_t>(stride * (e + 1)), 0xee);
      u8* here = memory.data() + stride * e;
      std::memcpy(here, packed.codes.data(), packed.codes.size());
      std::memcpy(here + meta, packed.meta.data(), packed.meta.size());
      for (std::size_t c = 0; c < plain.back().bias.size(); ++c) {
        double& b = plain.back().bias[c];
        const u16 bits = dtype == DType::kBF16 ? bf16_bits(b) : half_bits(b);
        b = dtype == DType::kBF16 ? bf16_value(bits) : half_value(bits);
        std::memcpy(here + bias + 2 * c, &bits, 2);
      }
      for (int p = 0; p < packed.k; ++p)
        maps.push_back(packed.x_map.empty() ? p : packed.x_map[static_cast<std::size_t>(p)]);
    }
  }
};

double silu(double v) { return v / (1 + std::exp(-v)); }

/// Launches a grouped kernel: `launch(args, row tiles at most)`.
template <class LaunchKernel>
void check_grouped(const GroupedTest& test, int tile_rows, const std::vector<int>& counts, const LaunchKernel& launch) {
  const EmulatedCase& m = test.matrix;
  const Experts experts(test, static_cast<int>(counts.size()));
  const DType dtype = m.bf16 ? DType::kBF16 : DType::kF16;
  const DeviceBytes memory(experts.memory);
  std::vector<i32> ids;  // each token has two slots
  for (std::size_t e = 0; e < counts.size(); ++e)
    ids.insert(ids.end(), static_cast<std::size_t>(counts[e]), static_cast<i32>(e));
  while (ids.size() % 2 || ids.empty()) ids.push_back(-1);
  Random random(ids.size());
  for (std::size_t i = ids.size(); i > 1; --i)
    std::swap(ids[i - 1], ids[static_cast<std::size_t>(random.below(static_cast<i64>(i)))]);
  const int slots = static_cast<int>(ids.size()), tokens = slots / 2, width = test.gated ? m.n / 2 : m.n;
  RouteArgs route_args{};
  route_args.ids = ids.data(), route_args.slots = slots, route_args.topk = 2;
  route_args.experts = static_cast<i32>(counts.size());
  const Routed routed = run_router<RouteConfig{64, 32}>(route_args, tile_rows, 0);

  const HostRows x = random_rows(dtype, tokens, m.k, 5, m.k + 8);
  const Problem p = test.problem();
  HostRows sorted(dtype, slots, p.x_k, round_up(p.x_k, 8) + 8), out(dtype, slots, width, width + 16);
  constexpr RemapConfig kRemap{.threads = 64, .staged = 1, .grouped = 1};
  RemapArgs remap_args{static_cast<const u16*>(x.data()),
                       static_cast<u16*>(sorted.data()),
                       nullptr,
                       x.row_stride(),
                       sorted.row_stride(),
                       m.gather() ? slots : tokens,
                       p.x_k,
                       m.k,
                       1,
                       1};
  remap_args.row_count = &routed.row_count, remap_args.x_rows = routed.x_rows.data();
  remap_args.places = routed.places.data(), remap_args.topk = 2;
  if (m.gather()) remap_args.x_map = experts.maps.data(), remap_args.row_experts = routed.row_experts.data();
  remap_args.map_stride = m.packed_k();
  if (m.gather()) remap_args.together = slots > 20 ? 4 : 2;
  emulation::emulate({.grid = 3, .threads = kRemap.threads, .shared_bytes = m.k * 8},
                     [&] { remap<kRemap>(remap_args); });

  RoutedArgs args{};
  args.codes = memory.data(), args.meta = args.codes + experts.meta, args.stride = experts.stride;
  args.bias = reinterpret_cast<const u16*>(args.codes + experts.bias);
  args.x = static_cast<const u16*>(test.indirect ? x.data() : sorted.data());
  args.x_stride = test.indirect ? x.row_stride() : sorted.row_stride();
  args.out = static_cast<u16*>(out.data()), args.out_stride = out.row_stride();
  args.m = slots;
  args.tile_count = &routed.tile_count[0], args.tiles = routed.tiles[0].data(), args.x_rows = routed.x_rows.data();
  std::vector<i32> places(routed.places.size(), -9);
  if (is_routed(p)) {  // it makes its own lists
    args.tile_count = nullptr, args.tiles = nullptr, args.x_rows = nullptr;
    args.route = route_args, args.route.places = places.data(), args.route.topk_inverse = route_inverse(2);
  }
  launch(args, most_tiles(slots, static_cast<i64>(counts.size()), tile_rows));
  CHECK(out.padding_intact());
  if (is_routed(p) && is_indirect(p)) CHECK(places == routed.places);

  double error = 0, size = 0;
  for (int r = 0; r < routed.row_count; ++r) {
    const PlainMatrix& w = experts.plain[static_cast<std::size_t>(routed.row_experts[static_cast<std::size_t>(r)])];
    HostRows row(dtype, 1, m.k);
    for (int c = 0; c < m.k; ++c) row.set(0, c, x.at(routed.x_rows[static_cast<std::size_t>(r)], c));
    const auto full = product(row, w);
    for (int c = 0; c < width; ++c) {
      double want = full[static_cast<std::size_t>(c)];
      if (test.gated) {
        const auto gate = static_cast<std::size_t>(c / 8 * 16 + c % 8);
        want = silu(full[gate]) * full[gate + 8];
      }
      const double got = out.at(r, c);
      error += (got - want) * (got - want), size += want * want;
    }
  }
  for (int r = routed.row_count; r < slots; ++r)
    for (int c = 0; c < width; ++c) CHECK(std::isnan(out.at(r, c)));  // rows of no expert are nobody's
  CHECK(std::sqrt(error) <= tolerance(dtype) * std::sqrt(size));
}

template <DecodeConfig C>
void check_decode(const GroupedTest& test, const std::vector<int>& counts) {
  static_assert(valid(C, kHopper));
  check_grouped(test, tile_rows(C), counts, [](const RoutedArgs& args, i64 tiles) {
    emulation::emulate({.grid = grid(C, tiles, kHopper), .threads = threads(C), .shared_bytes = shared_bytes(C)}, [&] {
      if constexpr (is_routed(C.p))
        decode<C>(args);
      else
        decode<C>(static_cast<const GroupedArgs&>(args));
    });
  });
}

TEST_CASE("grouped: decode") {
  constexpr GroupedTest kPlain{.matrix = {.k = 512, .n = 64}};
  check_decode<DecodeConfig{.p = kPlain.problem(), .tiles = 2, .teams = 2}>(kPlain, {1, 0, 3, 19, 0, 8});
  constexpr GroupedTest kRouted{.matrix = {.k = 512, .n = 64}, .gated = true, .indirect = true, .routed = true};
  check_decode<DecodeConfig{.p = kRouted.problem(), .tiles = 2, .teams = 2}>(kRouted, {1, 0, 3, 17, 0, 8});
  constexpr GroupedTest kRoutedSecond{.matrix = {.k = 512, .n = 64}, .routed = true};
  check_decode<DecodeConfig{.p = kRoutedSecond.problem(), .tiles = 2, .teams = 2}>(kRoutedSecond, {9, 2});
  check_decode<DecodeConfig{.p = kRouted.problem(), .tiles = 2, .teams = 2}>(kRouted, {0, 0});
  if (kThreads) return;
  // Slabs that do not divide by the teams, several in flight, half of them refilled early, rows of x by a list.
  constexpr GroupedTest kIndirect{.matrix = {.k = 1152, .n = 192}, .gated = true, .indirect = true};
  check_decode<DecodeConfig{
      .p = kIndirect.problem(), .tiles = 8, .side = 2, .brick = 2, .teams = 2, .depth = 2, .early = 1}>(kIndirect,
                                                                                                        {2, 9, 0, 1});
  check_decode<DecodeConfig{.p = kIndirect.problem(), .tiles = 6, .brick = 2, .teams = 2, .depth = 1}>(kIndirect,
                                                                                                       {0, 0, 7});
  check_decode<DecodeConfig{.p = kIndirect.problem(), .tiles = 4, .brick = 4, .teams = 9, .depth = 1, .x_slots = 1}>(
      kIndirect, {3, 0, 2, 1, 1});
  constexpr GroupedTest kBias{.matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bf16 = true, .bias = true}};
  check_decode<DecodeConfig{.p = kBias.problem(), .batch = 2, .tiles = 2, .brick = 1, .teams = 3}>(kBias,
                                                                                                   {17, 4, 0, 0, 40});
  constexpr GroupedTest kOrder{.matrix = {.k = 512, .n = 64, .act_order = ActOrder::kPermuted}, .gated = true};
  check_decode<DecodeConfig{.p = kOrder.problem(), .teams = 4, .depth = 1, .stagger = 0}>(kOrder, {5, 5, 5});
  check_decode<DecodeConfig{.p = kPlain.problem(), .tiles = 2, .teams = 2}>(kPlain, {0, 0});  // no row at all
}

template <PrefillConfig C>
void check_prefill(const GroupedTest& test, const std::vector<int>& counts) {
  static_assert(valid(C, kHopper));
  check_grouped(test, tile_rows(C), counts, [](const GroupedArgs& args, i64 tiles) {
    const TensorMap x_map =
        emulation::map_of({const_cast<u16*>(args.x), args.m, C.p.x_k, args.x_stride, x_box_rows(C, args.m)});
    emulation::emulate({.grid = grid(C, tiles, kHopper), .threads = threads(C), .shared_bytes = shared_bytes(C)},
                       [&] { prefill<C>(args, &x_map, &x_map); });
  });
}

TEST_CASE("grouped: prefill") {
  constexpr GroupedTest kPlain{.matrix = {.k = 256, .n = 192}};
  check_prefill<PrefillConfig{.p = kPlain.problem(), .rows = 16, .strips = 2, .fold = 1}>(kPlain, {1, 0, 16, 37});
  if (kThreads) return;
  constexpr GroupedTest kGated{.matrix = {.k = 384, .n = 144, .bias = true}, .gated = true};
  check_prefill<PrefillConfig{.p = kGated.problem(), .rows = 32, .strips = 2, .fold = 1}>(kGated, {33, 0, 5, 16, 0});
  check_prefill<PrefillConfig{.p = kGated.problem(), .rows = 64, .strips = 3}>(kGated, {64, 16, 0, 17, 33, 70});
  check_prefill<PrefillConfig{.p = kGated.problem(), .rows = 80, .strips = 2}>(kGated, {80, 3, 0, 97});
  check_prefill<PrefillConfig{.p = kPlain.problem(), .rows = 96, .strips = 3}>(kPlain, {0, 96, 49, 193});
  check_prefill<PrefillConfig{.p = kGated.problem(), .rows = 256, .strips = 2}>(kGated, {130, 1, 260});
  constexpr GroupedTest kUnits{.matrix = {.k = 248, .n = 72, .group = 16, .unit = 16, .bf16 = true, .bias = true}};
  check_prefill<PrefillConfig{.p = kUnits.problem(), .rows = 128, .strips = 4}>(kUnits, {7, 65, 0, 129});
  constexpr GroupedTest kOrder{
      .matrix = {.k = 512, .n = 64, .group = 64, .unit = 64, .act_order = ActOrder::kPermuted}};
  check_prefill<PrefillConfig{.p = kOrder.problem(), .rows = 64, .strips = 1}>(kOrder, {5, 5, 50});
  check_prefill<PrefillConfig{.p = kPlain.problem(), .rows = 32, .strips = 2}>(kPlain, {0, 0});  // no row at all
}

template <GemvConfig C>
void check_gemv(const GroupedTest& test, const std::vector<int>& counts) {
  static_assert(valid(C, kHopper));
  check_grouped(test, tile_rows(C), counts, [](const GroupedArgs& args, i64 tiles) {
    emulation::emulate({.grid = grid(C, tiles), .threads = threads(C), .shared_bytes = shared_bytes(C)},
                       [&] { gemv<C>(args); });
  });
}

TEST_CASE("grouped: gemv") {
  constexpr GroupedTest kPlain{.matrix = {.k = 256, .n = 72, .bias = true}};
  check_gemv<GemvConfig{.p = kPlain.problem(), .rows = 4, .warps = 4}>(kPlain, {1, 0, 3, 9});
  if (kThreads) return;
  constexpr GroupedTest kGated{.matrix = {.k = 248, .n = 96, .group = 32, .unit = 32, .bf16 = true}, .gated = true};
  check_gemv<GemvConfig{.p = kGated.problem(), .half2 = 0, .rows = 2, .warps = 4}>(kGated, {1, 0, 0, 5});
  constexpr GroupedTest kOrder{.matrix = {.k = 256, .n = 64, .act_order = ActOrder::kPermuted}};
  check_gemv<GemvConfig{.p = kOrder.problem(), .rows = 1, .tiles = 1, .warps = 4}>(kOrder, {2, 1});
}

template <TileConfig C>
void check_tile(const GroupedTest& test, const std::vector<int>& counts) {
  static_assert(valid(C, {.shared_bytes = 65536}));
  check_grouped(test, tile_rows(C), counts, [](const GroupedArgs& args, i64 tiles) {
    emulation::emulate({.grid = grid(C, tiles), .threads = threads(C), .shared_bytes = shared_bytes(C), .warp = 64},
                       [&] { tile<C>(args); });
  });
}

TEST_CASE("grouped: tile") {
  constexpr GroupedTest kGated{.matrix = {.k = 136, .n = 144, .bias = true}, .gated = true};
  check_tile<TileConfig{.p = kGated.problem(), .rows = 32}>(kGated, {1, 0, 35});
}

// ---- the end --------------------------------------------------------------------------------------------------------

TEST_CASE("grouped: combine adds the slots of a token in order, and takes no weight of a slot without a place") {
  const int tokens = 5, topk = 6, n = 40;
  const HostRows y = random_rows(DType::kF16, 20, n, 3, n + 8);
  HostRows out(DType::kF16, tokens, n, n + 8);
  Random random(4);
  std::vector<i32> places;
  std::vector<float> weights;
  for (int i = 0; i < tokens * topk; ++i) {
    places.push_back(static_cast<i32>(random.below(24)) - 4);
    if (i < topk || places.back() < 0) places.back() = -1;  // the first token has nothing
    weights.push_back(places.back() < 0 ? NAN : static_cast<float>(random.uniform()));
  }
  for (const bool weighted : {true, false}) {
    CombineArgs args{static_cast<const u16*>(y.data()),
                     places.data(),
                     weighted ? weights.data() : nullptr,
                     static_cast<u16*>(out.data()),
                     y.row_stride(),
                     out.row_stride(),
                     tokens,
                     n,
                     topk};
    out.poison();
    emulation::emulate({.grid = 2, .threads = 32}, [&] { combine<CombineConfig{.threads = 32}>(args); });
    CHECK(out.padding_intact());
    for (int t = 0; t < tokens; ++t)
      for (int c = 0; c < n; ++c) {
        double want = 0;
        for (int s = 0; s < topk; ++s) {
          const auto slot = static_cast<std::size_t>(t * topk + s);
          if (places[slot] >= 0) want += (weighted ? weights[slot] : 1.0) * y.at(places[slot], c);
        }
        CHECK(std::fabs(out.at(t, c) - want) <= 1e-3 * (1 + std::fabs(want)));
      }
  }
}

}  // namespace
}  // namespace q4::test
