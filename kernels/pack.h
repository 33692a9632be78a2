// pack: GPTQ or AWQ code words, as checkpoints hold them, to the packed codes of layout.h; runs once, at load. unpack:
// the same words back. pack_meta: scales and zeros to the sets of layout.h; unpack_meta: back, where they are apart.
//
// Packing over qweight's own memory (k % 128 == 0, n % 64 == 0), where it is larger than the scratch memory, takes two
// steps. 64 columns of a row of qweight are a *piece*: 256 bytes of GPTQ's, 32 of AWQ's. The packed codes of a strip
// are as many pieces one after the other as qweight has rows. First each strip is packed into the places of its own
// pieces, so that piece (row, strip) holds the strip's piece `row`; then transpose.h moves all pieces.
#pragma once
#include "layout.h"

namespace q4 {

struct PackConfig {
  int awq = 0;     ///< source is AWQ [k, n/8], nibble order 0 2 4 6 1 3 5 7; else GPTQ [k/8, n]
  int pieces = 0;  ///< packed codes are in the pieces of qweight's rows instead of strip by strip
  int pairs = 0;   ///< the columns of W are gates, then ups, and packed as pairs (layout.h); not with `pieces`

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("awq", awq), v("pieces", pieces), v("pairs", pairs);
  }
};

