// remap: x_new[r, c] = x[r, x_map[c]], any 16-bit elements; -1 (padding) gives zero. The separate gather of act-order,
// and the public column_remap.
#pragma once
#include "device.h"

namespace q4 {

struct RemapConfig {
  int threads = 256;

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads);
  }
};

struct RemapArgs {
  const u16* x;
  u16* x_new;
  const i32* x_map;  ///< [cols]
  i64 x_stride, x_new_stride;
  i64 rows;
  i32 cols;    ///< of x_new and x_map
  i32 x_cols;  ///< of x: a map entry outside [0, x_cols) reads nothing and gives zero
};

/// Blocks walk (row, column chunk) pairs with a grid stride, so that any number of rows fits one launch.
Q4_BOTH constexpr i64 remap_blocks(i64 rows, i64 cols, int threads) { return rows * ((cols + threads - 1) / threads); }

template <RemapConfig C>
Q4_DEVICE void remap(const RemapArgs& a) {
  const int chunks = ceil_div(a.cols, C.threads);
  const i64 total = a.rows * chunks;
  for (i64 i = block_index(); i < total; i += block_count()) {
    const i64 row = i / chunks;
    const int col = static_cast<int>(i - row * chunks) * C.threads + thread_index();
    if (col >= a.cols) continue;
    const int from = a.x_map[col];
    const bool inside = from >= 0 && from < a.x_cols;
    a.x_new[row * a.x_new_stride + col] = inside ? a.x[row * a.x_stride + from] : static_cast<u16>(0);
  }
}

}  // namespace q4
