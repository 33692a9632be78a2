// The config of the decode kernel for a shape nobody has tuned: a rule fitted to measurements on an H200 (README.md).
#pragma once
#include "decode_config.h"

namespace q4 {
namespace decode_detail {

/// Tiles of a block, so that `blocks` of them (in each of as few waves as 28 tiles allow) cover all.
Q4_BOTH constexpr int default_tiles(int all, int blocks, int batch) {
  int waves = 1;
  while (ceil_div(all, blocks * waves) > 28) ++waves;
  const int need = ceil_div(all, blocks * waves);
  return need <= (batch == 1 ? 3 : 2) ? need : round_up(need, 2);
}

/// Bytes that a multiprocessor is sent. x comes from the L2 and counts less; a cluster's exchange takes as long as 10
/// KB.
Q4_BOTH constexpr i64 default_cost(const Problem& p, i64 m, int tiles, int cluster) {
  const i64 slab = tiles * static_cast<i64>(kTileBytes + kMetaBytes / kStripTiles) + m * kSlabRows * 2 * 3 / 10;
  return slab * slabs(p.k) / cluster + (cluster - 1) * 10000;
}

}  // namespace decode_detail

/// For 1..m rows, m <= 16.
Q4_BOTH constexpr DecodeConfig decode_default(const Problem& p, i64 m, const Limits& limits) {
  using namespace decode_detail;
  DecodeConfig c{p};
  c.batch = m > 8 ? 2 : 1;
  const int all = ceil_div(p.n, kTileColumns), units = larger(1, limits.units);
  // Two blocks that split k meet half of x each and divide few columns better, for an exchange at the end.
  const int alone = default_tiles(all, units, c.batch), shared = default_tiles(all, larger(1, units / 2), c.batch);
  const bool pair = limits.arch >= 90 && units > 1 && alone <= 6 && slabs(p.k) > 1 &&
                    default_cost(p, m, shared, 2) < default_cost(p, m, alone, 1);
  c.cluster = pair ? 2 : 1;
  c.tiles = pair ? shared : alone;
  // A warp has all tiles of a few, else four or two: 16 warps (12 with more each) that share what x costs.
  const bool even = c.tiles % 2 == 0;
  int each = 2;
  if (c.tiles <= 3 && (c.batch == 1 || c.tiles <= 2))
    each = c.tiles;
  else if (c.batch == 1 && c.tiles == 6)
    each = p.unit < kSlabRows ? 2 : 6;
  else if (c.batch == 1 && c.tiles % 4 == 0 && (c.tiles > 4 || !pair) && p.unit >= kSlabRows)
    each = 4;
  c.side = c.tiles / each;
  c.brick = !even ? 1 : each == 4 && !pair ? 4 : 2;
  const int share = ceil_div(slabs(p.k), c.cluster);  // slabs of a block
  if (each == 3)
    c.teams = ceil_div(share, ceil_div(share, p.unit < kSlabRows ? 12 : 20));
  else
    c.teams = each == 6 ? 8 : c.side == 3 && each == 4 ? 4 : larger(1, 16 / c.side);
  c.teams = smaller(c.teams, share);
  // Weights in flight, as many as registers hold without a spill.
  c.depth = each == 1 ? 4 : each == 6 ? 1 : each == 3 ? (share == 2 * c.teams ? 2 : 1) : 4 / each;
  if (c.side * c.teams <= 12 && p.unit >= kSlabRows) {
    if (each == 4) c.depth = 2;
    if (each == 2 && c.side >= 6) c.depth = c.teams == 1 ? 4 : 3;
  }
  if (p.unit < kSlabRows && c.side * c.teams > 12 && c.depth > 1 && each > 1) --c.depth;
  while (c.depth > most_slabs(c)) --c.depth;
  c.x_slots = smaller(3, most_slabs(c));
  c.stagger = c.tiles < 24 || c.teams == 1;
  while (shared_bytes(c) > limits.shared_bytes && c.teams > 1) {
    --c.teams;
    c.x_slots = smaller(3, most_slabs(c));
  }
  while (wanted_registers(c) > thread_registers(c, limits) && c.depth > 1) --c.depth;
  return c;
}

}  // namespace q4
