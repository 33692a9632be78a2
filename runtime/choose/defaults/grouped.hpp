// Which kernel and Config serves a grouped product that nobody has tuned: rules fitted to measurements on an H200
// (kernels/README.md).
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "runtime/choose/defaults/decode.hpp"
#include "runtime/choose/defaults/gemv.hpp"
#include "runtime/choose/defaults/prefill.hpp"

namespace q4::choose {

/// Experts that so many rows meet, each row `topk` of them at random.
inline double active_experts(std::int64_t experts, std::int64_t topk, std::int64_t rows) {
  const auto all = static_cast<double>(experts), each = static_cast<double>(topk) / all;
  return each >= 1 ? all : all * (1 - std::pow(1 - each, static_cast<double>(rows)));
}
/// Rows of each of them.
inline double rows_of_expert(std::int64_t experts, std::int64_t topk, std::int64_t rows) {
  return static_cast<double>(rows * topk) / active_experts(experts, topk, rows);
}
/// Up to so many rows of an expert decode is faster than prefill.
constexpr double kGroupedDecodeRows = 6;

/// Configs of decode worth measuring: bricks of four tiles, side by side, or six tiles a warp.
inline std::vector<DecodeConfig> grouped_decode_space(const Problem& p, const Limits& limits) {
  std::vector<DecodeConfig> all;
  for (const int side : {1, 2, 3, 4, 6, 7})
    for (const int each : {4, 6, 2}) {
      if (each == 6 && side > 1) continue;
      DecodeConfig c{p};
      c.side = side, c.tiles = each * side, c.brick = each == 4 ? 4 : 2, c.early = each == 4;
      c.stagger = c.tiles < 16 || side == 1;
      c.teams = smaller(16 / side, slabs(p.k));
      c.depth = each != 6 && side * c.teams <= 12 && p.unit >= kSlabRows ? 2 : 1;
      while (c.depth > most_slabs(c)) --c.depth;
      if (each == 2) c.depth = smaller(2, most_slabs(c));
      c.x_slots = smaller(3, most_slabs(c));
      while (!valid(c, limits) && c.depth > 1) --c.depth;
      while (!valid(c, limits) && c.teams > 1) --c.teams, c.x_slots = smaller(3, most_slabs(c));
      if (valid(c, limits)) all.push_back(c);
    }
  return all;
}

/// The least rounds of tiles; every round costs its ends.
inline std::optional<DecodeConfig> grouped_decode(const Problem& p, double active, const Limits& limits) {
  std::optional<DecodeConfig> best;
  double least = 1e30;
  for (const DecodeConfig& c : grouped_decode_space(p, limits)) {
    const double rounds = std::ceil(active * column_blocks(c) / limits.units - 0.02);
    // A warp with two tiles has little in flight; one that is alone on its tiles, or teams of one slab, sum the most.
    const double factor = c.brick == 2 && c.tiles != 6 ? 1.1 : c.side == 1 ? 1.04 : 1;
    const double cost = rounds * (c.tiles * factor + 0.4);
    if (cost < least) least = cost, best = c;
  }
  return best;
}

/// `each`: rows of an expert.
inline std::optional<PrefillConfig> grouped_prefill(const Problem& p, double active, double each,
                                                    const Limits& limits) {
  std::optional<PrefillConfig> best;
  double least = 1e30;
  // Half of the experts have more rows than the average: from 110 on, two tiles of 128 would be common.
  const int rows = each <= 10 ? 16 : each <= 24 ? 32 : each <= 48 ? 64 : each <= 110 || each > 180 ? 128 : 256;
  for (const int strips : {4, 3, 2, 1}) {
    PrefillConfig c{.p = p, .rows = rows, .strips = strips};
    c.fold = rows <= 32 && p.unit >= kSlabRows;
    if (!valid(c, limits)) continue;
    const double items = active * std::ceil(each / rows) * tiles_n(c);
    const double cost = std::ceil(items / limits.units) * (strips + 0.3) *
                        (strips == 4   ? 1
                         : strips == 3 ? 1.03
                                       : 1.06);
    if (cost < least) least = cost, best = c;
  }
  return best;
}

/// A row's bits depend neither on the other rows nor on its place: one Config for every number of rows.
inline PrefillConfig grouped_invariant(const Problem& p) { return {.p = p, .rows = 64, .strips = 4}; }

inline GemvConfig grouped_gemv(const Problem& p, double each, const Limits& limits) {
  GemvConfig c = gemv_default(p, each >= 5 ? 8 : each >= 2.5 ? 4 : each >= 1.5 ? 2 : 1, limits);
  return c;
}

}  // namespace q4::choose
