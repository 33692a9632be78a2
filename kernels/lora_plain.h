// shrink (lora.h) without tensor cores, for any GPU: a block for each row and chunk of 16 ranks, a warp for each rank.
#pragma once
#include "lora.h"

namespace q4 {

/// Launch: as lora_shrink of lora_shrink.h, with m chunks blocks.
template <LoraShrinkConfig C>
Q4_DEVICE void lora_shrink_plain(const LoraShrinkArgs& a) {
  static_assert(kLoraShrinkWarps == kLoraRanks, "a warp a rank");
  const int chunk = block_index() % a.chunks, lane = thread_index() & 31;
  const int rank = chunk * kLoraRanks + (thread_index() >> 5);
  const i64 row = block_index() / a.chunks;
  wait_previous_kernel();
  allow_next_kernel();  // not before: the next kernel reads x at once
  const int adapter = lora_adapter(a.lora, row);
  if (adapter < 0) return;
  const LoraEntry entry = a.lora.table[adapter];
  if (chunk >= entry.chunks) return;
  float sum = 0.f;
  for (int k = lane; k < a.k; k += 32)
    sum +=
        to_float<C.bf16 != 0>(a.x[row * a.x_stride + k]) * to_float<C.bf16 != 0>(entry.a[lora_a_place(a.k, k, rank)]);
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += shuffle_xor(sum, step);
  if (lane == 0) a.low[row * a.lora.low_stride + rank] = from_float<C.bf16 != 0>(sum * entry.scale);
}

}  // namespace q4
