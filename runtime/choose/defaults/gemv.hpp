// When the gemv kernel is used, and its Config for a shape that nobody has tuned.
#pragma once

#include <optional>

#include "kernels/gemv.h"

namespace q4::choose {

/// Results do not depend on m or on the row's place: a row's sums meet in the same order for every `rows`.
constexpr GemvConfig gemv_default(const Problem& p, i64 m, const Limits& limits) {
  GemvConfig c{p};
  c.half2 = !p.bf16;
  c.rows = m >= 8 ? 8 : m >= 3 ? 4 : m == 2 ? 2 : 1;
  c.tiles = strips(p.n) * 2 >= limits.units || c.rows == 8 ? 2 : 1;
  c.warps = slabs(p.k) >= 64 && c.rows * c.tiles <= 8 ? 16 : 8;
  if (limits.arch == 0) {  // more of either spills on AMD
    if (c.rows == 8) c.tiles = 1;
    if (c.rows * c.tiles > 4 || p.unit < 64) c.warps = 8;
  }
  return c;
}

struct GemvPolicy {
  using Config = GemvConfig;
  static constexpr const char *name = "gemv", *header = "gemv.h", *type = "GemvConfig", *arguments = "MatmulArgs";
  static std::optional<GemvConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return gemv_default(p, m, limits);
  }
  /// fp32: a half2 lane that overflows would repeat its neighbours' rows too.
  static GemvConfig invariant(const Problem& p, const Limits&) {
    return {.p = p, .half2 = 0, .rows = 4, .tiles = 2, .warps = 8};
  }
  /// From memory, in every block: worth it for one short row (8192 lost on an H200).
  static bool gathers(const Problem& p, i64 m, const Limits&) { return m == 1 && p.k <= 6144; }
};

}  // namespace q4::choose
