// remap: x_new[r, c] = x[r, x_map[c]], any 16-bit elements; -1 (padding) gives zero. The separate gather of act-order,
// and the public column_remap. Staged, without a map: a copy whose rows begin at whole lines of the cache. Blocks walk
// their work with a grid stride. Grouped (grouped.h): rows of x come in sorted order, each permuted by its expert's map.
#pragma once
#include "device.h"

namespace q4 {

struct RemapConfig {
  int threads = 256;  ///< of a block
  int staged = 0;     ///< 1: a block keeps rows of x in shared memory; everything is aligned to 16 bytes and 8 columns
  int grouped = 0;    ///< 1: the last members of RemapArgs are used

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads), v("staged", staged), v("grouped", grouped);
  }
};

struct RemapArgs {
  const u16* x;
  u16* x_new;
  const i32* x_map;  ///< [cols]; null, when staged: column c is column c
  i64 x_stride, x_new_stride;
  i64 rows;
  i32 cols;          ///< of x_new and x_map
  i32 x_cols;        ///< of x: a map entry outside [0, x_cols) reads nothing and gives zero
  i32 pieces = 1;    ///< blocks that share rows, when staged
  i32 together = 1;  ///< rows that a block permutes at a time, when staged: 1, 2 or 4
  // Grouped, with a map: `rows` is only the most there can be.
  const i32* row_count = nullptr;    ///< rows of x_new
  const i32* x_rows = nullptr;       ///< [rows] row of x; null: the same
  const i32* row_experts = nullptr;  ///< [rows] whose map is meant; x_map is expert 0's
  i64 map_stride = 0;                ///< elements from an expert's map to the next one's
  // Grouped, without one: `rows` are x's.
  const i32* places = nullptr;  ///< [rows, topk] row of x_new of each of its slots, -1: none
  i32 topk = 1;
};

