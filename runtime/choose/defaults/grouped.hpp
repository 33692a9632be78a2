// Which kernel and Config serves a grouped product that nobody has tuned: rules fitted to measurements on an H200
// (kernels/README.md).
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "runtime/choose/defaults/decode.hpp"
#include "runtime/choose/defaults/gemv.hpp"
#include "runtime/choose/defaults/prefill.hpp"
#include "runtime/choose/defaults/tile.hpp"

namespace q4::choose {

/// Experts that so many rows meet, each row `topk` of them at random.
inline double active_experts(std::int64_t experts, std::int64_t topk, std::int64_t rows) {
  const auto all = static_cast<double>(experts), each = static_cast<double>(topk) / all;
  return each >= 1 ? all : all * (1 - std::pow(1 - each, static_cast<double>(rows)));
}
/// And how much that varies.
inline double active_spread(std::int64_t experts, std::int64_t topk, std::int64_t rows) {
  if (rows == 1) return 0;
  const double active = active_experts(experts, topk, rows);
  return 0.7 * std::sqrt(active * (1 - active / static_cast<double>(experts)));
}
/// Rows of each of them.
inline double rows_of_expert(std::int64_t experts, std::int64_t topk, std::int64_t rows) {
  return static_cast<double>(rows * topk) / active_experts(experts, topk, rows);
}
/// Up to so many rows of an expert decode is faster than prefill.
constexpr double kGroupedDecodeRows = 6;

/// Teams that divide the slabs evenly, if they are nearly as many as could be; else as many as have something to do.
constexpr int even_teams(int slabs, int most) {
  for (int teams = smaller(most, slabs); 4 * teams >= 3 * smaller(most, slabs); --teams)
    if (slabs % teams == 0) return teams;
  return ceil_div(slabs, ceil_div(slabs, most));
}

/// Configs of decode worth measuring: bricks of four tiles or of two, side by side; six tiles a warp where a team has
/// one slab and a slab one scale (else they spill).
inline std::vector<DecodeConfig> grouped_decode_space(const Problem& p, const Limits& limits) {
  std::vector<DecodeConfig> all;
  for (const int side : {1, 2, 3, 4, 6, 7})
    for (const int each : {4, 6, 2}) {
      DecodeConfig c{p};
      c.side = side, c.tiles = each * side, c.brick = each == 4 ? 4 : 2, c.early = each == 4;
      c.stagger = c.tiles < 16 || side == 1;
      c.teams = even_teams(slabs(p.k), 16 / side);
      if (each == 6 && (side > 1 || most_slabs(c) > 1 || p.unit < kSlabRows)) continue;
      c.depth = each == 2 || (each == 4 && side * c.teams <= 12 && p.unit >= kSlabRows) ? 2 : 1;
      while (c.depth > most_slabs(c)) --c.depth;
      c.x_slots = smaller(3, most_slabs(c));
      while (!valid(c, limits) && c.depth > 1) --c.depth;
      while (!valid(c, limits) && c.teams > 1) --c.teams, c.x_slots = smaller(3, most_slabs(c));
      if (valid(c, limits)) all.push_back(c);
    }
  return all;
}

/// The least rounds of tiles, each of which costs its ends. `active` experts, more or less `spread`.
inline std::optional<DecodeConfig> grouped_decode(const Problem& p, double active, double spread,
                                                  const Limits& limits) {
  std::optional<DecodeConfig> best;
  double least = 1e30;
  for (const DecodeConfig& c : grouped_decode_space(p, limits)) {
    double rounds = 0;
    for (const double experts : {active - spread, active, active + spread})
      rounds += std::ceil(experts * column_blocks(c) / limits.units - 1e-6) / 3;
    // Warps with two tiles have little in flight, and few warps side by side sum more.
    const double factor = c.tiles == 2 * c.side ? 1.15 : c.side == 2 ? 1.1 : c.side == 1 ? 1.04 : 1;
    const double cost = rounds * (c.tiles * factor + 1.2);
    if (cost < least) least = cost, best = c;
  }
  return best;
}

/// `each`: rows of an expert.
inline std::optional<PrefillConfig> grouped_prefill(const Problem& p, double active, double each,
                                                    const Limits& limits) {
  std::optional<PrefillConfig> best;
  double least = 1e30;
  // A tile with room for nearly every expert's rows, where that is not much more than they have: half of the experts
  // have more than the average, and a second tile is converted as the first one is.
  struct UpTo {
    double each;
    int rows;
  };
  int rows = 128;
  for (const auto& [most, fitting] : {UpTo{10, 16}, {24, 32}, {48, 64}, {66, 80}, {80, 96}, {110, 128}, {180, 256}})
    if (each <= most) {
      rows = fitting;
      break;
    }
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

/// As for a dense product of so many rows, with as many blocks as all experts have; not measured.
inline std::optional<TileConfig> grouped_tile(const Problem& p, double active, double each, const Limits& limits) {
  if (each < 12) return std::nullopt;
  TileConfig c{p};
  c.half2 = !p.bf16, c.rows = 32;
  while (c.rows < (p.unit < 64 ? 64 : 128) && c.rows < each && active * strips(p.n) >= 2.0 * limits.units) c.rows *= 2;
  if (!valid(c, limits)) return std::nullopt;
  return c;
}

inline GemvConfig grouped_gemv(const Problem& p, double each, const Limits& limits) {
  GemvConfig c = gemv_default(p, each >= 5 ? 8 : each >= 2.5 ? 4 : each >= 1.5 ? 2 : 1, limits);
  return c;
}

}  // namespace q4::choose
