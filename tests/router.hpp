// The router of a mixture of experts, run on the host.
#pragma once

#include "kernel_runner.hpp"
#include "kernels/route.h"

namespace q4::test {

/// What the router makes of slots.
struct Routed {
  std::vector<i32> x_rows, row_experts, places;
  std::vector<GroupTile> tiles[2];
  i32 row_count = -1, tile_count[2] = {-1, -1};
};

template <RouteConfig C>
Routed run_router(RouteArgs args, int rows0, int rows1) {
  Routed to;
  const auto slots = static_cast<std::size_t>(args.slots);
  for (auto* list : {&to.x_rows, &to.row_experts, &to.places}) list->assign(slots, -7);
  const int rows[2] = {rows0, rows1};
  args.x_rows = to.x_rows.data(), args.row_experts = to.row_experts.data(), args.places = to.places.data();
  args.row_count = &to.row_count;
  for (int i = 0; i < 2; ++i) {
    if (rows[i]) to.tiles[i].resize(static_cast<std::size_t>(most_tiles(args.slots, args.experts, rows[i])));
    args.lists[i] = {&to.tile_count[i], to.tiles[i].data(), rows[i], route_inverse(rows[i])};
  }
  args.topk_inverse = route_inverse(args.topk);
  constexpr int kBlocks = C.part ? 3 : 1;
  std::vector<i32> block_counts(static_cast<std::size_t>(kBlocks * args.experts), -7);
  args.block_counts = block_counts.data();
  const emulation::Launch launch{.grid = kBlocks, .threads = threads(C), .shared_bytes = shared_bytes(C)};
  constexpr RouteConfig kCount{C.threads, C.experts, kCountPart};
  if (C.part) emulation::emulate(launch, [&] { route<kCount>(args); });
  emulation::emulate(launch, [&] { route<C>(args); });
  return to;
}

}  // namespace q4::test
