// The packed weights, drawn once: the packer, every kernel and the tests call these index functions.
//
// Rows are put in *packed order* (runtime/choose/row_order.hpp): sorted by group, each group padded to whole *units* of
// `unit` rows (16, 32, 64, or a multiple of 128), k padded to a multiple of 128. Without act-order, and when the group
// size is itself a unit, packed row p is row p of W. Columns are padded to a multiple of 64 with scale 0.
//
// codes: strip (64 columns) > slab (128 packed rows) > tile (16 columns) > half (64 rows) > lane > word
//
//     strip 0, slab 0        4096 B  ┌ tile 0 │ half 0 │ 512 B: lane 0's 16 bytes, lane 1's, ... lane 31's
//              slab 1        4096 B  │        │ half 1 │ 512 B
//              ...                   │ tile 1 │ ...
//     strip 1, slab 0                └ tile 3 │ half 1 │
//
//   A lane = 4 g + t (g = 0..7, t = 0..3) owns columns g and g + 8 of its tile. Its word j (0..3) of half h covers the
//   16 rows from s = 64 h + 16 j of the slab; with c = s + 2 t, q(row, column) the code:
//
//     bit  31..28   27..24   23..20   19..16 | 15..12   11..8    7..4     3..0
//          c+9,g+8  c+9,g    c+1,g+8  c+1,g  | c+8,g+8  c+8,g    c,g+8    c,g
//
//   So a word is the A fragment of one mma.m16n8k16 (or of a k step of wgmma.m64nNk16, warp w = tile w): w & 0x000f000f
//   holds the pair (c, c+1) of column g, w & 0x00f000f0 that of column g + 8 four bits higher, w >> 8 the same for rows
//   c + 8 and c + 9. Prior art: Marlin's offline fragment order; the nibble interleave is ours.
//
// meta: strip > set, 160 bytes each; a set holds the scales and zeros of 64 columns for one unit of rows
//
//     0    [g 0..7][tile 0..3] u32: fp16 scale of column g (low) and of column g + 8 (high)
//     128  [g 0..7][tile 0..3] u8:  zero of column g (low nibble) and of column g + 8 (high nibble)
//
// Or *apart*, in the memory of the tensors that they were packed from (GPTQ's scales and qzeros, n % 64 == 0, a set a
// group): set > strip, the 128 bytes of scales in one memory, the 32 of zeros in another. A set's bytes are then where
// the tensors have those of the same 64 columns, so that packing in place moves nothing further than that.
#pragma once
#include "device.h"

namespace q4 {

constexpr int kTileColumns = 16;
constexpr int kStripTiles = 4;
constexpr int kStripColumns = kTileColumns * kStripTiles;
constexpr int kSlabRows = 128;
constexpr int kStepRows = 16;     // rows of one word, of one mma k step
constexpr int kTileBytes = 1024;  // one tile of one slab
constexpr int kSlabBytes = kStripTiles * kTileBytes;
constexpr int kMetaBytes = 160;                                                // one set
constexpr int kMetaZeros = 128;                                                // where its zeros begin
constexpr int kScaleBytes = kMetaZeros, kZeroBytes = kMetaBytes - kMetaZeros;  // of a set

Q4_BOTH constexpr int strips(int n) { return ceil_div(n, kStripColumns); }
Q4_BOTH constexpr int slabs(int k) { return ceil_div(k, kSlabRows); }
/// Sets of one strip: `k` packed rows, `unit` rows a set.
Q4_BOTH constexpr int sets(int k, int unit) { return ceil_div(k, unit); }

Q4_BOTH constexpr i64 codes_bytes(int k, int n) { return static_cast<i64>(strips(n)) * slabs(k) * kSlabBytes; }
Q4_BOTH constexpr i64 meta_bytes(int k, int n, int unit) {
  return static_cast<i64>(strips(n)) * sets(k, unit) * kMetaBytes;
}

/// Byte offset of a lane's 16 bytes (four words).
Q4_BOTH constexpr i64 codes_offset(int k, int strip, int slab, int tile, int half, int lane) {
  return (static_cast<i64>(strip) * slabs(k) + slab) * kSlabBytes + tile * kTileBytes + half * 512 + lane * 16;
}
Q4_BOTH constexpr i64 meta_offset(int k, int unit, int strip, int set) {
  return (static_cast<i64>(strip) * sets(k, unit) + set) * kMetaBytes;
}
/// Within a set: the u32 with the scales, and the byte with the zeros, of columns g and g + 8 of a tile.
Q4_BOTH constexpr int scale_offset(int tile, int g) { return (g * kStripTiles + tile) * 4; }
Q4_BOTH constexpr int zero_place(int tile, int g) { return g * kStripTiles + tile; }  // from the set's first zero
Q4_BOTH constexpr int zero_offset(int tile, int g) { return kMetaZeros + zero_place(tile, g); }

/// Nibble `i` (0..7) of a word of lane 4 g + t: which row of its 16 and which column of its tile.
Q4_BOTH constexpr int nibble_row(int i, int t) { return 2 * t + (i >= 4 ? 1 : 0) + (i & 2 ? 8 : 0); }
Q4_BOTH constexpr int nibble_column(int i, int g) { return g + (i & 1 ? 8 : 0); }

/// The inverse: where row `p` (in packed order) of column `col` is. `word` counts u32 from the first of codes.
struct CodePlace {
  i64 word;
  int nibble;
};
Q4_BOTH constexpr CodePlace code_place(int k, int p, int col) {
  const int row = p % kSlabRows, step = row % kStepRows, column = col % kTileColumns;
  const int lane = 4 * (column % 8) + step % 8 / 2;
  const i64 byte =
      codes_offset(k, col / kStripColumns, p / kSlabRows, col % kStripColumns / kTileColumns, row / 64, lane);
  return {byte / 4 + row % 64 / kStepRows, column / 8 + step / 8 * 2 + step % 2 * 4};
}

/// Pairs: a W whose columns are n / 2 gates, then their n / 2 ups (n % 16 == 0) may be packed so that each tile has eight
/// gates, then their ups. Whoever owns columns g and g + 8 of a tile then has both of a pair. The column of W at packed
/// column `column`, and its inverse.
Q4_BOTH constexpr int paired_source(int column, int n) {
  return column / kTileColumns * 8 + column % 8 + (column % kTileColumns < 8 ? 0 : n / 2);
}
Q4_BOTH constexpr int paired_place(int source, int n) {
  const int up = source >= n / 2 ? 1 : 0, pair = source - up * (n / 2);
  return pair / 8 * kTileColumns + 8 * up + pair % 8;
}
static_assert(paired_source(16 + 8 + 3, 64) == 32 + 8 + 3 && paired_place(32 + 8 + 3, 64) == 16 + 8 + 3);

static_assert(nibble_row(0, 1) == 2 && nibble_row(4, 1) == 3 && nibble_row(2, 0) == 8 && nibble_row(7, 3) == 15);

}  // namespace q4
