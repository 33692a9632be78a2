// combine: the end of a mixture of experts: out[t] = sum over slots s of weights[t, s] * y[places[t, s]], in order of
// the slots, in fp32, rounded once. Without weights each slot counts as it is. A slot without a place adds nothing.
#pragma once
#include "grouped.h"

namespace q4 {

struct CombineConfig {
  int threads = 64;  ///< few, so that one token's columns meet several multiprocessors
  int bf16 = 0;

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads), v("bf16", bf16);
  }
};

struct CombineArgs {
  const u16* y;          ///< [sorted rows, n], row stride y_stride
  const i32* places;     ///< [tokens, topk]
  const float* weights;  ///< [tokens, topk] or null
  u16* out;              ///< [tokens, n]
  i64 y_stride, out_stride, tokens;
  i32 n, topk;  ///< n: a multiple of 8
};

Q4_BOTH constexpr int threads(const CombineConfig& c) { return c.threads; }
/// A thread has eight columns of one token; blocks walk with a grid stride.
Q4_BOTH constexpr i64 blocks(const CombineConfig& c, i64 tokens, i64 n) {
  return (tokens * (n / 8) + c.threads - 1) / c.threads;
}

namespace combine_detail {

/// Some of a token's slots: their rows of y (-1: none) and weights.
constexpr int kSlots = 8;
struct Slots {
  i32 place[kSlots];
  float weight[kSlots];
  Q4_DEVICE void load(const CombineArgs& a, i64 token, int first) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const i64 slot = token * a.topk + first + s;
      place[s] = first + s < a.topk ? a.places[slot] : -1;
      weight[s] = a.weights && first + s < a.topk ? a.weights[slot] : 1.f;
    }
  }
};

}  // namespace combine_detail

/// The places and weights are no work of the kernel right before it.
template <CombineConfig C>
Q4_DEVICE void combine(const CombineArgs& a) {
  using namespace combine_detail;
  constexpr bool kBf16 = C.bf16 != 0;
  const int eights = a.n / 8;
  const i64 total = a.tokens * eights, begin = static_cast<i64>(block_index()) * C.threads + thread_index();
  Slots slots;
  if (begin < total) slots.load(a, begin / eights, 0);
  wait_previous_kernel();
  allow_next_kernel();
  for (i64 i = begin; i < total; i += static_cast<i64>(block_count()) * C.threads) {
    const i64 token = i / eights;
    const int column = static_cast<int>(i - token * eights) * 8;
    float sum[8] = {};
    for (int first = 0; first < a.topk; first += kSlots) {
      if (i != begin || first != 0) slots.load(a, token, first);
      Words4 v[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; ++s)
        v[s] = slots.place[s] < 0 ? Words4{}
                                  : *reinterpret_cast<const Words4*>(a.y + slots.place[s] * a.y_stride + column);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (slots.place[s] < 0) continue;
        const u32 pairs[4] = {v[s].x, v[s].y, v[s].z, v[s].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Float2 two = to_float2<kBf16>(pairs[j]);
          sum[2 * j] += slots.weight[s] * two.x;
          sum[2 * j + 1] += slots.weight[s] * two.y;
        }
      }
    }
    *reinterpret_cast<Words4*>(a.out + token * a.out_stride + column) = {
        from_float2<kBf16>(sum[0], sum[1]), from_float2<kBf16>(sum[2], sum[3]), from_float2<kBf16>(sum[4], sum[5]),
        from_float2<kBf16>(sum[6], sum[7])};
  }
}

}  // namespace q4
