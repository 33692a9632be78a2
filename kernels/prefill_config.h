// What a launch of the prefill kernel is compiled for, and how large it is.
#pragma once
#include "grouped.h"
#include "lora.h"

namespace q4 {

/// A tile is `rows` rows of x by `strips` strips of 64 columns, over all of k.
struct PrefillConfig {
  Problem p;
  int rows = 256;  ///< n of wgmma: 16, 32, 64, 128 or 256; grouped also 80 and 96
  int strips = 2;  ///< consumer warpgroups side by side, one a strip
  int teams = 1;   ///< consumer warpgroups of a strip: team q takes slabs q, q + teams, ... of k
  int split = 1;   ///< blocks of a cluster that share a tile's k, summed through distributed shared memory
  int share = 1;   ///< blocks of a cluster, side by side along n, that share x by multicast
  int cut = 0;   ///< waves of tiles cut along k over all blocks: 1: the last, incomplete one; 2: also the one before it
  int fold = 0;  ///< 1: scales meet the fp32 sums, once a set of rows that share them; 0: they meet the weights

  /// Each tunable with the values worth trying; valid() knows which go together.
  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("rows", rows, 256, 128, 96, 80, 64, 32, 16), v("strips", strips, 2, 1, 3, 4), v("teams", teams, 1, 2),
        v("split", split, 1, 2, 3, 4, 5, 6);
    v("share", share, 1, 2), v("cut", cut, 0, 1, 2), v("fold", fold, 0, 1);
  }
};

Q4_BOTH constexpr int tile_columns(const PrefillConfig& c) { return kStripColumns * c.strips; }
/// Grouped: rows of a row tile.
Q4_BOTH constexpr int tile_rows(const PrefillConfig& c) { return c.rows; }
Q4_BOTH constexpr int consumers(const PrefillConfig& c) { return c.strips * c.teams; }
/// Warpgroup 0 produces. Launch bounds threads(c), 1 give all the same registers at entry; then they trade
/// (setmaxnreg).
Q4_BOTH constexpr int threads(const PrefillConfig& c) { return 128 * (consumers(c) + 1); }
Q4_BOTH constexpr int producer_registers(const PrefillConfig& c) {
  return c.rows == 256 ? 24 : consumers(c) <= 2 ? 40 : 32;
}
Q4_BOTH constexpr int consumer_registers(const PrefillConfig& c) {
  return c.rows == 256 ? 240 : consumers(c) <= 2 ? 232 : consumers(c) == 3 ? 160 : 112;
}

/// Blocks of a cluster: the launch's cluster dimension.
Q4_BOTH constexpr int cluster(const PrefillConfig& c) { return c.share * c.split; }
/// Sums over parts of k that meet when a tile ends; then a cluster runs one tile and leaves.
Q4_BOTH constexpr int parts(const PrefillConfig& c) { return c.split * c.teams; }
Q4_BOTH constexpr bool one_tile(const PrefillConfig& c) { return parts(c) > 1; }
/// Slices of a thread's sums, each added up by one of the first parts: a power of two, and of two floats at least, or of
/// two pairs.
Q4_BOTH constexpr int slices(const PrefillConfig& c) {
  int n = 1;
  while (2 * n <= parts(c) && (c.p.gated ? 16 : 8) * n <= c.rows) n *= 2;
  return n;
}
/// Clusters that run at a time: each within one GPC, which has 16 or 18 multiprocessors, or fewer. Of 132, as
/// cuOccupancyMaxActiveClusters of an H200 says.
Q4_BOTH constexpr int workers(const PrefillConfig& c, const Limits& limits) {
  const int of_132[] = {132, 66, 39, 30, 22, 17};
  return larger(1, limits.units * of_132[cluster(c) - 1] / 132);
}

/// k16 steps of one wgmma commit: more where a step is shorter than its bookkeeping, one where registers are short.
Q4_BOTH constexpr int steps(const PrefillConfig& c) {
  if (c.p.grouped && (c.rows == 80 || c.rows == 96 || (c.rows == 64 && c.strips == 4))) return 2;
  return c.rows <= 32 ? 4 : c.rows == 64 ? (c.strips == 4 ? 1 : 4) : c.rows == 128 && consumers(c) <= 2 ? 2 : 1;
}

