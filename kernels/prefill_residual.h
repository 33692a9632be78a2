// Prefill: where rows of out stand in shared memory, and how the residual comes there before them, 16 bytes a thread.
#pragma once
#include "epilogue.h"
#include "prefill_mma.h"

namespace q4::prefill_detail {

/// Columns of out, of a strip of it, and bytes of such a row.
template <PrefillConfig C>
inline constexpr int kOuts = out_columns(C.p, C.p.n);
template <PrefillConfig C>
inline constexpr int kStripOuts = out_columns(C.p, kStripColumns);
template <PrefillConfig C>
inline constexpr int kOutRowBytes = 2 * kStripOuts<C>;

/// Chunk `chunk` of row `row`: the tensor map's swizzle, of 128 bytes, or of 64 where a row has no more: bits of its
/// address from 4 on are flipped by those from 7 on.
template <PrefillConfig C>
Q4_DEVICE u32 out_place(int row, int chunk) {
  if constexpr (C.p.gated) {
    const u32 at = row * 64 + chunk * 16;
    return at ^ ((at >> 7 & 3) << 4);
  } else {
    return row * 128 + ((chunk ^ (row & 7)) << 4);
  }
}

/// Which chunk a thread of a warpgroup copies in pass `i` over rows of out.
template <PrefillConfig C>
struct ChunkPlace {
  static constexpr int kChunks = kStripOuts<C> / 8;
  int row, chunk;
  /// Whether it is one of `rows`, a multiple of 8.
  Q4_DEVICE bool within(int rows) const { return rows * kChunks % 128 == 0 || row < rows; }
  Q4_DEVICE ChunkPlace(const Place& at, int i)
      : row(i * (128 / kChunks) + at.thread / kChunks), chunk(at.thread % kChunks) {}
};

/// Which element of out comes of a thread's sums from `index` on, the i-th of them.
template <PrefillConfig C>
struct ElementPlace {
  int m, n;
  Q4_DEVICE ElementPlace(const Place& at, int column, int row, int index, int i) {
    const int e = C.p.gated ? index + i / 2 * 4 + i % 2 : index + i;  // of the gate
    m = row + 8 * (e / 4) + 2 * (at.lane % 4) + (e & 1);
    n = out_column(C.p, column + kTileColumns * at.tile + at.g + 8 * ((e / 2) & 1));
  }
};

/// Part of a tile's k that a warpgroup sums, among those of its cluster.
template <PrefillConfig C>
Q4_DEVICE int part_of(const Place& at) {
  return (C.split > 1 ? static_cast<int>(at.rank) : 0) * C.teams + at.team;
}

/// The residual of a whole tile, to the place of its rows of out.
template <PrefillConfig C>
Q4_DEVICE void load_residual(const MatmulArgs& a, const Shared<C>& s, const Place& at, int column, int row) {
  const u32 out = s.out + at.strip * (C.rows * 128);
  if (at.thread == 0) bulk_wait_read();  // the tile before has left
  named_barrier(1 + at.strip, 128);
#pragma unroll 2
  for (int i = 0; i < ceil_div(C.rows * ChunkPlace<C>::kChunks, 128); ++i) {
    const ChunkPlace<C> place(at, i);
    if (!place.within(C.rows)) continue;
    const int m = row + place.row, n = out_columns(C.p, column) + 8 * place.chunk;
    const bool inside = m < a.m && n < kOuts<C>;
    async_copy16(out + out_place<C>(place.row, place.chunk), a.residual + (inside ? m * a.residual_stride + n : 0),
                 inside ? 16 : 0);
  }
  async_commit();
}

/// The residual of the slice of a tile that a warpgroup stores itself, in registers: chunks as store_slice puts them
/// out, or elements as store_elements has them.
template <PrefillConfig C, int kSlice>
struct SliceResidual {
  static constexpr bool kRows = kSlice % 8 == 0;
  static constexpr int kPasses = ceil_div(2 * kSlice * ChunkPlace<C>::kChunks, 128);
  static constexpr int kElements = kSlice / (C.p.gated ? 2 : 1);
  static constexpr bool kEarly = kSlice <= 8;  ///< there are registers for it while the tile is multiplied
  Words4 chunks[C.p.residual && kRows ? kPasses : 1];
  u16 elements[C.p.residual && !kRows ? kElements : 1];

  Q4_DEVICE bool stores(const Place& at) const { return part_of<C>(at) < slices(C); }
  /// Before the tile is multiplied.
  Q4_DEVICE void begin(const MatmulArgs& a, const Place& at, int column, int row) {
    if (!stores(at)) return;
    if constexpr (kEarly) {
      load(a, at, column, row);
    } else {
      const int m = row + 2 * part_of<C>(at) * kSlice + at.thread;
      if (at.thread < 2 * kSlice && m < a.m) prefetch_l2(a.residual + m * a.residual_stride + out_columns(C.p, column));
    }
  }
  Q4_DEVICE void load(const MatmulArgs& a, const Place& at, int column, int row) {
    if constexpr (kRows) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        const ChunkPlace<C> place(at, i);
        const int m = row + 2 * part_of<C>(at) * kSlice + place.row, n = out_columns(C.p, column) + 8 * place.chunk;
        chunks[i] = {};
        if (place.within(2 * kSlice) && m < a.m && n < kOuts<C>)
          chunks[i] = *reinterpret_cast<const Words4*>(a.residual + m * a.residual_stride + n);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        const ElementPlace<C> place(at, column, row, part_of<C>(at) * kSlice, i);
        elements[i] = 0;
        if (place.m < a.m && place.n < kOuts<C>) elements[i] = a.residual[place.m * a.residual_stride + place.n];
      }
    }
  }
  Q4_DEVICE void put(u32 area, const Place& at) const {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const ChunkPlace<C> place(at, i);
      if (place.within(2 * kSlice)) store_shared4(area + out_place<C>(place.row, place.chunk), chunks[i]);
    }
  }
};

}  // namespace q4::prefill_detail
