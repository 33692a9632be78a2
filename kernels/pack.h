// pack: GPTQ or AWQ code words, as checkpoints hold them, to the packed codes of layout.h. Runs once, at load.
#pragma once
#include "layout.h"

namespace q4 {

struct PackConfig {
  int awq = 0;  ///< source is AWQ [k, n/8], nibble order 0 2 4 6 1 3 5 7; else GPTQ [k/8, n]

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("awq", awq);
  }
};

struct PackArgs {
  const u32* qweight;
  const i32* source;  ///< [packed k] source row, -1: padding; null: identity
  u32* codes;         ///< codes_bytes(k, n)
  i32 source_k;       ///< rows of W
  i32 k;              ///< packed rows
  i32 n;              ///< columns of W
};

Q4_BOTH constexpr int pack_threads() { return 256; }
/// One thread writes one word.
Q4_BOTH constexpr i64 pack_blocks(int k, int n) { return codes_bytes(k, n) / 4 / pack_threads(); }

/// Where AWQ keeps column `c` (0..7) of eight: its nibble.
Q4_BOTH constexpr int awq_nibble(int c) { return (c & 1) * 4 + c / 2; }

template <PackConfig C>
Q4_DEVICE u32 source_code(const PackArgs& a, i64 row, i64 col) {
  if constexpr (C.awq)
    return a.qweight[row * (a.n / 8) + col / 8] >> (4 * awq_nibble(static_cast<int>(col & 7))) & 15u;
  else
    return a.qweight[(row / 8) * a.n + col] >> (4 * static_cast<int>(row & 7)) & 15u;
}

template <PackConfig C>
Q4_DEVICE void pack(const PackArgs& a) {
  const i64 index = static_cast<i64>(block_index()) * pack_threads() + thread_index();
  // index = ((((strip * slabs + slab) * 4 + tile) * 2 + half) * 32 + lane) * 4 + word: codes_offset() / 4 + word
  const int word = static_cast<int>(index & 3), lane = static_cast<int>(index >> 2 & 31);
  const int half = static_cast<int>(index >> 7 & 1), tile = static_cast<int>(index >> 8 & 3);
  const i64 block = index >> 10;
  const i64 slab = block % slabs(a.k), strip = block / slabs(a.k);
  u32 packed = 0;
  for (int i = 0; i < 8; ++i) {
    const i64 p = slab * kSlabRows + half * 64 + word * kStepRows + nibble_row(i, lane & 3);
    const i64 col = strip * kStripColumns + tile * kTileColumns + nibble_column(i, lane >> 2);
    const i64 row = a.source ? a.source[p] : (p < a.source_k ? p : -1);
    if (row >= 0 && col < a.n) packed |= source_code<C>(a, row, col) << (4 * i);
  }
  a.codes[index] = packed;
}

}  // namespace q4