/// Batches of wgmma in flight while the next is converted. Two want a third set of fragments, and a slab whole turns of
/// them, so four.
Q4_BOTH constexpr int in_flight(const PrefillConfig& c) {
  return c.p.grouped && steps(c) <= 2 && !(c.rows >= 80 && consumers(c) == 4) ? 2 : 1;
}

// ---- shared memory: ring | sums or out | barriers; or x ring | sums or out | codes and meta ring | barriers --------
/// x travels with the codes, two tiles of 64 k a stage: two barriers less a slab, where slabs are short. (A cut tile's
/// sums leave room for too few such stages; grouped: not measured above 32 rows.)
Q4_BOTH constexpr bool one_ring(const PrefillConfig& c) {
  return c.share == 1 && c.rows <= (c.p.grouped || c.cut ? 32 : 128);
}
Q4_BOTH constexpr int x_tile_bytes(const PrefillConfig& c) { return c.rows * 128; }
/// Sets of meta that a slab needs.
Q4_BOTH constexpr int slab_sets(const Problem& p) { return p.unit < kSlabRows ? kSlabRows / p.unit : 1; }
/// A stage: both tiles of x in one ring | codes of all strips | their meta | its barriers, full and empty: then one
/// offset leads to all of it. Tiles of x begin at multiples of 1024.
Q4_BOTH constexpr int stage_codes(const PrefillConfig& c) { return one_ring(c) ? 2 * x_tile_bytes(c) : 0; }
Q4_BOTH constexpr int stage_meta(const PrefillConfig& c) { return stage_codes(c) + c.strips * kSlabBytes; }
Q4_BOTH constexpr int stage_bytes(const PrefillConfig& c) {
  const int all = stage_meta(c) + c.strips * slab_sets(c.p) * kMetaBytes + 16;
  return one_ring(c) ? round_up(all, 1024) : all;
}
/// fp32 slices of a tile that one block gathers and adds: one of every part for each of its teams.
Q4_BOTH constexpr int gather_bytes(const PrefillConfig& c) {
  return c.teams * c.strips * c.rows * 256 / slices(c) * parts(c);
}
/// Wide tiles lay those over the x ring, which is free by then.
Q4_BOTH constexpr bool gather_in_ring(const PrefillConfig& c) { return one_tile(c) && c.rows >= 128; }
Q4_BOTH constexpr int out_bytes(const PrefillConfig& c) {
  return gather_in_ring(c) ? 0 : one_tile(c) ? gather_bytes(c) : c.strips * c.rows * 128;
}

