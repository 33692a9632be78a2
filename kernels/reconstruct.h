// reconstruct: W as fp16 or bf16, row-major [k, n] in the source's row order, for a BLAS. A block writes one strip-slab
// (64 columns x 128 rows) through shared memory, so that each warp stores whole 128-byte rows.
#pragma once
#include "problem.h"

namespace q4 {

struct ReconstructConfig {
  Problem p;

  template <class V>
  Q4_BOTH constexpr void fields(V&&) {}
};

struct ReconstructArgs {
  const u8* codes;
  const u8* meta;
  const i32* x_map;  ///< when gather: packed row p is row x_map[p] of W
  u16* w;            ///< [x_k, columns] of W, columns from `first_strip` * 64 on
  i64 w_stride;
  i32 first_strip;  ///< a slice of W may be made at a time
  i32 columns;      ///< of the slice
  const u8* zeros;  ///< apart, as in MatmulArgs
};

Q4_BOTH constexpr int threads(const ReconstructConfig&) { return 256; }
constexpr int kReconstructPitch =
    kStripColumns + 2;  // u16 of a shared row: 33 words, so that rows meet different banks
Q4_BOTH constexpr int shared_bytes(const ReconstructConfig&) { return kSlabRows * kReconstructPitch * 2; }
Q4_BOTH constexpr i64 grid(const ReconstructConfig& c, i64 columns) {
  return static_cast<i64>(slabs(c.p.k)) * strips(static_cast<int>(columns));
}

template <ReconstructConfig C>
Q4_DEVICE void reconstruct(const ReconstructArgs& a) {
  constexpr bool kBf16 = C.p.bf16 != 0;
  const int slab = block_index() % slabs(C.p.k), slice_strip = block_index() / slabs(C.p.k);
  const int strip = a.first_strip + slice_strip;
  const int thread = thread_index(), lane = thread & 31, half = thread >> 5 & 1, tile = thread >> 6;
  const int g = lane >> 2, t = lane & 3;
  u16* staged = reinterpret_cast<u16*>(shared_memory());  // [128][pitch]

  const Words4 v = load_stream(a.codes + codes_offset(C.p.k, strip, slab, tile, half, lane));
  const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int step = half * 64 + j * kStepRows;
    const SetPlace set = set_place(C.p, a, strip, (slab * kSlabRows + step) / C.p.unit);
    const u32 scales = *reinterpret_cast<const u32*>(set.scales + scale_offset(tile, g));
    const int zeros = set.zeros[zero_place(tile, g)];
    const float scale[2] = {half_to_float(static_cast<u16>(scales)), half_to_float(static_cast<u16>(scales >> 16))};
    const int zero[2] = {zeros & 15, zeros >> 4};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int q = static_cast<int>(words[j] >> (4 * i) & 15u), c = i & 1;
      const int at = (step + nibble_row(i, t)) * kReconstructPitch + tile * kTileColumns + nibble_column(i, g);
      staged[at] = from_float<kBf16>(scale[c] * static_cast<float>(q - zero[c]));
    }
  }
  sync_block();
  const int column = slice_strip * kStripColumns + 2 * lane;
  for (int r = thread >> 5; r < kSlabRows; r += threads(C) / 32) {
    const int packed_row = slab * kSlabRows + r;
    int row = packed_row < C.p.x_k ? packed_row : -1;
    if constexpr (C.p.gather) row = a.x_map[packed_row];
    if (row < 0 || column >= a.columns) continue;
    const u32 pair = *reinterpret_cast<const u32*>(staged + r * kReconstructPitch + 2 * lane);
    *reinterpret_cast<u32*>(a.w + row * a.w_stride + column) = pair;
  }
}

}  // namespace q4
