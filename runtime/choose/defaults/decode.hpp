// When the decode kernel is used, and its Config for a shape that nobody has tuned: a rule fitted to measurements on an
// H200 (kernels/README.md).
#pragma once

#include <optional>

#include "kernels/decode_config.h"

namespace q4::choose {
namespace decode_rule {

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
  const bool two = c.tiles == 2 && c.side == 1 && slabs(c.p.k) == 2 * slots(c) && one_set && !c.p.bf16 && !c.p.gather;
  if (two) c.depth = 1;
  // Where unpacking takes long beside a slab's loads.
  c.early = each == 4 || (c.tiles == 4 && pair) || many || c.p.bf16;
  const bool one = each == 1 && share <= c.teams;  // a slab for every warp, and nothing after it
  c.stagger = (c.tiles < 16 || (c.tiles == 20 && one_set)) && !two && !one;
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
  const bool pair = limits.arch >= 90 && units > 1 && !p.norm && alone <= 6 && slabs(p.k) > 1 &&
                    (alone == shared || m > (alone <= 2 ? 1 : 2));
  c.cluster = pair ? 2 : 1;
  c.tiles = pair ? shared : alone;
  const int share = ceil_div(slabs(p.k), c.cluster);  // slabs of a block
  c.batch == 1 ? divide_8(c, share) : divide_16(c, share);
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
