// pack: GPTQ or AWQ code words, as checkpoints hold them, to the packed codes of layout.h; runs once, at load. unpack:
// the same words back. pack_meta: scales and zeros to the sets of layout.h.
//
// Packing over qweight's own memory (GPTQ, k % 128 == 0, n % 64 == 0), where it is larger than the scratch memory,
// takes two steps. Row r of qweight (r < k / 8) is a row of n / 64 *pieces* of 256 bytes; the packed codes of a strip
// are k / 8 pieces one after the other. First each strip is packed into the places of its own pieces, so that piece (r,
// strip) holds the strip's piece r; then transpose.h moves all pieces.
#pragma once
#include "layout.h"

namespace q4 {

struct PackConfig {
  int awq = 0;     ///< source is AWQ [k, n/8], nibble order 0 2 4 6 1 3 5 7; else GPTQ [k/8, n]
  int pieces = 0;  ///< packed codes are in the pieces of GPTQ's rows instead of strip by strip

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("awq", awq), v("pieces", pieces);
  }
};

constexpr int kPieceWords = 64;
/// Where word `word` of the packed codes is, when they are in pieces; `row_words` words from one row to the next.
Q4_BOTH constexpr i64 piece_place(i64 word, int k, i64 row_words) {
  const i64 block = word / (kSlabBytes / 4), inside = word % (kSlabBytes / 4);
  const i64 strip = block / slabs(k), row = block % slabs(k) * 16 + inside / kPieceWords;
  return row * row_words + strip * kPieceWords + inside % kPieceWords;
}

struct PackArgs {
  const u32* qweight;
  const i32* source;  ///< [packed k] source row, -1: padding; null: identity
  u32* codes;         ///< codes_bytes(k, n)
  i32 source_k;       ///< rows of W
  i32 k;              ///< packed rows
  i32 n;              ///< columns of W
  i64 row_words = 0;  ///< in pieces: from one row of `codes` to the next
};

Q4_BOTH constexpr int pack_threads() { return 256; }
/// One thread writes one word.
Q4_BOTH constexpr i64 pack_blocks(int k, int n) { return codes_bytes(k, n) / 4 / pack_threads(); }

struct UnpackArgs {
  const u32* codes;
  const i32* packed;  ///< [source_k] packed row of each row of W; null: identity
  u32* words;         ///< receives words first .. first + count - 1 of qweight
  i64 first, count;
  i32 k;  ///< packed rows
  i32 n;
  i64 row_words = 0;  ///< in pieces, of `words`; the codes' rows have n words
};
Q4_BOTH constexpr i64 unpack_blocks(i64 words) { return (words + pack_threads() - 1) / pack_threads(); }

/// Where AWQ keeps column `c` (0..7) of eight: its nibble; and the column that it keeps in nibble `i`.
Q4_BOTH constexpr int awq_nibble(int c) { return (c & 1) * 4 + c / 2; }
Q4_BOTH constexpr int awq_column(int i) { return i % 4 * 2 + i / 4; }
static_assert(awq_column(awq_nibble(3)) == 3 && awq_column(awq_nibble(6)) == 6);

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
  a.codes[C.pieces ? piece_place(index, a.k, a.row_words) : index] = packed;
}

template <PackConfig C>
Q4_DEVICE void unpack(const UnpackArgs& a) {
  const i64 here = static_cast<i64>(block_index()) * pack_threads() + thread_index();
  if (here >= a.count) return;
  const i64 columns = C.awq ? a.n / 8 : a.n, row = (a.first + here) / columns, column = (a.first + here) % columns;
  u32 word = 0;
  for (int i = 0; i < 8; ++i) {
    const int r = static_cast<int>(C.awq ? row : row * 8 + i);
    const int col = static_cast<int>(C.awq ? column * 8 + awq_column(i) : column);
    const CodePlace place = code_place(a.k, a.packed ? a.packed[r] : r, col);
    const i64 at = C.pieces ? piece_place(place.word, a.k, a.n) : place.word;
    word |= (a.codes[at] >> (4 * place.nibble) & 15u) << (4 * i);
  }
  a.words[C.pieces ? row * a.row_words + column : here] = word;
}

struct MetaConfig {
  int words = 0;  ///< zeros are nibbles of qzeros [groups, n/8], to which `add` is added, else bytes [groups, n]
  int awq = 0;    ///< the nibbles are in AWQ's order

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("words", words), v("awq", awq);
  }
};

struct MetaArgs {
  const u16* scales;  ///< [groups, n]
  const u8* zeros;    ///< bytes or words
  const i32* group;   ///< [sets] group of each set, -1: padding
  u8* meta;           ///< meta_bytes(k, n, unit)
  i32 sets, n;
  i32 add;
};
/// One thread writes the scales and zeros of one g of one tile of one set.
Q4_BOTH constexpr i64 meta_blocks(i64 bytes) { return (bytes / kMetaBytes * 32 + pack_threads() - 1) / pack_threads(); }

template <MetaConfig C>
Q4_DEVICE void pack_meta(const MetaArgs& a) {
  const i64 index = static_cast<i64>(block_index()) * pack_threads() + thread_index(), set = (index >> 5) % a.sets;
  const i64 strip = (index >> 5) / a.sets;
  if (strip >= strips(a.n)) return;
  const int tile = static_cast<int>(index & 3), g = static_cast<int>(index >> 2 & 7);
  const i64 group = a.group[set];
  u32 scales = 0, zeros = 0;
  for (int second = 0; second < 2; ++second) {
    const i64 col = strip * kStripColumns + tile * kTileColumns + second * 8 + g;
    if (group < 0 || col >= a.n) continue;
    const i64 at = group * a.n + col;
    u32 zero = 0;
    if constexpr (C.words) {
      const int inside = static_cast<int>(col & 7), nibble = C.awq ? awq_nibble(inside) : inside;
      zero = (reinterpret_cast<const u32*>(a.zeros)[at / 8] >> (4 * nibble)) + static_cast<u32>(a.add);
    } else {
      zero = a.zeros[at];
    }
    scales |= static_cast<u32>(a.scales[at]) << (16 * second);
    zeros |= (zero & 15u) << (4 * second);
  }
  u8* to = a.meta + (strip * a.sets + set) * kMetaBytes;
  *reinterpret_cast<u32*>(to + scale_offset(tile, g)) = scales;
  to[zero_offset(tile, g)] = static_cast<u8>(zeros);
}

}  // namespace q4