constexpr int kPrefillShared = 232448;  // what a block of sm_90 can have
Q4_BOTH constexpr int ring_space(const PrefillConfig& c) { return kPrefillShared - 2048 - out_bytes(c); }
/// Rings hold whole turns of the teams: a stage then always belongs to one team, which cannot wait for its next phase
/// before it has met this one. (Parity alone would let a team that is ahead pass a barrier one phase early.)
Q4_BOTH constexpr int whole_turns(int stages, int turn) { return stages - stages % turn; }
Q4_BOTH constexpr int x_stages(const PrefillConfig& c);
/// Stages of codes, 128 k each: enough to keep 50 to 100 KB on the way.
Q4_BOTH constexpr int stages(const PrefillConfig& c) {
  const int most = c.strips == 1 ? 12 : 8;
  const int x_ring = one_ring(c) ? 0 : x_stages(c) * x_tile_bytes(c);
  return whole_turns(smaller(most, (ring_space(c) - x_ring) / stage_bytes(c)), c.teams);
}
/// Stages of x, 64 k each.
Q4_BOTH constexpr int x_stages(const PrefillConfig& c) {
  if (one_ring(c)) return 2 * stages(c);
  const int fit = (ring_space(c) - stage_bytes(c)) / (x_tile_bytes(c) + stage_bytes(c) / 2);
  return whole_turns(smaller(8, fit), 2 * c.teams);
}
/// The first tile begins at a multiple of 1024, the block's memory at one of 128.
Q4_BOTH constexpr int plain_bytes(const PrefillConfig& c) {
  const int x_ring = one_ring(c) ? 0 : x_stages(c) * (x_tile_bytes(c) + 16);  // with its barriers
  return 896 + x_ring + out_bytes(c) + stages(c) * stage_bytes(c) + 8 * (c.p.lora ? 3 : 1) + 4 * c.strips;
}
/// With LoRA, behind all that: which adapter a tile's rows have, then for each of some chunks low of its rows and, where
/// all rows have one adapter, B of its columns. What has no room is read from memory.
constexpr int kLoraInfoBytes = 16;
/// Whether low can be spread for wgmma where rows differ (prefill_spread.h), and its list of units and rows; with tables of
/// so many adapters it is faster (at 64 rows it was not).
constexpr int kSpreadUnits = 64;
Q4_BOTH constexpr int lora_spread_adapters(const PrefillConfig& c) { return c.rows == 128 ? 16 : 1 << 30; }
Q4_BOTH constexpr bool lora_spreads(const PrefillConfig& c) {
  return c.p.lora && !c.p.grouped && !c.cut && c.rows >= 128 && (one_tile(c) ? c.strips <= 2 : !c.p.residual);
}
Q4_BOTH constexpr int lora_spread_bytes(const PrefillConfig& c) {
  return lora_spreads(c) ? c.teams * kSpreadUnits * 16 + c.rows * 4 : 0;
}
Q4_BOTH constexpr int lora_low_bytes(const PrefillConfig& c) { return c.rows * kLoraRanks * 2; }
Q4_BOTH constexpr int lora_b_bytes(const PrefillConfig& c) { return c.strips * kStripTiles * 512; }
Q4_BOTH constexpr int lora_room(const PrefillConfig& c) {
  return kPrefillShared - round_up(plain_bytes(c), 16) - kLoraInfoBytes - lora_spread_bytes(c);
}
/// Chunks that have room for both: low alone is not worth it (4096x4096, m = 128: 15.8 us without, 16.4 with).
Q4_BOTH constexpr int lora_staged(const PrefillConfig& c) {
  const int room = lora_room(c) / (lora_low_bytes(c) + lora_b_bytes(c));
  return c.p.lora && !c.cut && consumers(c) <= 3 ? smaller(4, larger(0, room)) : 0;
}
Q4_BOTH constexpr int shared_bytes(const PrefillConfig& c) {
  if (!c.p.lora || c.cut) return plain_bytes(c);
  return round_up(plain_bytes(c), 16) + kLoraInfoBytes + lora_spread_bytes(c) +
         lora_staged(c) * (lora_low_bytes(c) + lora_b_bytes(c));
}

