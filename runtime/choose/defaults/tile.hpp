// When the tile kernel is used, and its Config for a shape that nobody has tuned.
#pragma once

#include <optional>

#include "kernels/tile.h"

namespace q4::choose {

/// By reasoning, not measured: many blocks first (two a unit), then few readings of the weights.
constexpr TileConfig tile_default(const Problem& p, i64 m, const Limits& limits) {
  TileConfig c{p};
  c.half2 = !p.bf16;
  c.rows = 32;
  const int most = p.unit < 64 ? 64 : 128;  // several sets of meta a thread, and 128 rows spill on gfx1030
  while (c.rows < most && c.rows < m && strips(p.n) * ((m + 2 * c.rows - 1) / (2 * c.rows)) >= 2 * limits.units)
    c.rows *= 2;
  return c;
}

struct TilePolicy {
  using Config = TileConfig;
  static constexpr const char *name = "tile", *header = "tile.h", *type = "TileConfig", *arguments = "MatmulArgs";
  static std::optional<TileConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    if (m < 16) return std::nullopt;
    return tile_default(p, m, limits);
  }
  static TileConfig invariant(const Problem& p, const Limits&) { return {.p = p, .half2 = !p.bf16, .rows = 64}; }
};

}  // namespace q4::choose
