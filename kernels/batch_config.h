// What a launch of the batch kernel (batch.h) is compiled for, and how large it is.
//
//   grid    tiles of `rows` x 64 `strips`, each `split` times: parts of k
//   turn    64 rows of k for each team; a stage of the ring holds one turn
//   warp    one strip of one team, and at most 64 of the rows
#pragma once
#include "problem.h"

namespace q4 {

struct BatchConfig {
  Problem p;
  int rows = 64;   ///< of x in a tile: 16, 32, 64, 128 or 256
  int strips = 2;  ///< of 64 columns in a tile
  int teams = 1;   ///< they split k within a block
  int stages = 4;  ///< turns in shared memory: one is multiplied, the others are on their way
  int split = 1;   ///< blocks that split k, summed in the workspace by the last of them, in order

  /// Each tunable with the values worth trying; valid() knows which go together.
  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("rows", rows, 64, 16, 32, 128, 256), v("strips", strips, 2, 1, 4), v("teams", teams, 1, 2, 4);
    v("stages", stages, 4, 2, 3, 6), v("split", split, 1, 2, 3, 4, 6, 8);
  }
};

constexpr int kHalfRows = kSlabRows / 2;                // rows of k of a team's turn: one half of the layout
constexpr int kHalfBytes = kSlabBytes / 2;              // codes of a strip there
constexpr int kBatchXRowBytes = kHalfRows * 2;          // a row of x there
constexpr int kBatchGather = kStripTiles * 4 * 32 * 4;  // bytes of a warp's sums over 8 rows

Q4_BOTH constexpr int warp_rows(const BatchConfig& c) { return smaller(c.rows, 64); }
Q4_BOTH constexpr int row_warps(const BatchConfig& c) { return c.rows / warp_rows(c); }
Q4_BOTH constexpr int warps(const BatchConfig& c) { return c.strips * c.teams * row_warps(c); }
Q4_BOTH constexpr int threads(const BatchConfig& c) { return 32 * warps(c); }
/// The launch bound, so that 8 to 16 warps have registers on one multiprocessor: a warp's sums are half of
/// warp_rows(c).
Q4_BOTH constexpr int blocks_per_unit(const BatchConfig& c) {
  return larger(1, (c.rows == 16 ? 16 : c.rows == 32 ? 12 : 8) / warps(c));
}

// ---- shared memory: stages of [x: team, row, 128 bytes] [codes: team, strip] [meta: team, strip, set] ---------------
Q4_BOTH constexpr int half_sets(const Problem& p) { return p.unit < kHalfRows ? kHalfRows / p.unit : 1; }
Q4_BOTH constexpr int x_bytes(const BatchConfig& c) { return c.teams * c.rows * kBatchXRowBytes; }
Q4_BOTH constexpr int batch_codes_bytes(const BatchConfig& c) { return c.teams * c.strips * kHalfBytes; }
Q4_BOTH constexpr int stage_bytes(const BatchConfig& c) {
  return round_up(x_bytes(c) + batch_codes_bytes(c) + c.teams * c.strips * half_sets(c.p) * kMetaBytes, 128);
}
/// Afterwards the same memory takes the sums of half of the teams, then the rounded tile, 16 bytes further each row so
/// that fragments meet no bank conflict.
Q4_BOTH constexpr int sum_bytes(const BatchConfig& c) { return warps(c) / 2 * (warp_rows(c) / 8) * kBatchGather; }
Q4_BOTH constexpr int out_row_bytes(const BatchConfig& c) { return c.strips * kStripColumns * 2 + 16; }
Q4_BOTH constexpr int shared_bytes(const BatchConfig& c) {
  const int ring = c.stages * stage_bytes(c), end = c.rows * out_row_bytes(c);
  return larger(larger(ring, end), c.teams > 1 ? sum_bytes(c) : 0);
}

// ---- the launch -----------------------------------------------------------------------------------------------------
Q4_BOTH constexpr int tiles_n(const BatchConfig& c) { return ceil_div(strips(c.p.n), c.strips); }
Q4_BOTH constexpr i64 tiles(const BatchConfig& c, i64 m) { return (m + c.rows - 1) / c.rows * tiles_n(c); }
Q4_BOTH constexpr i64 grid(const BatchConfig& c, i64 m) { return tiles(c, m) * c.split; }
/// Turns of all of k; the last may be empty for some teams.
Q4_BOTH constexpr int turns(const BatchConfig& c) { return ceil_div(2 * slabs(c.p.k), c.teams); }
/// The workspace: counters, then the fp32 tile of each part.
Q4_BOTH constexpr i64 workspace_bytes(const BatchConfig& c, i64 m) {
  return c.split == 1 ? 0 : kCounterBytes + grid(c, m) * c.rows * c.strips * kStripColumns * 4;
}
/// Whether the counters suffice.
Q4_BOTH constexpr bool serves(const BatchConfig& c, i64 m) { return c.split == 1 || 4 * tiles(c, m) <= kCounterBytes; }

Q4_BOTH constexpr bool valid(const BatchConfig& c, const Limits& limits) {
  const bool known = (c.rows == 16 || c.rows == 32 || c.rows == 64 || c.rows == 128 || c.rows == 256) &&
                     (c.strips == 1 || c.strips == 2 || c.strips == 4) &&
                     (c.teams == 1 || c.teams == 2 || c.teams == 4) && c.stages >= 2 && c.stages <= 6 && c.split >= 1;
  if (!known || limits.arch < 80 || c.p.gather || shared_bytes(c) > limits.shared_bytes) return false;
  return warps(c) >= 2 && warps(c) <= (c.rows <= 32 ? 16 : 8) && turns(c) >= c.split;
}

}  // namespace q4