// ---- the launch -----------------------------------------------------------------------------------------------------
/// Rows of a box of the tensor map of x. Filling rows past m seems to cost TMA some 13 cycles each, so a tail asks for
/// few: rows that no box brings hold anything, and only meet sums that are not stored. Boxes are whole swizzle periods
/// of 8 rows.
Q4_BOTH constexpr int x_box_rows(const PrefillConfig& c, i64 m) {
  if (c.p.grouped) return c.rows == 80 ? 16 : smaller(c.rows, 32);  // row tiles have any number of rows
  if (m % c.rows == 0) return c.rows / c.share;
  if (m < c.rows) return round_up(ceil_div(static_cast<int>(m), c.share), 8);
  return smaller(c.rows / c.share, 32);
}
Q4_BOTH constexpr int tiles_n(const PrefillConfig& c) { return ceil_div(strips(c.p.n), c.strips * c.share); }
/// Grouped: of m row tiles.
Q4_BOTH constexpr i64 tiles(const PrefillConfig& c, i64 m) {
  return (c.p.grouped ? m : (m + c.rows - 1) / c.rows) * tiles_n(c);
}
/// Tiles cut over `workers` clusters.
Q4_BOTH constexpr int cut_tiles(const PrefillConfig& c, i64 tiles, int workers) {
  if (c.cut == 0 || tiles % workers == 0) return 0;
  const i64 most = tiles % workers + static_cast<i64>(c.cut - 1) * workers;
  return static_cast<int>(most < tiles ? most : tiles);
}
/// Blocks: a multiple of cluster(c).
Q4_BOTH constexpr i64 grid(const PrefillConfig& c, i64 m, const Limits& limits) {
  const i64 all = tiles(c, m), most = workers(c, limits);
  return (one_tile(c) || (all < most && !c.cut) ? all : most) * cluster(c);
}
// ---- LoRA within the launch (prefill_lora.h) ------------------------------------------------------------------------
/// How the first blocks shrink: rows of an item, which is a tile's or a part of it.
Q4_BOTH constexpr LoraShrinkConfig lora_shrink_config(const PrefillConfig& c) {
  LoraShrinkConfig s{c.p.bf16, 1, smaller(c.rows, 128), c.rows > 16 ? 4 : 2};
  s.cuts = cluster(c) > 1 ? cluster(c) : 0, s.warps = threads(c) / 32;
  s.ring = lora_ring(s, shared_bytes(c));
  return s;
}
/// Whether its queues fit.
Q4_BOTH constexpr bool lora_fits(const PrefillConfig& c) {
  return shared_bytes(lora_shrink_config(c)) <= shared_bytes(c) && c.p.lora && !c.p.grouped && !c.cut;
}
Q4_BOTH constexpr i64 lora_items(const PrefillConfig& c, i64 m) {
  const int rows = smaller(c.rows, 128);
  return (m + rows - 1) / rows;
}
constexpr int kLoraMostParts = 16;
/// Clusters that share an item, of so many that shrink.
Q4_BOTH constexpr int lora_parts(i64 items, int clusters) {
  return items >= clusters ? 1 : smaller(kLoraMostParts, clusters / static_cast<int>(items));
}
/// Microseconds on an H200 of the matmul alone, roughly.
Q4_BOTH constexpr double matmul_us(const PrefillConfig& c, i64 m) {
  const double weights = static_cast<double>(c.p.k) * c.p.n, read = weights / 6.5e6;
  const double product = weights * static_cast<double>(m) / (m <= 64 ? 280e6 : m <= 128 ? 360e6 : 390e6);
  return 3.5 + (read > product ? read : product);
}
/// What a launch before adds to it (measured from 2048x2048 to 8192x8192: 4.4 to 5 at m <= 64).
Q4_BOTH constexpr double lora_before_us(const PrefillConfig& c, i64 m) {
  return 4.6 + (m > 64 ? 2 : 0) + 0.6e-6 * static_cast<double>(m) * c.p.x_k;
}
/// From the start until low of m rows is there, of so many clusters within the launch: trips to memory, the units of a
/// block one after the other, and its bytes. Beside a short matmul, whose blocks all fill their rings meanwhile, a
/// multiprocessor reads some 28 KB a microsecond, beside a long one 60.
Q4_BOTH constexpr double lora_within_us(const PrefillConfig& c, const LoraLoad& load, i64 m, int clusters) {
  const i64 items = lora_items(c, m);
  const int most_rows = smaller(c.rows, 128), rows = m < most_rows ? static_cast<int>(m) : most_rows;
  const int parts = lora_parts(items, clusters), adapters = smaller(load.adapters, rows), octets = ceil_div(rows, 8);
  const int of_adapter = ceil_div(octets, adapters);  // octets
  int of_unit = 1;
  while (2 * of_unit <= lora_shrink_config(c).octets && parts * of_unit < load.chunks * larger(octets, adapters))
    of_unit *= 2;
  of_unit = smaller(of_unit, of_adapter);
  const int units = ceil_div(load.chunks * adapters * ceil_div(of_adapter, of_unit), parts);
  const i64 at_once = clusters / parts, turns = (items + at_once - 1) / at_once;
  const double kilobytes = 2e-3 * c.p.x_k / cluster(c) * (kLoraRanks + smaller(8 * of_unit, ceil_div(rows, adapters)));
  const double free = 20 + 1.5 * matmul_us(c, load.m), rate = free < 60 ? free : 60;
  const double all = static_cast<double>(turns * units);
  return 4.5 + (all - 1) * (cluster(c) > 1 ? 1.5 : 0.6) + all * kilobytes / rate;
}
/// How much later than without adapters such a launch ends. The first wave of tiles meets the first band of rows.
Q4_BOTH constexpr double lora_late_us(const PrefillConfig& c, const LoraLoad& load, int clusters, i64 waves) {
  const double matmul = matmul_us(c, load.m), late = lora_within_us(c, load, load.m, clusters) - matmul;
  if (waves <= 1) return late;
  const double first = lora_within_us(c, load, load.m < 1024 ? load.m : 1024, clusters) - matmul / waves;
  return late > first ? late : first;
}
/// Blocks of a launch that shrink, before those of the grid: what multiprocessors are left, or few of those that tiles
/// go round on, where that costs no wave; 0: none, or a launch before is faster.
Q4_BOTH constexpr int lora_blocks(const PrefillConfig& c, const LoraLoad& load, const Limits& limits) {
  if (!lora_fits(c) || load.invariant || load.chunks > kLoraMostChunks || load.m <= 0) return 0;
  const i64 all = workers(c, limits), used = grid(c, load.m, limits) / cluster(c), few = ceil_div(4, cluster(c));
  const auto waves = [&](i64 clusters) {
    return clusters > 0 ? (tiles(c, load.m) + clusters - 1) / clusters : 1 << 30;
  };
  i64 clusters = all - used < kLoraMostParts / cluster(c) ? all - used : kLoraMostParts / cluster(c);
  if (clusters < few) {
    if (waves(all - few) != waves(all)) return 0;
    clusters = few;
  }
  const int count = static_cast<int>(clusters);
  return lora_late_us(c, load, count, waves(all)) <= lora_before_us(c, load.m) ? count * cluster(c) : 0;
}
/// Whether low comes later than the matmul's own sums (kLoraFirst): then blocks ask for less at their start (4096x4096,
/// m = 16: 7.84 us to 7.72; m = 32 and 64 as without).
Q4_BOTH constexpr bool lora_first(const PrefillConfig& c, const LoraLoad& load, int blocks) {
  return blocks > 0 && lora_within_us(c, load, load.m, blocks / cluster(c)) > matmul_us(c, load.m);
}
Q4_BOTH constexpr i64 lora_grid(const PrefillConfig& c, const LoraLoad& load, const Limits& limits) {
  const i64 blocks = lora_blocks(c, load, limits), sum = grid(c, load.m, limits) + blocks;
  return one_tile(c) || sum < workers(c, limits) * cluster(c) ? sum : workers(c, limits) * cluster(c);
}
/// Blocks that a word waits for, of the tiles of one row of tiles; of low and these words, a row of them for each part of
/// each item.
Q4_BOTH constexpr int lora_readers(const PrefillConfig& c) { return tiles_n(c) * cluster(c); }
Q4_BOTH constexpr i64 lora_bytes(const PrefillConfig& c, const LoraLoad& load) {
  const i64 items = lora_items(c, load.m), words = items > kLoraMostParts ? items : kLoraMostParts;
  return load.m * load.chunks * kLoraRanks * 2 + words * lora_readers(c) * 4;
}

