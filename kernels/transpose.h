// transpose: a matrix of pieces of 256 or 32 bytes becomes its transpose in the same memory; copy_rows: columns of 16 bytes to rows
// of their own. Both serve packing in place (pack.h).
//
// Where piece d of the result comes from is a permutation; its cycles are cut into *chains* that groups of lanes walk
// side by side, each moving one piece after the other to where the one before it was. What begins a chain is saved first: the
// chain before it ends with that piece.
#pragma once
#include "device.h"

namespace q4 {

struct TransposeConfig {
  int save = 0;    ///< 1: save what begins each chain; 0: move
  int lanes = 32;  ///< that move a piece, 8 bytes each: 32 or 4

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("save", save), v("lanes", lanes);
  }
};

struct TransposeArgs {
  u8* pieces;          ///< [rows, columns] before, [columns, rows] after
  u8* saved;           ///< [chains] pieces
  const i32* starts;   ///< [chains] place that a chain fills first
  const i32* lengths;  ///< [chains] places that it fills
  const i32* next;     ///< [chains] chain whose beginning is what it ends with
  i32 chains, rows, columns;
};

/// Where piece `place` of the transpose is before.
Q4_BOTH constexpr i64 transpose_from(i64 place, int rows, int columns) { return place % rows * columns + place / rows; }
Q4_BOTH constexpr int transpose_threads() { return 256; }
Q4_BOTH constexpr i64 transpose_blocks(int chains, int lanes) { return ceil_div(chains, transpose_threads() / lanes); }

template <TransposeConfig C>
Q4_DEVICE void transpose(const TransposeArgs& a) {
  const int chain = block_index() * (transpose_threads() / C.lanes) + thread_index() / C.lanes;
  const int lane = thread_index() % C.lanes;
  if (chain >= a.chains) return;
  auto* pieces = reinterpret_cast<Words2*>(a.pieces);
  auto* saved = reinterpret_cast<Words2*>(a.saved);
  i64 place = a.starts[chain];
  if constexpr (C.save) {
    saved[static_cast<i64>(chain) * C.lanes + lane] = pieces[place * C.lanes + lane];
  } else {
    const int length = a.lengths[chain];
    for (int i = 0; i < length; ++i) {
      const i64 from = transpose_from(place, a.rows, a.columns);
      pieces[place * C.lanes + lane] =
          i + 1 < length ? pieces[from * C.lanes + lane] : saved[static_cast<i64>(a.next[chain]) * C.lanes + lane];
      place = from;
    }
  }
}

struct CopyRowsConfig {
  int threads = 256;

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads);
  }
};

struct CopyRowsArgs {
  const Words4* from;
  Words4* to;
  i64 from_stride, to_stride;  ///< in 16 bytes
  i64 rows, columns;           ///< 16 bytes of a row
};
Q4_BOTH constexpr i64 copy_rows_blocks(i64 rows, i64 columns) { return (rows * columns + 255) / 256; }

template <CopyRowsConfig C>
Q4_DEVICE void copy_rows(const CopyRowsArgs& a) {
  const i64 index = static_cast<i64>(block_index()) * C.threads + thread_index(), row = index / a.columns;
  if (row < a.rows) a.to[row * a.to_stride + index % a.columns] = a.from[row * a.from_stride + index % a.columns];
}

}  // namespace q4
