// What the decode kernel (decode.h) can be compiled to, and what follows from a choice: both the host's launch and the
// kernel read these functions.
//
//   cluster   blocks that own the same columns and split k; their sums meet over distributed shared memory
//   block     `tiles` x 16 columns and one of `cluster` shares of the slabs; or `share` blocks side by side share x
//   team      the warps that meet the same slabs; teams split the block's slabs: slab = slot, slot + slots, ...
//   warp      tiles / side of the block's tiles; it keeps `depth` slabs of its weights in flight, in registers
#pragma once
#include "grouped.h"
#include "lora.h"
#include "route_few.h"

namespace q4 {

struct DecodeConfig {
  Problem p;
  int batch = 1;    ///< 1: m <= 8, 2: m <= 16. A row's bits do not depend on m or on its place
  int tiles = 2;    ///< 16-column tiles of a block
  int side = 1;     ///< warps of a team, side by side on the block's tiles
  int brick = 2;    ///< tiles that a warp multiplies at once
  int teams = 16;   ///< they split k within a block
  int depth = 2;    ///< slabs of weights in flight
  int x_slots = 3;  ///< slabs of x a team has room for
  int cluster = 1;  ///< blocks that split k; above 1 from sm_90 on
  int stagger = 1;  ///< the upper half of the warps asks for weights later than the lower half
  int early = 0;    ///< half a slab is asked for when the half in its registers is unpacked, not after the slab
  int staged = 0;   ///< act-order, norm: rows of x that there is room to gather from, or to normalize: the most; else 0
  int share = 0;    ///< blocks of a cluster, side by side, that share x, which all comes at once; 0: slab by slab

  /// Each tunable with the values worth trying.
  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("batch", batch, 1, 2);
    v("tiles", tiles, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 28);
    v("side", side, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14), v("brick", brick, 2, 1, 4);
    v("teams", teams, 16, 1, 2, 4, 5, 8, 11, 12, 15, 20, 32), v("depth", depth, 2, 1, 3, 4);
    v("x_slots", x_slots, 3, 1, 2, 4), v("cluster", cluster, 1, 2), v("stagger", stagger, 1, 0);
    v("early", early, 0, 1), v("staged", staged, 0, 1, 2, 4, 8, 16);
    v("share", share, 0, 2, 1, 4);
  }
};

/// Rows that a config has sums for.
Q4_BOTH constexpr int rows(const DecodeConfig& c) { return 8 * c.batch; }
/// Grouped: rows of a row tile.
Q4_BOTH constexpr int tile_rows(const DecodeConfig& c) { return rows(c); }
/// Whether it can take so many rows of x; grouped: any number of row tiles.
Q4_BOTH constexpr bool serves(const DecodeConfig& c, i64 m) {
  return c.p.grouped || m <= (c.staged > 0 ? c.staged : rows(c));
}
Q4_BOTH constexpr int threads(const DecodeConfig& c) { return 32 * c.side * c.teams; }
Q4_BOTH constexpr int cluster(const DecodeConfig& c) { return c.cluster * larger(1, c.share); }
Q4_BOTH constexpr int column_blocks(const DecodeConfig& c) { return ceil_div(ceil_div(c.p.n, kTileColumns), c.tiles); }
/// Blocks, whatever m is; grouped, of at most m row tiles.
Q4_BOTH constexpr i64 grid(const DecodeConfig& c, i64 m, const Limits& limits) {
  if (!c.p.grouped) return static_cast<i64>(round_up(column_blocks(c), larger(1, c.share))) * c.cluster;
  return m * column_blocks(c) < limits.units ? m * column_blocks(c) : limits.units;
}
Q4_BOTH constexpr i64 grid(const DecodeConfig& c, i64 m) { return grid(c, m, {}); }
Q4_BOTH constexpr i64 workspace_bytes(const DecodeConfig&, i64) { return 0; }

// ---- what a warp and a team do --------------------------------------------------------------------------------------
Q4_BOTH constexpr int warp_tiles(const DecodeConfig& c) { return c.tiles / c.side; }
Q4_BOTH constexpr int warp_bricks(const DecodeConfig& c) { return warp_tiles(c) / c.brick; }
Q4_BOTH constexpr int slots(const DecodeConfig& c) { return c.teams * c.cluster; }
Q4_BOTH constexpr int most_slabs(const DecodeConfig& c) { return ceil_div(slabs(c.p.k), slots(c)); }  ///< of a team
/// Slabs of x asked for before the first is used. A slot is filled again one slab after it was read.
Q4_BOTH constexpr int x_ahead(const DecodeConfig& c) {
  return c.x_slots >= most_slabs(c) ? most_slabs(c) : c.x_slots - 1;
}
/// Sets of scales that one slab meets, and 16-row steps of each.
Q4_BOTH constexpr int slab_sets(const DecodeConfig& c) { return c.p.unit < kSlabRows ? kSlabRows / c.p.unit : 1; }
/// Of which a lane keeps so many: the four lanes that share columns take turns, and tell each other.
Q4_BOTH constexpr int kept_sets(const DecodeConfig& c) { return ceil_div(slab_sets(c), 4); }
Q4_BOTH constexpr int set_steps(const DecodeConfig& c) { return kSlabRows / kStepRows / slab_sets(c); }