Q4_BOTH constexpr int piece_words(bool awq) { return awq ? 8 : 64; }
/// Where word `word` of the packed codes is, when they are in pieces; `row_words` words from one row to the next.
Q4_BOTH constexpr i64 piece_place(i64 word, int k, i64 row_words, bool awq) {
  constexpr int kBlock = kSlabBytes / 4;
  const i64 block = word / kBlock, inside = word % kBlock, width = piece_words(awq);
  const i64 strip = block / slabs(k), row = block % slabs(k) * (kBlock / width) + inside / width;
  return row * row_words + strip * width + inside % width;
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
/// A block writes 64 columns of a slab, a thread 16 bytes of it; the words that they come from stand in shared memory.
Q4_BOTH constexpr i64 pack_blocks(int k, int n) { return codes_bytes(k, n) / kSlabBytes; }
Q4_BOTH constexpr int pack_shared_bytes() { return kSlabBytes; }

struct UnpackArgs {
  const u32* codes;
  const i32* packed;  ///< [source_k] packed row of each row of W; null: identity
  u32* words;         ///< receives words first .. first + count - 1 of qweight
  i64 first, count;
  i32 k;  ///< packed rows
  i32 n;
  i64 row_words = 0;  ///< in pieces, of `words`; the codes' rows have qweight's words
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

/// The block's words of qweight: 64 columns of 16 rows of GPTQ's, or of 128 rows of AWQ's. 0 past the ends.
template <PackConfig C>
Q4_DEVICE void stage_words(u32* staged, const PackArgs& a, int strip, int slab) {
  constexpr int kWidth = piece_words(C.awq), kRows = kSlabBytes / 4 / kWidth;
  const int width = C.awq ? a.n / 8 : a.n, height = C.awq ? a.source_k : a.source_k / 8;
  for (int i = thread_index(); i < kSlabBytes / 4; i += pack_threads()) {
    const int row = slab * kRows + i / kWidth, column = strip * kWidth + i % kWidth;
    staged[i] = row < height && column < width ? a.qweight[static_cast<i64>(row) * width + column] : 0u;
  }
}
/// Word `word` of a lane's 16 bytes from staged words.
template <PackConfig C>
Q4_DEVICE u32 staged_word(const u32* staged, int tile, int half, int lane, int word) {
  const int g = lane >> 2, t = lane & 3, first = half * 64 + word * kStepRows;
  u32 packed = 0;
  if constexpr (C.awq) {
    for (int i = 0; i < 8; ++i) {
      const int row = first + nibble_row(i, t), column = tile * kTileColumns + nibble_column(i, g);
      packed |= (staged[row * 8 + column / 8] >> (4 * awq_nibble(column & 7)) & 15u) << (4 * i);
    }
  } else {
    for (int high = 0; high < 2; ++high)  // rows 2 t and 2 t + 1 of the first eight, then of the second
      for (int second = 0; second < 2; ++second) {
        const int column = tile * kTileColumns + 8 * second + g;
        const u32 pair = staged[(first / 8 + high) * piece_words(false) + column] >> (8 * t) & 255u;
        packed |= ((pair & 15u) | pair >> 4 << 16) << (8 * high + 4 * second);
      }
  }
  return packed;
}

template <PackConfig C>
Q4_DEVICE void pack(const PackArgs& a) {
  const int lane = thread_index() & 31, half = thread_index() >> 5 & 1, tile = thread_index() >> 6;
  const int slab = block_index() % slabs(a.k), strip = block_index() / slabs(a.k);
  u32* staged = reinterpret_cast<u32*>(shared_memory());
  const bool in_order = !a.source && !C.pairs;
  if (in_order) {
    stage_words<C>(staged, a, strip, slab);
    sync_block();
  }
  u32 words[4] = {};
  for (int word = 0; word < 4; ++word) {
    if (in_order) {
      words[word] = staged_word<C>(staged, tile, half, lane, word);
      continue;
    }
    for (int i = 0; i < 8; ++i) {
      const i64 p = slab * kSlabRows + half * 64 + word * kStepRows + nibble_row(i, lane & 3);
      const int col = strip * kStripColumns + tile * kTileColumns + nibble_column(i, lane >> 2);
      const i64 row = a.source ? a.source[p] : p < a.source_k ? p : -1;
      if (row >= 0 && col < a.n)
        words[word] |= source_code<C>(a, row, C.pairs ? paired_source(col, a.n) : col) << (4 * i);
    }
  }
  const i64 index = static_cast<i64>(block_index()) * (kSlabBytes / 4) + thread_index() * 4;
  const i64 at = C.pieces ? piece_place(index, a.k, a.row_words, C.awq) : index;
  *reinterpret_cast<Words4*>(a.codes + at) = {words[0], words[1], words[2], words[3]};
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
    const CodePlace place = code_place(a.k, a.packed ? a.packed[r] : r, C.pairs ? paired_place(col, a.n) : col);
    const i64 at = C.pieces ? piece_place(place.word, a.k, columns, C.awq) : place.word;
    word |= (a.codes[at] >> (4 * place.nibble) & 15u) << (4 * i);
  }
  a.words[C.pieces ? row * a.row_words + column : here] = word;
}

struct MetaConfig {
  int words = 0;  ///< zeros are nibbles of qzeros [groups, n/8], to which `add` is added, else bytes [groups, n]
  int awq = 0;    ///< the nibbles are in AWQ's order
  int apart = 0;  ///< scales and zeros are apart, and their memory may be that of the source
  int pairs = 0;  ///< as PackConfig's

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("words", words), v("awq", awq), v("apart", apart), v("pairs", pairs);
  }
};

struct MetaArgs {
  const u16* scales;  ///< [groups, n]
  const u8* zeros;    ///< bytes or words
  const i32* group;   ///< [sets] group of each set, -1: padding; null: set i is of group i
  u8* meta;           ///< meta_bytes(k, n, unit); apart: [sets, n] fp16
  i32 sets, n;
  i32 add;
  u8* meta_zeros = nullptr;  ///< apart: [sets, n / 2]
};
/// One thread writes the scales and zeros of one g of one tile of one set.
Q4_BOTH constexpr i64 meta_blocks(i64 sets, int n) {
  return (sets * strips(n) * 32 + pack_threads() - 1) / pack_threads();
}
/// Which set and strip a thread has: neighbours are in memory where the sets are.
template <MetaConfig C>
Q4_DEVICE bool find_set(const MetaArgs& a, i64& set, i64& strip) {
  const i64 index = (static_cast<i64>(block_index()) * pack_threads() + thread_index()) >> 5;
  if constexpr (C.apart)
    set = index / strips(a.n), strip = index % strips(a.n);
  else
    set = index % a.sets, strip = index / a.sets;
  return index < static_cast<i64>(a.sets) * strips(a.n);
}