namespace remap_detail {

template <RemapConfig C>
Q4_DEVICE i64 row_count(const RemapArgs& a) {
  return C.grouped ? *a.row_count : a.rows;
}
template <RemapConfig C>
Q4_DEVICE const u16* x_row(const RemapArgs& a, i64 row) {
  return a.x + (C.grouped && a.x_rows ? a.x_rows[row] : row) * a.x_stride;
}
template <RemapConfig C>
Q4_DEVICE const i32* map_of(const RemapArgs& a, i64 row) {
  return C.grouped ? a.x_map + a.row_experts[row] * a.map_stride : a.x_map;
}

Q4_DEVICE u32 gather(const u16* row, int from, int x_cols) { return from >= 0 && from < x_cols ? row[from] : 0u; }

/// One column of kRows rows, as it stands in shared memory: one load brings them all.
template <int kRows>
struct alignas(2 * kRows) Column {
  u16 row[kRows];
};
template <int kRows>
struct alignas(4 * kRows) TwoColumns {
  Column<kRows> first, second;
};

/// `here` rows, the last one again up to kRows, into shared memory, column by column.
template <RemapConfig C, int kRows>
Q4_DEVICE void stage(const RemapArgs& a, i64 row, int here, void* to) {
  constexpr int kThreads = C.threads;
  const u16* from[kRows];
  for (int r = 0; r < kRows; ++r) from[r] = x_row<C>(a, row + smaller(r, here - 1));
  if constexpr (kRows == 1) {
    for (int i = thread_index(); i < a.x_cols / 8; i += kThreads)
      static_cast<Words4*>(to)[i] = reinterpret_cast<const Words4*>(from[0])[i];
  } else {
#pragma unroll 4
    for (int i = thread_index(); i < a.x_cols / 2; i += kThreads) {
      TwoColumns<kRows> two;
      for (int r = 0; r < kRows; ++r) {
        const u32 pair = reinterpret_cast<const u32*>(from[r])[i];
        two.first.row[r] = static_cast<u16>(pair), two.second.row[r] = static_cast<u16>(pair >> 16);
      }
      static_cast<TwoColumns<kRows>*>(to)[i] = two;
    }
  }
}

/// The map of eight columns from `col` on.
struct Map8 {
  Words4 low{}, high{};
  Q4_DEVICE Map8(const i32* x_map, int col, int end) {
    if (col >= end) return;
    low = *reinterpret_cast<const Words4*>(x_map + col), high = *reinterpret_cast<const Words4*>(x_map + col + 4);
  }
};

/// Those columns of the staged rows.
template <int kRows>
Q4_DEVICE void permute8(const RemapArgs& a, u16* x_new, int here, const void* staged, const Map8& map) {
  const u32 from[8] = {map.low.x, map.low.y, map.low.z, map.low.w, map.high.x, map.high.y, map.high.z, map.high.w};
  Column<kRows> columns[8];
  for (int i = 0; i < 8; ++i)  // as unsigned, -1 is past every column
    columns[i] =
        from[i] < static_cast<u32>(a.x_cols) ? static_cast<const Column<kRows>*>(staged)[from[i]] : Column<kRows>{};
  const auto pair = [&](int r, int i) { return columns[i].row[r] | static_cast<u32>(columns[i + 1].row[r]) << 16; };
  for (int r = 0; r < kRows; ++r)
    if (r < here)
      *reinterpret_cast<Words4*>(x_new + r * a.x_new_stride) = {pair(r, 0), pair(r, 2), pair(r, 4), pair(r, 6)};
}

/// Columns [begin, end) of `here` rows from `row` on, which have one map.
template <RemapConfig C, int kRows>
Q4_DEVICE void permute_rows(const RemapArgs& a, i64 row, int here, int begin, int end) {
  const int first = begin + thread_index() * 8;
  const i32* x_map = map_of<C>(a, row);
  Map8 map(x_map, first, kRows == 1 ? end : 0);  // on its way while x is waited for, where that counts
  stage<C, kRows>(a, row, here, shared_memory());
  sync_block();
  u16* x_new = a.x_new + row * a.x_new_stride;
  for (int col = first; col < end; col += C.threads * 8) {
    if (kRows > 1 || col > first) map = Map8(x_map, col, end);
    permute8<kRows>(a, x_new + col, here, shared_memory(), map);
  }
  sync_block();  // the next rows overwrite these
}

template <RemapConfig C, int kRows>
Q4_DEVICE void permute(const RemapArgs& a) {
  const i64 rows = row_count<C>(a);
  const int piece_cols = ceil_div(ceil_div(a.cols, 8), a.pieces) * 8;
  const i64 blocks = (rows + kRows - 1) / kRows;
  for (i64 i = block_index(); i < blocks * a.pieces; i += block_count()) {
    const i64 block = i / a.pieces;
    const int begin = static_cast<int>(i - block * a.pieces) * piece_cols, end = smaller(a.cols, begin + piece_cols);
    const i64 row = block * kRows;
    const int here = rows - row < kRows ? static_cast<int>(rows - row) : kRows;
    if constexpr (C.grouped && kRows > 1) {
      if (a.row_experts[row] != a.row_experts[row + here - 1]) {  // rows are sorted by expert
        for (int r = 0; r < here; ++r) permute_rows<C, 1>(a, row + r, 1, begin, end);
        continue;
      }
    }
    permute_rows<C, kRows>(a, row, here, begin, end);
  }
}

template <RemapConfig C>
Q4_DEVICE void copy(const RemapArgs& a) {
  const int eights = a.cols / 8;
  const i64 total = a.rows * eights;
  for (i64 i = static_cast<i64>(block_index()) * C.threads + thread_index(); i < total;
       i += static_cast<i64>(block_count()) * C.threads) {
    const i64 row = i / eights;
    const int col = static_cast<int>(i - row * eights) * 8;
    *reinterpret_cast<Words4*>(a.x_new + row * a.x_new_stride + col) =
        col < a.x_cols ? *reinterpret_cast<const Words4*>(a.x + row * a.x_stride + col) : Words4{};
  }
}

/// Grouped: a warp brings a piece of a row of x once, and puts it in all its places.
template <RemapConfig C>
Q4_DEVICE void copy_rows(const RemapArgs& a) {
  constexpr int kWarps = C.threads / 32, kAhead = 8;
  const int lane = thread_index() & 31, eights = a.cols / 8, pieces = ceil_div(eights, 32 * kAhead);
  for (i64 i = block_index() + static_cast<i64>(block_count()) * (thread_index() >> 5); i < a.rows * pieces;
       i += static_cast<i64>(block_count()) * kWarps) {
    const i64 row = i / pieces;
    const int first = static_cast<int>(i - row * pieces) * 32 * kAhead + lane;
    const Words4* x = reinterpret_cast<const Words4*>(a.x + row * a.x_stride);
    Words4 v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) v[j] = first + 32 * j < a.x_cols / 8 ? x[first + 32 * j] : Words4{};
    for (int slot = 0; slot < a.topk; ++slot) {
      const i32 place = a.places[row * a.topk + slot];
      if (place < 0) continue;
      Words4* x_new = reinterpret_cast<Words4*>(a.x_new + place * a.x_new_stride);
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (first + 32 * j < eights) x_new[first + 32 * j] = v[j];
    }
  }
}

}  // namespace remap_detail

template <RemapConfig C>
Q4_DEVICE void remap(const RemapArgs& a) {
  if constexpr (C.grouped) wait_previous_kernel();  // its matmul reads the row tiles before it waits for this kernel
  allow_next_kernel();                              // the matmul asks for its weights meanwhile
  if constexpr (C.staged) {
    if (!a.x_map) return C.grouped ? remap_detail::copy_rows<C>(a) : remap_detail::copy<C>(a);
    if (a.together == 4) return remap_detail::permute<C, 4>(a);
    if (a.together == 2) return remap_detail::permute<C, 2>(a);
    remap_detail::permute<C, 1>(a);
  } else {
    const int chunks = ceil_div(a.cols, C.threads);
    const i64 total = remap_detail::row_count<C>(a) * chunks;
    for (i64 i = block_index(); i < total; i += block_count()) {
      const i64 row = i / chunks;
      const int col = static_cast<int>(i - row * chunks) * C.threads + thread_index();
      if (col < a.cols)
        a.x_new[row * a.x_new_stride + col] = static_cast<u16>(
            remap_detail::gather(remap_detail::x_row<C>(a, row), remap_detail::map_of<C>(a, row)[col], a.x_cols));
    }
  }
}

}  // namespace q4