/// A warp alone on its slab sums x as it multiplies, if registers allow; of several, one sums ahead for all.
Q4_BOTH constexpr bool sums_itself(const DecodeConfig& c) {
  return c.side == 1 && c.tiles <= 4 && (c.brick > 1 || most_slabs(c) <= c.depth);
}

// ---- shared memory: [x: team, slot, row] [sums of x: team, parity, set, row] [sums: team, row, column] --------------
//                     [inbox: sender, row, own column] [its barrier] [norm: weights: team, slab; squares: row, team]
//                     [act-order: x as it comes: row, column] [routed: lists]
constexpr int kXRowBytes = kSlabRows * 2 + 16;  // 4 banks further each row: ldmatrix meets no conflict
Q4_BOTH constexpr int x_slot_bytes(const DecodeConfig& c) { return rows(c) * kXRowBytes; }
/// All of x: a row, and one slab in it.
Q4_BOTH constexpr int whole_row_bytes(const DecodeConfig& c) { return c.p.k * 2 + 16; }
Q4_BOTH constexpr int x_row_bytes(const DecodeConfig& c) { return c.share ? whole_row_bytes(c) : kXRowBytes; }
Q4_BOTH constexpr int x_slot_stride(const DecodeConfig& c) { return c.share ? kSlabRows * 2 : x_slot_bytes(c); }
Q4_BOTH constexpr int x_bytes(const DecodeConfig& c) {
  return c.share ? rows(c) * whole_row_bytes(c) : c.teams * c.x_slots * x_slot_bytes(c);
}
/// It comes in two parts, each with a barrier: slabs of the first.
Q4_BOTH constexpr int x_part_slabs(const DecodeConfig& c) {
  return smaller(slabs(c.p.k), slots(c) * ceil_div(most_slabs(c), 2));
}
Q4_BOTH constexpr int x_bar_bytes(const DecodeConfig& c) { return c.share ? 16 : 0; }
/// Floats of a row of sums: 4 mod 32, so that a fragment's stores meet no conflict.
Q4_BOTH constexpr int sum_stride(const DecodeConfig& c) { return c.tiles * kTileColumns + (c.tiles % 2 ? 20 : 4); }
Q4_BOTH constexpr int x_sum_bytes(const DecodeConfig& c) { return c.teams * 2 * slab_sets(c) * rows(c) * 4; }
Q4_BOTH constexpr int sum_bytes(const DecodeConfig& c) { return c.teams * rows(c) * sum_stride(c) * 4; }
Q4_BOTH constexpr int inbox_bytes(const DecodeConfig& c) {
  return c.cluster > 1 ? rows(c) * c.tiles * kTileColumns * 4 + 16 : 0;
}
/// Norm: the weights of a team's slabs, and the sums of squares of what each team has of a row.
constexpr int kNormSlabBytes = kSlabRows * 2;
Q4_BOTH constexpr int norm_weight_bytes(const DecodeConfig& c) {
  return c.p.norm ? c.teams * most_slabs(c) * kNormSlabBytes : 0;
}
Q4_BOTH constexpr int norm_parts(const DecodeConfig& c) { return round_up(c.teams, 4); }
Q4_BOTH constexpr int norm_bytes(const DecodeConfig& c) {
  return norm_weight_bytes(c) + (c.p.norm ? rows(c) * norm_parts(c) * 4 : 0);
}
/// Rows of a slab that a lane brings, and normalizes.
Q4_BOTH constexpr int norm_rows(const DecodeConfig& c) { return c.p.norm ? ceil_div(c.staged, 2 * c.side) : 0; }
Q4_BOTH constexpr int staged_bytes(const DecodeConfig& c) { return c.p.gather ? c.staged * c.p.x_k * 2 : 0; }
// ---- LoRA within the launch (lora_decode.h) -------------------------------------------------------------------------
Q4_BOTH constexpr LoraShape lora_shape(const DecodeConfig& c) {
  const int blocks = ceil_div(ceil_div(c.p.x_k, kLoraRows), kLoraParts);
  return {c.p.bf16, c.batch, threads(c), ceil_div(blocks, threads(c) / 32)};
}
/// What it needs, and [pair, row, rank] of low.
Q4_BOTH constexpr int lora_shared_bytes(const DecodeConfig& c) {
  return c.p.lora ? lora_shrink_bytes(lora_shape(c)) + lora_group(lora_shape(c)) * rows(c) * kLoraRanks * 4 : 0;
}
/// Blocks of a launch that shrink, before those of the grid, where as many multiprocessors are left and they have little
/// to do: few adapters to read, few rows to send to every block, as many stores a thread as a short matmul leaves time
/// for; 0: none.
Q4_BOTH constexpr int lora_blocks(const DecodeConfig& c, const LoraLoad& load, const Limits& limits) {
  const bool fits = c.cluster <= kLoraParts && grid(c, 1) + kLoraParts <= limits.units;
  const int m = load.invariant ? rows(c) : static_cast<int>(load.m);
  const bool few = load.chunks * smaller(load.adapters, m) <= 4 && load.chunks * m <= 8;
  const int stores = ceil_div(load.chunks * m * column_blocks(c) * 8, threads(c));
  const double read_us = static_cast<double>(c.p.k) * c.p.n / 6.5e6;  // of the weights, on an H200
  const bool short_time = few && stores + 2 * (load.chunks - 1) <= 6 + read_us;
  return c.p.lora && !c.p.grouped && fits && short_time ? kLoraParts : 0;
}
/// Blocks of such a launch in all.
Q4_BOTH constexpr i64 lora_grid(const DecodeConfig& c, const LoraLoad& load, const Limits&) {
  return grid(c, load.m) + kLoraParts;
}
/// Of its inboxes, of as much as that may ever be.
Q4_BOTH constexpr i64 lora_bytes(const DecodeConfig& c, const LoraLoad& load) {
  return static_cast<i64>(load.chunks) * column_blocks(c) * kLoraParts * rows(c) * kLoraRanks * 8;
}

