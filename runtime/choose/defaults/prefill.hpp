// When the prefill kernel is used, and its Config for a shape that nobody has tuned: the least estimate over the space.
#pragma once

#include <optional>

#include "kernels/epilogue.h"
#include "kernels/prefill_config.h"
#include "runtime/choose/kernel.hpp"

namespace q4::choose {

/// A row's bits depend neither on m nor on where the row stands, for one config: how k is cut does not depend on m.
constexpr bool batch_invariant(const PrefillConfig& c) { return c.cut == 0; }

/// Nanoseconds on an H200. Its choice is within 1% of the fastest of 5 to 14 that were timed at 77 of 83 points (24
/// shapes, m = 16 to 1024, group 128), 3.4% behind at most; it was fitted to these, and to 130 pairs of others.
constexpr double prefill_estimate(const PrefillConfig& c, i64 m, const Limits& limits) {
  // One strip x 16 rows of k on one SM: its codes, their conversion and its wgmma hardly hide one another.
  const double step = c.rows == 16 ? 17.7 : c.rows == 32 ? 20.5 : c.rows == 64 ? 28.1 : c.rows == 128 ? 43.7 : 83;
  double part = 1;  // small things, as factors
  const int whole_slabs = slabs(c.p.k) / c.split, most_slabs = ceil_div(slabs(c.p.k), c.split);  // of a part
  // Where k is long and little is converted, fewer warps do as well, and save the sums of a second team.
  const bool long_part = c.split > 1 && whole_slabs >= (consumers(c) == 2 && c.rows == 32 ? 14 : 32) && !c.p.bf16 &&
                         c.p.unit % kSlabRows == 0;
  if (consumers(c) == 1)  // latencies show
    part *= c.rows == 128 ? 1.25 : c.rows == 64 ? 1.39 : c.rows == 256 || c.split == 1 ? 1.5 : long_part ? 1.09 : 1.13;
  if (c.strips == 1 && whole_slabs > 32)  // each block reads all of x for 64 columns
    part *= c.rows == 16 ? 1.3 : c.rows == 32 ? 1.2 : c.rows == 64 ? 1 : whole_slabs > 64 ? 1.04 : 1.01;
  else if (c.strips == 1 && whole_slabs > (c.rows == 16 ? 16 : 24) && c.rows <= 32)
    part *= c.rows == 16 ? 1.08 : 1.02;
  if (c.split > 2 && c.teams == 2 && c.strips > 1 && (c.rows > 16 || c.split > 3)) part *= 1.12;
  if (consumers(c) == 2 && c.teams == 1 && long_part && c.rows <= 32)
    part *= c.rows == 16 ? 0.97 : 1;
  else if (consumers(c) == 2 && c.rows <= 128 && !(c.rows == 128 && (one_tile(c) || slabs(c.p.k) <= 32)))
    part *= 1.04;
  if (c.rows <= 32 && c.strips == 2 && c.teams == 2 && c.split > 1 && whole_slabs >= 16) part *= 0.96;
  if (c.rows <= 32 && !c.fold) part *= 1.1;
  if (c.rows == 256 ? c.share == 1 : c.share == 2) part *= 1.04;  // traffic of x
  if (c.strips == 4)
    part *= c.rows == 128 ? (c.split == 1 ? 1.01 : 1.05) : c.rows <= 32 && !c.cut && c.split == 1 ? 0.94 : 1.03;
  if (c.rows == 128 && c.teams == 2) part *= c.strips == 1 && c.p.unit >= 64 ? 0.99 : 1.031;
  if (c.rows <= 64 && m > c.rows) part *= 1.02;  // converts each weight more than once
  const double tile = step * part * c.strips * most_slabs * 8;
  const int at_once = workers(c, limits);
  const double all = static_cast<double>(tiles(c, m));
  const i64 waves = (tiles(c, m) + at_once - 1) / at_once;
  const double sums = c.split == 1 ? 0 : c.rows == 256 ? 4.0 * c.rows * c.split : 250 + 1.8 * c.rows * c.split;
  const double ends = 2600 + 4 * c.rows + sums + (c.split > 2 && c.rows == 128 ? 880 * c.strips : 0) +
                      (c.split > 2 && c.strips == 4 ? 20 * c.rows : 0) + (c.split == 5 && c.rows > 16 ? 700 : 0);
  if (one_tile(c))
    return static_cast<double>(waves) * (tile + ends) + (c.rows < 256 ? 700 * static_cast<double>(waves - 1) : 0);
  if (c.cut && cut_tiles(c, tiles(c, m), at_once) > 0)
    return (c.rows == 64 ? 1.16 : 1.02) * tile * all / at_once + ends + 7000 + 42.0 * c.rows +
           (c.cut == 1 && waves > 1 && c.rows < 256 ? 2000 : 0);
  return static_cast<double>(waves) * (tile + 600) + ends;
}
/// `invariant`: only what batch_invariant() allows. A result that is not valid() means: no prefill for this problem.
constexpr PrefillConfig prefill_default(const Problem& p, i64 m, const Limits& limits, bool invariant = false) {
  const struct {
    int teams, split, share;
    bool cut;
  } kinds[] = {{2, 2, 1, false}, {2, 1, 1, false}, {1, 2, 1, false}, {1, 1, 1, false}, {1, 1, 2, false},
               {1, 1, 1, true},  {1, 1, 2, true},  {1, 3, 1, false}, {2, 3, 1, false}, {1, 4, 1, false},
               {2, 4, 1, false}, {1, 5, 1, false}, {2, 5, 1, false}, {1, 6, 1, false}, {2, 6, 1, false}};
  PrefillConfig best{p};
  double least = 1e30;
  for (int rows = 16; rows <= 256; rows *= 2) {
    if (rows < 256 && 4 * rows < m && !invariant) continue;  // converts each weight many times: energy, so clocks
    for (int strips = 1; strips <= 4; ++strips)
      for (const auto& kind : kinds) {
        const int cut = !kind.cut ? 0 : rows == 256 ? 1 : 2;
        if (kind.split == 5 && kind.teams == 2 && rows > 16) continue;  // not measured
        // Sets of 64 rows: their ends hide behind another team. Of 32: even at best.
        const bool folds = p.unit % kSlabRows == 0 || (p.unit == 64 && kind.teams == 2);
        const int fold = rows <= 32 && kind.share == 1 && folds;
        const PrefillConfig c{p, rows, strips, kind.teams, kind.split, kind.share, cut, fold};
        if (!valid(c, limits) || (invariant && !batch_invariant(c))) continue;
        const double estimate = prefill_estimate(c, m, limits);
        if (estimate < least) least = estimate, best = c;
      }
  }
  return best;
}

struct PrefillPolicy {
  using Config = PrefillConfig;
  static constexpr const char *name = "prefill", *header = "prefill.h", *type = "PrefillConfig",
                              *arguments = "MatmulArgs";
  static constexpr bool overlaps = true;  // x comes after the wait, and all that is written after x
  static std::optional<PrefillConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return prefill_default(p, static_cast<int>(m), limits);
  }
  static PrefillConfig invariant(const Problem& p, const Limits& limits) {
    return prefill_default(p, 64, limits, true);
  }
  static TensorBoxes boxes(const PrefillConfig& c, i64 m) {
    return {x_box_rows(c, m), c.rows, kStripColumns, out_columns(c.p, kStripColumns)};
  }
  /// Tensor copies of rows that straddle lines request twice as many of them from the L2. Few rows cost less than the
  /// copy, and behind several waves of tiles it hides (H200: worth 7 to 40% from m = 32 to 256 at n = 8192 and to 512
  /// at 4096).
  static bool copies(const Problem& p, i64 m) { return m > 16 && m * p.n <= 1 << 21; }
};

}  // namespace q4::choose