/// The workspace: counters, then two fp32 tiles a block.
Q4_BOTH constexpr i64 workspace_bytes(const PrefillConfig& c, i64 m, const Limits& limits) {
  if (!c.cut || m <= 0) return 0;
  return kCounterBytes + grid(c, m, limits) * 2 * tile_columns(c) * c.rows * 4;
}

Q4_BOTH constexpr bool valid(const PrefillConfig& c, const Limits& limits) {
  const bool known = (c.rows == 16 || c.rows == 32 || c.rows == 64 || c.rows == 128 || c.rows == 256 ||
                      (c.p.grouped && (c.rows == 80 || c.rows == 96))) &&
                     c.strips >= 1 && c.strips <= 4 && (c.teams == 1 || c.teams == 2) && c.split >= 1 && c.split <= 6 &&
                     (c.share == 1 || c.share == 2) && c.cut >= 0 && c.cut <= 2;
  if (!known || limits.arch != 90 || c.p.gather || shared_bytes(c) > limits.shared_bytes) return false;
  if (consumers(c) > (c.rows == 256 ? 2 : 4) || (c.rows == 256 && c.teams > 1)) return false;  // registers
  if (c.rows == 128 && c.strips == 4 && c.cut) return false;                                   // the same
  if (one_tile(c) && (c.share > 1 || c.cut)) return false;  // its cluster runs along k
  if (c.p.grouped && (c.p.grouped != kGroupedSorted || one_tile(c) || c.share > 1 || c.cut)) return false;
  if (slabs(c.p.k) / c.split < c.teams) return false;                    // every part has a slab
  if (c.split > 2 && tiles_n(c) * c.split > limits.units) return false;  // two parts fill the multiprocessors
  if (gather_in_ring(c) && gather_bytes(c) > x_stages(c) * x_tile_bytes(c)) return false;
  if (x_stages(c) < 4 * c.teams || stages(c) < 2 * c.teams) return false;      // a slab for each team, one to come
  if (c.cut && 2 * limits.units * c.strips * 4 > kCounterBytes) return false;  // one counter a tile and strip
  return !c.fold || (c.rows <= 32 && one_ring(c) && c.p.unit >= 32);
}

}  // namespace q4
