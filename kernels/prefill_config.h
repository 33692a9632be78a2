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
Q4_BOTH constexpr int shared_bytes(const PrefillConfig& c) {
  const int x_ring = one_ring(c) ? 0 : x_stages(c) * (x_tile_bytes(c) + 16);  // with its barriers
  return 1024 + x_ring + out_bytes(c) + stages(c) * stage_bytes(c) + 8 * (c.p.lora ? 3 : 1) + 4 * c.strips;
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
/// Rows that a block shrinks at once: an item. Few where there are few, more read A less often.
Q4_BOTH constexpr int lora_rows(const PrefillConfig& c) { return c.rows <= 32 ? 8 : c.rows == 64 ? 16 : 32; }
Q4_BOTH constexpr LoraShape lora_shape(const PrefillConfig& c) {
  return {c.p.bf16, lora_rows(c) / 8, threads(c), ceil_div(ceil_div(c.p.x_k, kLoraRows), threads(c) / 32)};
}
/// Microseconds on an H200 that the shrinking blocks need, each of which reads some 45 KB in one, and that the matmul
/// has, roughly.
Q4_BOTH constexpr double lora_us(const PrefillConfig& c, const LoraLoad& load, int blocks) {
  const i64 items = (load.m + lora_rows(c) - 1) / lora_rows(c);
  const int pairs = load.chunks * smaller(load.adapters, lora_rows(c));
  const double bytes = 2.0 * c.p.x_k * (kLoraRanks * pairs + lora_rows(c));
  return 1 + static_cast<double>((items + blocks - 1) / blocks) * (1 + bytes / 4.5e4);
}
Q4_BOTH constexpr double matmul_us(const PrefillConfig& c, i64 m) {
  const double weights = static_cast<double>(c.p.k) * c.p.n, read = weights / 8e6;
  const double product = weights * m / (m <= 64 ? 220e6 : m <= 128 ? 320e6 : 390e6);
  return 3.5 + (read > product ? read : product);
}
/// Blocks of a launch that shrink, before those of the grid: what multiprocessors are left, or few of those that tiles
/// go round on, where that costs no wave; 0: none, or too few for so much: a launch before adds 3 us at least.
Q4_BOTH constexpr int lora_blocks(const PrefillConfig& c, const LoraLoad& load, const Limits& limits) {
  if (!c.p.lora || c.p.grouped || c.cut || load.invariant || load.chunks > kLoraMostChunks || load.m > 512) return 0;
  const i64 all = workers(c, limits), used = grid(c, load.m, limits) / cluster(c), few = ceil_div(4, cluster(c));
  const auto waves = [&](i64 clusters) {
    return clusters > 0 ? (tiles(c, load.m) + clusters - 1) / clusters : 1 << 30;
  };
  i64 clusters = all - used < ceil_div(16, cluster(c)) ? all - used : ceil_div(16, cluster(c));
  if (clusters < few) {
    if (waves(all - few) != waves(all)) return 0;
    clusters = few;
  }
  const int blocks = static_cast<int>(clusters) * cluster(c);
  return lora_us(c, load, blocks) <= matmul_us(c, load.m) + 3 ? blocks : 0;
}
Q4_BOTH constexpr i64 lora_grid(const PrefillConfig& c, const LoraLoad& load, const Limits& limits) {
  const i64 blocks = lora_blocks(c, load, limits), sum = grid(c, load.m, limits) + blocks;
  return one_tile(c) || sum < workers(c, limits) * cluster(c) ? sum : workers(c, limits) * cluster(c);
}
/// Blocks that a word waits for, of the tiles of one row of tiles; of low and these words.
Q4_BOTH constexpr int lora_readers(const PrefillConfig& c) { return tiles_n(c) * cluster(c); }
Q4_BOTH constexpr i64 lora_bytes(const PrefillConfig& c, const LoraLoad& load) {
  const i64 items = (load.m + lora_rows(c) - 1) / lora_rows(c);
  return load.m * load.chunks * kLoraRanks * 2 + items * lora_readers(c) * 4;
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