Q4_BOTH constexpr int shared_bytes(const DecodeConfig& c) {
  return larger(x_bytes(c) + x_sum_bytes(c) + sum_bytes(c) + inbox_bytes(c) + x_bar_bytes(c) + norm_bytes(c) +
                    staged_bytes(c) + routed_bytes(c.p),
                lora_shared_bytes(c));
}

/// Registers of a thread: blocks are given out by fours of warps.
Q4_BOTH constexpr int thread_registers(const DecodeConfig& c, const Limits& limits) {
  return smaller(255, limits.registers / (32 * round_up(c.side * c.teams, 4)) / 8 * 8);
}
/// What cannot be less: the sums, the weights in flight and what one brick needs at a time. A config above it can still
/// spill, which the compiler's log shows and which costs up to half the speed: such a config is not worth measuring.
Q4_BOTH constexpr int wanted_registers(const DecodeConfig& c) {
  const int weights = c.depth * warp_bricks(c) * (8 * c.brick + kept_sets(c) * (c.brick + 1));
  const int map = c.p.gather ? 4 * x_ahead(c) : 0;
  return weights + warp_tiles(c) * 4 * c.batch + c.brick * 4 * c.batch + 8 * c.batch + 5 * warp_bricks(c) + 8 + map +
         norm_rows(c);
}

Q4_BOTH constexpr bool valid(const DecodeConfig& c, const Limits& limits) {
  if (limits.arch < 80 || (c.cluster > 1 && limits.arch < 90)) return false;
  if (c.cluster > 8 || (c.cluster & (c.cluster - 1)) != 0 || (c.brick != 1 && c.brick != 2 && c.brick != 4))
    return false;
  if (c.tiles % (c.side * c.brick) != 0 || (c.tiles / c.side) % c.brick != 0) return false;
  if (threads(c) > 1024 || (c.side > 1 && c.teams > 15)) return false;  // 15 named barriers
  if (x_ahead(c) < 2 && most_slabs(c) > 1) return false;
  if (c.p.grouped && (c.cluster > 1 || c.p.gather || c.p.residual)) return false;
  if (c.p.norm && (c.cluster > 1 || c.p.gather || c.p.lora || c.p.grouped)) return false;
  if ((c.staged > 0) != (c.p.gather || c.p.norm) || c.staged < 0 || c.staged > rows(c)) return false;
  // A block of the cluster owns whole items of the epilogue (decode_sum.h).
  if (4 * c.tiles % (c.cluster * (c.p.gated ? 2 : 1)) != 0) return false;
  const bool plain = !c.p.gather && !c.p.grouped && !c.p.lora && !c.p.norm && c.p.x_k == c.p.k;
  if (c.share > 8 || (c.share & (c.share - 1)) != 0 || (c.share && (limits.arch < 90 || c.cluster > 1 || !plain)))
    return false;
  return shared_bytes(c) <= limits.shared_bytes && wanted_registers(c) <= thread_registers(c, limits);
}

}  // namespace q4
