// When the decode kernel is used, and its Config for a shape that nobody has tuned: a rule fitted to measurements on an
// H200 (kernels/README.md).
#pragma once

#include <optional>

#include "kernels/decode_config.h"

namespace q4::choose {
namespace decode_rule {

/// Registers for more warps, or more slabs each.
constexpr bool light(const Problem& p) { return p.unit >= kSlabRows && !p.bf16 && !p.gather; }

/// Tiles of a block, so that `blocks` of them (in each of as few waves as 28 tiles allow) cover all. Warps like four.
constexpr int default_tiles(int all, int blocks, int batch) {
  int waves = 1;
  while (ceil_div(all, blocks * waves) > 28) ++waves;
  const int need = ceil_div(all, blocks * waves);
  if (batch == 2) return need <= 2 ? need : round_up(need, 2);
  return need <= 3 ? need : round_up(need, need <= 12 ? 2 : 4);
}

/// Up to 8 rows: what a warp does of the block's tiles, and how many slabs it keeps in flight without a spill.
constexpr void divide_8(DecodeConfig& c, int share) {
  const bool pair = c.cluster > 1;
  const bool one_set = c.p.unit >= kSlabRows;
  int each = 4;
  if (c.tiles <= 3 || (c.tiles == 6 && !pair && one_set && share > 40 && !c.p.norm))
    each = c.tiles;
  else if (c.tiles == 6 || (c.tiles == 12 && pair))
    each = 3;
  else if (c.tiles % 4 != 0 || (c.tiles == 4 && pair))
    each = 2;
  c.side = c.tiles / each;
  c.brick = each == 3 ? 1 : each == 6 ? 2 : each;
  c.teams = each == 6 ? 8 : larger(1, c.side == 3 && each == 4 ? 4 : 16 / c.side);
  if (each == 3) c.teams = ceil_div(share, ceil_div(share, c.side > 1 ? c.teams : one_set ? 20 : 12));
  c.teams = smaller(c.teams, share);
  if (each <= 2 && c.side == 1 && light(c.p) && !c.p.norm && share > 16 && share <= (each == 1 ? 24 : 20))
    c.teams = share;
  if (each == 3 && !one_set && share == 5) c.teams = 4;  // five teams of one slab each would spill
  if (each <= 2)
    c.depth = each == 1 ? 4 : 2;
  else if (each == 3)
    c.depth = slabs(c.p.k) == 2 * slots(c) ? 2 : 1;
  else
    c.depth = each == 4 && c.side * c.teams <= 12 && one_set ? 2 : 1;
  if (each == 3 && c.side == 1) {  // few slabs: all of them in registers at once, where they divide
    for (int depth = 2; depth > 0; --depth)
      if (share % depth == 0 && share / depth <= 16) c.teams = share / depth, c.depth = depth;
  }
  const bool many = each == 3 && c.side == 1 && one_set && share >= 64 && !c.p.gather;
  if (many) c.teams = 16;
  // Two slabs for every warp, and nothing after them: better one after the other than both at once, from half of the
  // warps.
  const bool two = c.tiles == 2 && c.side == 1 && slabs(c.p.k) == 2 * slots(c) && light(c.p);
  if (two) c.depth = 1;
  // Where unpacking takes long beside a slab's loads.
  c.early = each == 4 || (c.tiles == 4 && pair) || many || c.p.bf16;
  // A slab for every warp, and nothing after it.
  const bool one = (each == 1 || (each == 2 && !pair)) && share <= c.teams && c.teams <= 16;
  c.stagger = (c.tiles < 16 || (c.tiles == 20 && one_set)) && !two && !one;
}

/// Up to 8 rows where blocks side by side share all of x: every team has as many slabs.
constexpr void divide_shared(DecodeConfig& c, int tiles) {
  const int all = slabs(c.p.k);
  c.tiles = tiles == 3 ? 4 : tiles;
  const int each = smaller(c.tiles, 4);
  c.side = c.tiles / each;
  c.brick = each;
  if (c.share == 4)  // few warps, with all of their slabs in registers
    c.teams = ceil_div(all, 4), c.depth = 4;
  else if (c.side > 1)
    c.teams = smaller(4, all), c.depth = 2;
  else
    c.teams = ceil_div(all, ceil_div(all, 16)), c.depth = 1;
  c.early = each == 4 && most_slabs(c) > c.depth;
  c.stagger = most_slabs(c) > 1 && c.share == 2;
}
/// How many blocks share x by multicast, 0: none. Worth it where k is too short for two blocks to share, and for more
/// rows where blocks are wide, or few. `alone`: tiles of a block that has all of k.
constexpr int sharing(const Problem& p, i64 m, int alone, const Limits& limits) {
  const int all = slabs(p.k), blocks = ceil_div(ceil_div(p.n, kTileColumns), alone);
  if (limits.arch != 90 || m < 2 || m > 8 || p.gather || p.grouped || p.lora || p.norm || p.x_k != p.k) return 0;
  if (round_up(blocks, 2) > limits.units) return 0;
  if (blocks <= 64) return all > 16 && all <= 32 && all % 4 == 0 && m > 4 ? 4 : 0;
  if (alone <= 2 || (alone == 3 && all <= 8)) return all <= 16 || (all <= 24 && m > 4 && light(p)) ? 2 : 0;
  return (alone == 8 || alone == 12) && all <= 40 && m > 4 && light(p) ? 2 : 0;
}

/// The same for 9 to 16 rows.
constexpr void divide_16(DecodeConfig& c, int share) {
  const int each = c.tiles <= 2 ? c.tiles : 2;
  c.side = c.tiles / each;
  c.brick = each;
  c.teams = smaller(larger(1, 16 / c.side), share);
  c.depth = each == 1 ? 4 : 2;
  const int warps = c.side * c.teams;
  if (warps <= 12 && c.p.unit >= kSlabRows && c.side >= 6) c.depth = c.teams == 1 ? 4 : 3;
  if (c.p.unit < kSlabRows && warps > 12 && each == 2) c.depth = 1;
  c.stagger = c.tiles < 24 || c.teams == 1;
}

}  // namespace decode_rule

/// For 1..m rows, m <= 16.
constexpr DecodeConfig decode_default(const Problem& p, i64 m, const Limits& limits) {
  using namespace decode_rule;
  DecodeConfig c{p};
  c.batch = m > 8 ? 2 : 1;
  const int all = ceil_div(p.n, kTileColumns), units = larger(1, limits.units);
  // Two blocks that split k meet half of x each, for an exchange at the end: worth it from a few rows on, and where
  // half of the multiprocessors would be idle.
  const int alone = default_tiles(all, units, c.batch), shared = default_tiles(all, larger(1, units / 2), c.batch);
  const bool few = slabs(p.k) <= 16;  // slabs: one for each warp
  const int from = alone == shared ? (few && c.batch == 1 ? 5 : 1) : alone <= 2 || (few && alone == 4) ? 2 : 3;
  const bool pair = limits.arch >= 90 && units > 1 && !p.norm && alone <= 6 && slabs(p.k) > 1 && m >= from;
  c.cluster = pair ? 2 : 1;
  c.tiles = pair ? shared : alone;
  c.share = sharing(p, m, alone, limits);
  // Four of them: a quarter of x each, where blocks are few and k is long.
  const bool four = limits.arch == 90 && m > 4 && m <= 8 && slabs(p.k) >= 64 && slabs(p.k) <= 96 &&
                    all * 132 <= 120 * units && light(p) && !p.lora && !p.norm && !p.grouped;
  if (four) c.cluster = 4, c.tiles = 4;
  const int share = ceil_div(slabs(p.k), c.cluster);  // slabs of a block
  if (c.share > 0) {
    c.cluster = 1;
    divide_shared(c, alone);
  } else if (four) {
    c.side = 1, c.brick = 4, c.stagger = 1;
    c.teams = share == 16 ? 8 : 12, c.depth = share == 16 ? 2 : 1;
  } else {
    c.batch == 1 ? divide_8(c, share) : divide_16(c, share);
  }
  while (c.depth > most_slabs(c)) --c.depth;
  // The compiler does not keep in registers what some teams never load.
  if (c.depth > 1 && c.depth == most_slabs(c) && slabs(p.k) % slots(c) != 0) --c.depth;
  c.x_slots = smaller(3, most_slabs(c));
  for (c.staged = p.norm ? 1 : p.gather ? 2 : 0; c.staged > 0 && c.staged < m;) c.staged *= 2;
  while (shared_bytes(c) > limits.shared_bytes && c.teams > 1) {
    --c.teams;
    c.x_slots = smaller(3, most_slabs(c));
  }
  while (wanted_registers(c) > thread_registers(c, limits) && c.depth > 1) --c.depth;
  if (p.norm && c.depth > 3) c.depth = 3;           // more would spill
  if (p.gather && p.unit < kSlabRows) c.depth = 1;  // more sets of scales and the map: no room for a second slab
  return c;
}

/// Whether gathering x inside beats permuting it before. A row of a slab takes a warp some 200 clocks: not for many
/// rows or slabs, nor where warps share a team's slabs and all wait for each.
constexpr bool decode_gathers(const Problem& p, i64 m, const Limits& limits) {
  if (m > 2) return false;
  const DecodeConfig c = decode_default(p, m, limits);
  return c.side == 1 && most_slabs(c) <= 8 && staged_bytes(c) <= limits.shared_bytes / 2;
}

struct DecodePolicy {
  using Config = DecodeConfig;
  static constexpr const char *name = "decode", *header = "decode.h", *type = "DecodeConfig", *arguments = "MatmulArgs";
  static constexpr bool overlaps = true, normalizes = true;
  static std::optional<DecodeConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    // From nine rows on Hopper's wgmma is faster (kernels/README.md).
    if (m > (limits.arch == 90 ? 8 : 16)) return std::nullopt;
    return decode_default(p, static_cast<int>(m), limits);
  }
  static bool gathers(const Problem& p, i64 m, const Limits& limits) { return decode_gathers(p, m, limits); }
};

}  // namespace q4::choose
