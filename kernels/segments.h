// segments: y[row] += scale x[row] W, where W is a dense matrix that the row, or its segment of rows, names: what LoRAX
// calls beside a base model's layers (punica_kernels). Any GPU, any sizes; the products of one row are summed in an
// order that depends on sizes alone.
#pragma once
#include "device.h"

namespace q4 {

constexpr int kSegmentThreads = 256;

struct SegmentConfig {
  int bf16 = 0;
  int transposed = 0;  ///< W is [out, in], else [in, out]
  int vec = 8;         ///< elements of W that a lane loads at once: 8 where its rows have a multiple of 8, else 1
  int lanes = 1;       ///< lanes that share the sum over `in`, side by side: a power of two up to 32
  int rows = 1;        ///< of a block: 1: each has an index of its own; more: segments

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("bf16", bf16), v("transposed", transposed), v("vec", vec), v("lanes", lanes), v("rows", rows);
  }
};

struct SegmentArgs {
  u16* y;                  ///< [m, out], contiguous
  const u16* x;            ///< [m, in], contiguous
  const u16* const* w;     ///< of each segment, or of each index: [layers, ...]
  const i64* indices;      ///< with rows == 1: of each row; outside [0, count): none
  const i32 *begin, *end;  ///< else: of each segment
  i64 m, in, out, layer, count;
  float scale;
};

/// Outputs of a block: of each group of lanes one, or, where W's rows run along them, `vec`.
Q4_BOTH constexpr int outputs(const SegmentConfig& c) { return kSegmentThreads / c.lanes * (c.transposed ? 1 : c.vec); }
Q4_BOTH constexpr i64 grid(const SegmentConfig& c, i64 m, i64 out) {
  return (m + c.rows - 1) / c.rows * ((out + outputs(c) - 1) / outputs(c));
}

namespace segments_detail {

template <int kVec>
Q4_DEVICE void load(u16 (&v)[kVec], const u16* p) {
  if constexpr (kVec == 8) {
    const Words4 w = *reinterpret_cast<const Words4*>(p);
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = static_cast<u16>(words[i / 2] >> (i % 2 * 16));
  } else {
    v[0] = *p;
  }
}

/// Rows [first, last) of the block's times w.
template <SegmentConfig C>
Q4_DEVICE void multiply(const SegmentArgs& a, i64 row, i64 first, i64 last, const u16* w, i64 out) {
  constexpr bool kBf16 = C.bf16 != 0;
  constexpr int kOuts = C.transposed ? 1 : C.vec,
                kStep = C.transposed ? C.vec : 1;  // of a group; along `in`, of a lane
  const int lane = thread_index() % C.lanes;
  float acc[C.rows][kOuts] = {};
  if (out < a.out) {
    const u16* from = w + a.layer * a.in * a.out + (C.transposed ? out * a.in : out);
    for (i64 i = static_cast<i64>(lane) * kStep; i < a.in; i += C.lanes * kStep) {
      u16 weights[C.vec];
      load<C.vec>(weights, from + (C.transposed ? i : i * a.out));
#pragma unroll
      for (int r = 0; r < C.rows; ++r) {
        if (row + r < first || row + r >= last) continue;
        u16 x[kStep];
        load<kStep>(x, a.x + (row + r) * a.in + i);
#pragma unroll
        for (int j = 0; j < C.vec; ++j)
          acc[r][C.transposed ? 0 : j] += to_float<kBf16>(weights[j]) * to_float<kBf16>(x[C.transposed ? j : 0]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < C.rows; ++r)
#pragma unroll
    for (int j = 0; j < kOuts; ++j) {
#pragma unroll
      for (int step = 1; step < C.lanes; step *= 2) acc[r][j] += shuffle_xor(acc[r][j], step);
      if (lane != 0 || out >= a.out || row + r < first || row + r >= last) continue;
      u16* y = a.y + (row + r) * a.out + out + j;
      *y = from_float<kBf16>(to_float<kBf16>(*y) + a.scale * acc[r][j]);
    }
}

}  // namespace segments_detail

/// Launch: grid(C, m, out) blocks of kSegmentThreads.
template <SegmentConfig C>
Q4_DEVICE void segments(const SegmentArgs& a) {
  using namespace segments_detail;
  const i64 blocks = (a.out + outputs(C) - 1) / outputs(C), row = block_index() / blocks * C.rows;
  const i64 out =
      block_index() % blocks * outputs(C) + thread_index() / C.lanes * static_cast<i64>(C.transposed ? 1 : C.vec);
  if constexpr (C.rows == 1) {
    const i64 index = a.indices[row];
    if (index >= 0 && index < a.count) multiply<C>(a, row, row, row + 1, a.w[index], out);
  } else {
    for (i64 s = 0; s < a.count; ++s) {
      const i64 begin = a.begin[s], end = a.end[s];
      const i64 first = begin > row ? begin : row, last = end < row + C.rows ? end : row + C.rows;
      if (first < last) multiply<C>(a, row, first, last < a.m ? last : a.m, a.w[s], out);
    }
  }
}

}  // namespace q4
