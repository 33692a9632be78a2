// The router of a mixture of experts, run on the host, against a stable sort.
#include <algorithm>

#include "router.hpp"

namespace q4::test {
namespace {

const bool kThreads = emulation::default_engine() == emulation::Engine::kThreads;

/// The same by a stable sort. `expert[slot]` -1: none.
void check_routed(const Routed& got, const std::vector<i32>& expert, int experts, int topk, int rows0, int rows1) {
  std::vector<i32> order;
  for (std::size_t i = 0; i < expert.size(); ++i)
    if (expert[i] >= 0) order.push_back(static_cast<i32>(i));
  std::stable_sort(order.begin(), order.end(), [&](i32 a, i32 b) {
    return expert[static_cast<std::size_t>(a)] < expert[static_cast<std::size_t>(b)];
  });
  CHECK(got.row_count == static_cast<i32>(order.size()));
  std::vector<i32> places(expert.size(), -1);
  int wrong = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto slot = static_cast<std::size_t>(order[i]);
    places[slot] = static_cast<i32>(i);
    wrong += got.x_rows[i] != order[i] / topk || got.row_experts[i] != expert[slot];
  }
  CHECK(wrong == 0);
  CHECK(got.places == places);
  const int rows[2] = {rows0, rows1};
  for (int list = 0; list < 2; ++list) {
    if (!rows[list]) {
      CHECK(got.tile_count[list] == -1);
      continue;
    }
    i32 begin = 0, tile = 0, differ = 0;
    for (i32 e = 0; e < experts; ++e) {
      const auto count = static_cast<i32>(std::count(expert.begin(), expert.end(), e)), first = tile;
      for (i32 t = 0; t < (count + rows[list] - 1) / rows[list]; ++t, ++tile) {
        const GroupTile& at = got.tiles[list].at(static_cast<std::size_t>(tile));
        differ += at.expert != e || at.begin != begin || at.end != begin + count || at.first != first;
      }
      begin += count;
    }
    CHECK(differ == 0);
    CHECK(got.tile_count[list] == tile);
  }
}

template <RouteConfig C>
void check_router(int tokens, int topk, int experts, bool mapped, int hot_percent, int rows0 = 8, int rows1 = 16) {
  CAPTURE(tokens);
  CAPTURE(topk);
  CAPTURE(experts);
  Random random(static_cast<std::uint64_t>(tokens + topk * 1000 + experts));
  const auto slots = static_cast<std::size_t>(tokens * topk);
  std::vector<i32> ids(slots), map(static_cast<std::size_t>(experts) + 3), expert(slots);
  for (auto& entry : map) entry = static_cast<i32>(random.below(experts + 1)) - 1;
  for (std::size_t i = 0; i < slots; ++i) {
    ids[i] = static_cast<i32>(random.below(experts + 5)) - 1;  // some name no expert
    if (random.below(100) < hot_percent) ids[i] = experts / 2;
    const auto id = static_cast<std::size_t>(ids[i]);
    if (mapped)
      expert[i] = ids[i] >= 0 && id < map.size() ? map[id] : -1;
    else
      expert[i] = ids[i] >= 0 && ids[i] < experts ? ids[i] : -1;
  }
  RouteArgs args{};
  args.ids = ids.data(), args.slots = static_cast<i32>(slots), args.topk = topk, args.experts = experts;
  if (mapped) args.map = map.data(), args.map_size = static_cast<i32>(map.size());
  check_routed(run_router<C>(args, rows0, rows1), expert, experts, topk, rows0, rows1);
}

TEST_CASE("grouped: the router sorts as a stable sort does") {
  check_router<RouteConfig{64, 32}>(5, 2, 8, false, 0);
  check_router<RouteConfig{.threads = 64, .experts = 32, .each = 1}>(20, 3, 20, true, 10);
  if (kThreads) return;
  check_router<RouteConfig{.threads = 256, .experts = 128, .each = 1}>(32, 8, 128, false, 0);
  check_router<RouteConfig{.threads = 256, .experts = 128, .each = 2}>(63, 7, 100, true, 60, 1, 0);
  check_router<RouteConfig{.threads = 64, .experts = 512, .each = 4}>(32, 8, 384, true, 5, 64,
                                                                      128);  // 8 experts a thread
  check_router<RouteConfig{.threads = 1024, .experts = 128, .each = 2}>(256, 8, 128, false, 0, 8, 8);
  check_router<RouteConfig{.threads = 1024, .experts = 256, .each = 4}>(512, 8, 256, false, 100, 1, 1);
  check_router<RouteConfig{128, 64}>(33, 8, 64, true, 0);
  check_router<RouteConfig{128, 64}>(40, 4, 150, false, 30, 16, 0);  // more experts than one range
  for (const int tokens : {1, 3, 4}) check_router<RouteConfig{32}>(tokens, 8, 5, tokens == 3, 20, 2, 0);  // one warp
  check_router<RouteConfig{64, 64, kPlacePart}>(60, 8, 150, true, 30);  // in several blocks
  check_router<RouteConfig{64, 128, kPlacePart}>(400, 3, 100, false, 10);
  check_router<RouteConfig{1024, 512}>(300, 8, 384, true, 10, 64, 128);
  check_router<RouteConfig{.threads = 256, .experts = 128, .each = 4}>(128, 8, 5, false, 50, 80, 96);
  check_router<RouteConfig{64, 128}>(300, 8, 150, true, 10, 64, 128);  // more slots than one batch of a warp
  check_router<RouteConfig{128, 64}>(100, 1, 1, false, 100);
}

TEST_CASE("grouped: the router takes rows that are sorted already") {
  const std::vector<i32> offsets = {2, 2, 7, 8, 8, 19};
  std::vector<i32> expert(23, -1);
  for (std::size_t e = 0; e + 1 < offsets.size(); ++e)
    for (i32 r = offsets[e]; r < offsets[e + 1]; ++r) expert[static_cast<std::size_t>(r)] = static_cast<i32>(e);
  RouteArgs args{};
  args.offsets = offsets.data(), args.slots = 23, args.topk = 1, args.experts = 5;
  check_routed(run_router<RouteConfig{64, 32}>(args, 8, 0), expert, 5, 1, 8, 0);
}

}  // namespace
}  // namespace q4::test
