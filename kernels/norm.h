// norm: x_new[r, c] = x[r, from] / sqrt(mean(x[r]^2) + epsilon) * weight[from], from = x_map[c]; without a map c itself.
// What a plan with PlanOptions::norm launches before kernels that do not normalize x themselves. A block a row, with a
// grid stride; rows and x_new are aligned to 16 bytes, and columns come in eights.
#pragma once
#include "device.h"

namespace q4 {

struct NormConfig {
  int threads = 512;  ///< of a block
  int bf16 = 0;       ///< elements are bf16, else fp16

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads), v("bf16", bf16);
  }
};

struct NormArgs {
  const u16* x;
  u16* x_new;
  const i32* x_map;   ///< [cols], -1: zero; null: column c is column c
  const u16* weight;  ///< [x_cols]
  i64 x_stride, x_new_stride;
  i64 rows;
  i32 cols;    ///< of x_new; from x_cols on they are zero without a map
  i32 x_cols;  ///< of x
  float epsilon;
};

Q4_BOTH constexpr int shared_bytes(const NormConfig& c) { return c.threads / 32 * 4; }

namespace norm_detail {

/// The sum of every thread's `v`, in each of them.
template <NormConfig C>
Q4_DEVICE float block_sum(float v) {
  constexpr int kWarps = C.threads / 32;
  float* sums = reinterpret_cast<float*>(shared_memory());
  for (int d = 16; d > 0; d /= 2) v += shuffle_xor(v, d);
  sync_block();  // the sums of the row before have been read
  if (thread_index() % 32 == 0) sums[thread_index() / 32] = v;
  sync_block();
  float sum = 0.f;
  for (int w = 0; w < kWarps; ++w) sum += sums[w];
  return sum;
}

}  // namespace norm_detail

template <NormConfig C>
Q4_DEVICE void norm(const NormArgs& a) {
  constexpr bool kBf16 = C.bf16 != 0;
  allow_next_kernel();  // the matmul asks for its weights meanwhile
  wait_previous_kernel();
  for (i64 row = block_index(); row < a.rows; row += block_count()) {
    const u16* x = a.x + row * a.x_stride;
    float sum = 0.f;
    for (int i = thread_index(); i < a.x_cols / 8; i += C.threads) {
      const Words4 v = reinterpret_cast<const Words4*>(x)[i];
      const u32 words[4] = {v.x, v.y, v.z, v.w};
      for (int e = 0; e < 4; ++e) {
        const Float2 pair = to_float2<kBf16>(words[e]);
        sum += pair.x * pair.x + pair.y * pair.y;
      }
    }
    sum = norm_detail::block_sum<C>(sum);
    const float scale = rsqrt_fast(sum / static_cast<float>(a.x_cols) + a.epsilon);
    const auto element = [&](int from) {
      return from < 0 || from >= a.x_cols ? 0.f : to_float<kBf16>(x[from]) * scale * to_float<kBf16>(a.weight[from]);
    };
    u32* x_new = reinterpret_cast<u32*>(a.x_new + row * a.x_new_stride);
    for (int c = thread_index(); c < a.cols / 2; c += C.threads) {
      const int first = a.x_map ? a.x_map[2 * c] : 2 * c, second = a.x_map ? a.x_map[2 * c + 1] : 2 * c + 1;
      x_new[c] = from_float2<kBf16>(element(first), element(second));
    }
  }
}

}  // namespace q4