template <MetaConfig C>
Q4_DEVICE void pack_meta(const MetaArgs& a) {
  i64 set, strip;
  const bool inside = find_set<C>(a, set, strip);
  const int tile = thread_index() & 3, g = thread_index() >> 2 & 7;
  const i64 group = !inside ? -1 : a.group ? a.group[set] : set;
  u32 scales = 0, zeros = 0;
  for (int second = 0; second < 2; ++second) {
    const i64 packed = strip * kStripColumns + tile * kTileColumns + second * 8 + g;
    if (group < 0 || packed >= a.n) continue;
    const i64 col = C.pairs ? paired_source(static_cast<int>(packed), a.n) : packed;
    const i64 at = group * a.n + col;
    u32 zero = 0;
    if constexpr (C.words) {
      const int place = static_cast<int>(col & 7), nibble = C.awq ? awq_nibble(place) : place;
      zero = (reinterpret_cast<const u32*>(a.zeros)[at / 8] >> (4 * nibble)) + static_cast<u32>(a.add);
    } else {
      zero = a.zeros[at];
    }
    scales |= static_cast<u32>(a.scales[at]) << (16 * second);
    zeros |= (zero & 15u) << (4 * second);
  }
  if constexpr (C.apart) sync_block();  // a set is read before it is written over
  if (!inside) return;
  if constexpr (C.apart) {
    const i64 piece = set * strips(a.n) + strip;
    *reinterpret_cast<u32*>(a.meta + piece * kScaleBytes + scale_offset(tile, g)) = scales;
    a.meta_zeros[piece * kZeroBytes + zero_place(tile, g)] = static_cast<u8>(zeros);
  } else {
    u8* to = a.meta + (strip * a.sets + set) * kMetaBytes;
    *reinterpret_cast<u32*>(to + scale_offset(tile, g)) = scales;
    to[zero_offset(tile, g)] = static_cast<u8>(zeros);
  }
}

/// Scales and zeros that are apart, back to the tensors in the same memory: `meta` and `meta_zeros` become scales and
/// qzeros again. `add` as when they were packed; `scales`, `zeros` and `group` are not used.
template <MetaConfig C>
Q4_DEVICE void unpack_meta(const MetaArgs& a) {
  i64 set, strip;
  const bool inside = find_set<C>(a, set, strip);
  const int lane = thread_index() & 31;  // writes columns 2 lane and 2 lane + 1, and lanes 0 to 7 a word of zeros
  u8 *scales = a.meta, *zeros = a.meta_zeros;
  u32 pair = 0, word = 0;
  if (inside) {
    const i64 piece = set * strips(a.n) + strip;
    scales += piece * kScaleBytes, zeros += piece * kZeroBytes;
    for (int i = 0; i < 2; ++i) {
      const int col = 2 * lane + i, at = scale_offset(col / kTileColumns, col % 8) + 2 * (col / 8 % 2);
      pair |= static_cast<u32>(*reinterpret_cast<const u16*>(scales + at)) << (16 * i);
    }
    for (int i = 0; i < 8 && lane < 8; ++i) {
      const int col = 8 * lane + (C.awq ? awq_column(i) : i);
      const u32 zero = zeros[zero_place(col / kTileColumns, col % 8)] >> (4 * (col / 8 % 2));
      word |= ((zero - static_cast<u32>(a.add)) & 15u) << (4 * i);
    }
  }
  sync_block();
  if (!inside) return;
  reinterpret_cast<u32*>(scales)[lane] = pair;
  if (lane < 8) reinterpret_cast<u32*>(zeros)[lane] = word;
}

}  // namespace q4
