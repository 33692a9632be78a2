// How the remap kernel is launched: which of its two variants, and how rows and columns are divided over blocks.
#pragma once

#include <algorithm>

#include "kernels/device_limits.h"
#include "kernels/remap.h"
#include "runtime/choose/launch.hpp"
#include "runtime/choose/shape.hpp"

namespace q4::choose {

/// Blocks walk (row, column chunk) pairs with a grid stride, so that any number of rows fits one launch.
constexpr i64 remap_blocks(i64 rows, i64 cols, int threads) { return rows * ((cols + threads - 1) / threads); }
constexpr i64 kMostRemapBlocks = 1 << 16;
/// Staged: the map is read once for `together` rows, which pays once every one of `units` multiprocessors has so many;
/// two blocks' rows fit in a multiprocessor's `shared_bytes`.
constexpr int remap_together(i64 rows, i64 x_cols, int units, int shared_bytes) {
  int together = 4;
  while (together > 1 && (rows < together * static_cast<i64>(units) || 4 * together * x_cols > shared_bytes))
    together /= 2;
  return together;
}
constexpr i64 remap_shared_bytes(i64 x_cols, int together) { return 2 * together * x_cols; }
/// Staged: pieces of a row, so that few rows too keep `units` multiprocessors busy.
constexpr int remap_pieces(i64 rows, i64 cols, int units) {
  return static_cast<int>(
      rows >= units ? 1 : smaller(static_cast<int>(units / rows), static_cast<int>((cols + 511) / 512)));
}
/// Of a launch: few when elements are fetched one by one, many to keep rows of x on the way to shared memory.
constexpr int remap_threads(bool staged) { return staged ? 512 : 256; }

/// Whether plans permute x through shared memory: a row of it fits there, or x is only copied.
inline bool stages_rows(const MatrixShape& matrix, const Limits& limits) {
  return !matrix.mapped || remap_shared_bytes(matrix.k, 1) <= limits.shared_bytes;
}

struct RemapLaunch {
  LaunchShape shape;
  int together = 1, pieces = 1;  ///< of RemapArgs
};
/// Of a plan's own remap of m rows.
inline RemapLaunch remap_launch(const MatrixShape& matrix, i64 m, const Limits& limits) {
  RemapLaunch launch;
  const bool staged = stages_rows(matrix, limits);
  launch.shape.threads = remap_threads(staged);
  if (!matrix.mapped) {
    launch.shape.blocks = remap_blocks(m, matrix.packed_k / 8, launch.shape.threads);
  } else if (staged) {
    launch.together = remap_together(m, matrix.k, limits.units, limits.shared_bytes);
    const i64 turns = (m + launch.together - 1) / launch.together;
    launch.pieces = remap_pieces(turns, matrix.packed_k, limits.units);
    launch.shape.blocks = turns * launch.pieces;
    launch.shape.shared_bytes = static_cast<int>(remap_shared_bytes(matrix.k, launch.together));
  } else {
    launch.shape.blocks = remap_blocks(m, matrix.packed_k, launch.shape.threads);
  }
  launch.shape.blocks = std::min<std::int64_t>(launch.shape.blocks, kMostRemapBlocks);
  return launch;
}

}  // namespace q4::choose
