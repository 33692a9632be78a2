// remap: x_new[r, c] = x[r, x_map[c]], any 16-bit elements; -1 (padding) gives zero. The separate gather of act-order,
// and the public column_remap.
#pragma once
#include "device.h"

namespace q4 {

struct RemapConfig {
  int threads = 256;
  int staged = 0;  ///< 1: a block keeps a row of x in shared memory; everything is aligned to 16 bytes and 8 columns

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads), v("staged", staged);
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
  i32 pieces;  ///< blocks that share a row, when staged
};

/// Blocks walk (row, column chunk) pairs with a grid stride, so that any number of rows fits one launch.
Q4_BOTH constexpr i64 remap_blocks(i64 rows, i64 cols, int threads) { return rows * ((cols + threads - 1) / threads); }
/// Staged: pieces of a row, so that few rows too keep `units` multiprocessors busy.
Q4_BOTH constexpr int remap_pieces(i64 rows, i64 cols, int units) {
  return static_cast<int>(
      rows >= units ? 1 : smaller(static_cast<int>(units / rows), static_cast<int>((cols + 511) / 512)));
}

namespace remap_detail {

Q4_DEVICE u32 gather(const u16* row, int from, int x_cols) { return from >= 0 && from < x_cols ? row[from] : 0u; }

/// Eight columns of one row.
Q4_DEVICE void gather8(const RemapArgs& a, const u16* row, u16* to, int col) {
  const Words4 first = *reinterpret_cast<const Words4*>(a.x_map + col);
  const Words4 second = *reinterpret_cast<const Words4*>(a.x_map + col + 4);
  const auto pair = [&](u32 low, u32 high) {
    return gather(row, static_cast<int>(low), a.x_cols) | gather(row, static_cast<int>(high), a.x_cols) << 16;
  };
  *reinterpret_cast<Words4*>(to + col) = {pair(first.x, first.y), pair(first.z, first.w), pair(second.x, second.y),
                                          pair(second.z, second.w)};
}

}  // namespace remap_detail

template <RemapConfig C>
Q4_DEVICE void remap(const RemapArgs& a) {
  allow_next_kernel();  // the matmul asks for its weights meanwhile
  if constexpr (C.staged) {
    u16* row_of_x = reinterpret_cast<u16*>(shared_memory());
    const int piece_cols = ceil_div(ceil_div(a.cols, 8), a.pieces) * 8;
    for (i64 i = block_index(); i < a.rows * a.pieces; i += block_count()) {
      const i64 row = i / a.pieces;
      const int begin = static_cast<int>(i - row * a.pieces) * piece_cols, end = smaller(a.cols, begin + piece_cols);
      const Words4* from = reinterpret_cast<const Words4*>(a.x + row * a.x_stride);
      for (int v = thread_index(); v < a.x_cols / 8; v += C.threads) reinterpret_cast<Words4*>(row_of_x)[v] = from[v];
      sync_block();
      for (int col = begin + thread_index() * 8; col < end; col += C.threads * 8)
        remap_detail::gather8(a, row_of_x, a.x_new + row * a.x_new_stride, col);
      sync_block();  // the next row overwrites this one
    }
  } else {
    const int chunks = ceil_div(a.cols, C.threads);
    const i64 total = a.rows * chunks;
    for (i64 i = block_index(); i < total; i += block_count()) {
      const i64 row = i / chunks;
      const int col = static_cast<int>(i - row * chunks) * C.threads + thread_index();
      if (col < a.cols)
        a.x_new[row * a.x_new_stride + col] =
            static_cast<u16>(remap_detail::gather(a.x + row * a.x_stride, a.x_map[col], a.x_cols));
    }
  }
}

}  // namespace q4
