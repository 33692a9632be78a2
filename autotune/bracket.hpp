// Finds the m from which one way of computing beats another, by bracketing instead of a grid.
#pragma once

#include <cstdint>
#include <functional>

namespace q4::autotune {

struct Bracket {
  std::int64_t low = 0;   ///< the largest m known to favour the first way
  std::int64_t high = 0;  ///< the smallest m known to favour the second
};

/// Narrows (low, high] until high - low <= max(1, low / 8): kernels work in tiles of rows, so a finer answer is noise.
/// `second_wins(m)` is called for about log2 of the range in m; the ends are taken as known. It ends early where
/// `stop(m)` says so of the next m.
Bracket bracket_crossover(Bracket known, const std::function<bool(std::int64_t)>& second_wins,
                          const std::function<bool(std::int64_t)>& stop);

}  // namespace q4::autotune
