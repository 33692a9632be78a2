// When the batch kernel is used, and its Config for a shape that nobody has tuned: the least estimate over the space.
#pragma once

#include <optional>

#include "kernels/batch_config.h"

namespace q4::choose {

/// Blocks that one multiprocessor holds.
constexpr int resident(const BatchConfig& c, const Limits& limits) {
  return larger(1, smaller(blocks_per_unit(c), (limits.shared_bytes + 1024) / (shared_bytes(c) + 1024)));
}
/// Nanoseconds on an H200, 5% from what was measured on the average of 28 points; elsewhere only the order counts.
constexpr double batch_estimate(const BatchConfig& c, i64 m, const Limits& limits) {
  const int units = larger(1, limits.units), room = resident(c, limits);
  const i64 rounds = (grid(c, m) + units - 1) / units;  // blocks that one multiprocessor meets, `room` at a time
  const i64 times = (rounds + room - 1) / room;
  const double waves = static_cast<double>(times), mma = 3.0 * c.rows, both = 68 + 1.75 * c.rows;
  const double half = mma > both ? mma : both;  // a strip's 64 of k: conversion hides from 64 rows on
  const int together = warps(c) * (rounds < room ? static_cast<int>(rounds) : room);
  const double few = together >= 8   ? 1
                     : together >= 4 ? 1.4 - 0.05 * together
                                     : 3.2 - 0.5 * together;  // latencies show
  const double block = half * few * c.strips * c.teams * ceil_div(turns(c), c.split);
  return static_cast<double>(rounds) * block + 3000 + 3500 * (waves - 1) +
         (c.split > 1 ? 500.0 * c.split + 36.0 * c.rows : 0);
}
/// Tiles of 128 columns; k is split over blocks only where tiles alone do not fill the device, which bounds the
/// workspace. `invariant`: the same for every m.
constexpr BatchConfig batch_default(const Problem& p, i64 m, const Limits& limits, bool invariant = false) {
  BatchConfig best{p};
  double least = 1e30;
  for (int rows = 128; rows >= 16; rows /= 2)
    for (int teams = 1; teams <= 4 && rows * teams <= 128; teams *= 2)
      for (int stages = 4; stages >= 2; --stages)
        for (int split = 1; split <= 8; split += split < 4 ? 1 : 2) {
          const BatchConfig c{p, rows, 2, teams, stages, split};
          if (!valid(c, limits) || !serves(c, m)) continue;
          if (split > 1 && (invariant || tiles(c, m) >= resident(c, limits) * limits.units)) continue;
          const double estimate = batch_estimate(c, m, limits);
          if (estimate < least) least = estimate, best = c;
        }
  return best;
}

struct BatchPolicy {
  using Config = BatchConfig;
  static constexpr const char *name = "batch", *header = "batch.h", *type = "BatchConfig", *arguments = "MatmulArgs";
  static constexpr bool overlaps = true;
  static std::optional<BatchConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return batch_default(p, m, limits);
  }
  static BatchConfig invariant(const Problem& p, const Limits& limits) { return batch_default(p, 64, limits, true); }
  /// Hopper's wgmma does the same work faster: not worth the tuner's time there.
  static bool searched(const Limits& limits) { return limits.arch != 90; }
};

}  // namespace q4::choose
