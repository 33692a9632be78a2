// The parts of LoRA on mma.sync: adding low B to a matmul's sums, and shrink.
#pragma once
#include "lora.h"
#include "mma.h"

namespace q4 {

/// Columns g and g + 8 of `tile` and rows row + 2 t, row + 2 t + 1 of so many octets, a float each as mma.m16n8k16 has
/// them: sums[octet][2 c + i] += low B; kScaled: times factor[c]. Rows past m get anything.
template <Problem P, int kOctets, bool kScaled = false>
Q4_DEVICE void lora_add(float (*sums)[4], const MatmulArgs& a, int tile, int row, int lane,
                        [[maybe_unused]] const float (&factor)[2]) {
  const int g = lane >> 2, t = lane & 3, left_rows = a.m - row - g;  // of octet 8 o: there if 8 o is below it
  const i32* ids = a.lora.adapter + row + g;
  const u16* lows = a.lora.low + static_cast<i64>(row + g) * a.lora.low_stride + 4 * t;
  const auto adapter_of = [&](int octet) {
    if (8 * octet >= left_rows) return -1;
    const i32 index = ids[8 * octet];
    return index >= 0 && index < a.lora.adapters ? index : -1;
  };
  const auto add = [&](int octet, const Words4& b, const u16* low_at, bool mine) {
    Words2 low{0, 0};
    if (mine) low = *reinterpret_cast<const Words2*>(low_at);
    const u32 frag[4] = {b.x, b.y, b.z, b.w};
    if constexpr (kScaled) {
      float d[4];
      mma_16816_first<P.bf16 != 0>(d, frag, low.x, low.y);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[octet][e] += factor[e / 2] * d[e];
    } else {
      mma_16816<P.bf16 != 0>(sums[octet], frag, low.x, low.y);
    }
  };
  const auto fragment = [&](const LoraEntry& entry, int chunk) {
    return *reinterpret_cast<const Words4*>(entry.b +
                                            ((static_cast<i64>(tile) * entry.chunks + chunk) * 32 + lane) * 8);
  };
  const int first = row < a.m ? lora_adapter(a.lora, row) : -1;
  bool same = true;
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet)
    if (8 * octet < left_rows) same = same && adapter_of(octet) == first;
#pragma unroll
  for (int step = 4; step < 32; step *= 2) same = shuffle_xor(same ? 1 : 0, step) && same;
  if (same) {  // one adapter, or none, for all rows
    if (first < 0) return;
    const LoraEntry entry = a.lora.table[first];
#pragma unroll 1
    for (int chunk = 0; chunk < entry.chunks; ++chunk) {
      const Words4 b = fragment(entry, chunk);
      const u16* low = lows + chunk * kLoraRanks;
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet, low += 8 * a.lora.low_stride)
        add(octet, b, low, 8 * octet < left_rows);
    }
    return;
  }
  const u16* low = lows;
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet, low += 8 * a.lora.low_stride) {
    int left = adapter_of(octet);
#pragma unroll 1
    for (;;) {  // the largest number among those left, with all of its rows
      int now = left;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) now = larger(now, shuffle_xor(now, step));
      if (now < 0) break;
      const bool taken = left == now;
      if (taken) left = -1;
      const LoraEntry entry = a.lora.table[now];
#pragma unroll 1
      for (int chunk = 0; chunk < entry.chunks; ++chunk)
        add(octet, fragment(entry, chunk), low + chunk * kLoraRanks, taken);
    }
  }
}

namespace lora_detail {

/// low of the block's rows whose adapter is `adapter`, for one chunk of ranks. `ids`: of the rows, in shared memory.
template <LoraShrinkConfig C>
Q4_DEVICE void shrink_adapter(const LoraShrinkArgs& a, int adapter, i64 row, int chunk, float* sums, const i32* ids) {
  const LoraEntry entry = a.lora.table[adapter];
  if (chunk >= entry.chunks) return;
  const int warp = thread_index() >> 5, lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
  const int blocks = ceil_div(a.k, kLoraRows);
  const u16* from = entry.a + static_cast<i64>(chunk) * blocks * 512 + lane * 8;
  float acc[C.octets][4] = {};
#pragma unroll 4
  for (int block = warp; block < blocks; block += kLoraShrinkWarps) {
    const Words4 first = *reinterpret_cast<const Words4*>(from + static_cast<i64>(block) * 512);
    const Words4 second = *reinterpret_cast<const Words4*>(from + static_cast<i64>(block) * 512 + 256);
    const u32 frag[2][4] = {{first.x, first.y, first.z, first.w}, {second.x, second.y, second.z, second.w}};
    const int k = block * kLoraRows + 8 * t;
#pragma unroll
    for (int octet = 0; octet < C.octets; ++octet) {
      const i64 r = row + 8 * octet + g;
      Words4 x{0, 0, 0, 0};
      if (r < a.m && k < a.k) x = *reinterpret_cast<const Words4*>(a.x + r * a.x_stride + k);
      mma_16816<C.bf16 != 0>(acc[octet], frag[0], x.x, x.y);
      mma_16816<C.bf16 != 0>(acc[octet], frag[1], x.z, x.w);
    }
  }
#pragma unroll
  for (int octet = 0; octet < C.octets; ++octet)
    *reinterpret_cast<Floats4*>(sums + ((warp * C.octets + octet) * 32 + lane) * 4) = {acc[octet][0], acc[octet][1],
                                                                                       acc[octet][2], acc[octet][3]};
  sync_block();
  for (int i = thread_index(); i < C.octets * 128; i += threads(C)) {
    float v = 0.f;
#pragma unroll
    for (int w = 0; w < kLoraShrinkWarps; ++w) v += sums[w * C.octets * 128 + i];
    const int in_lane = i / 4 % 32, e = i % 4, r = i / 128 * 8 + in_lane % 4 * 2 + e % 2;
    const int rank = chunk * kLoraRanks + in_lane / 4 + e / 2 * 8;
    if (row + r < a.m && ids[r] == adapter)
      a.low[(row + r) * a.lora.low_stride + rank] = from_float<C.bf16 != 0>(v * entry.scale);
  }
  sync_block();  // the sums' place is used again
}

}  // namespace lora_detail

/// Launch: grid(C, m, chunks) blocks of threads(C), shared_bytes(C) of dynamic shared memory; programmatic stream
/// serialization is allowed.
template <LoraShrinkConfig C>
Q4_DEVICE void lora_shrink(const LoraShrinkArgs& a) {
  constexpr int kRows = rows(C), kParts = C.octets == 1 ? 8 : 1;
  const int chunk = block_index() % a.chunks, part = block_index() / a.chunks % kParts;
  const i64 row = static_cast<i64>(block_index() / a.chunks / kParts) * kRows;
  float* sums = reinterpret_cast<float*>(shared_memory());
  i32* ids = reinterpret_cast<i32*>(shared_memory() + kLoraShrinkWarps * C.octets * 512);
  i32* leads = ids + 32;  // the first row of its adapter
  allow_next_kernel();
  wait_previous_kernel();
  const int mine = thread_index();
  if (mine < kRows) ids[mine] = row + mine < a.m ? lora_adapter(a.lora, row + mine) : -1;
  sync_block();
  if (mine < kRows) {
    bool first = ids[mine] >= 0;
    for (int r = 0; r < mine; ++r) first = first && ids[r] != ids[mine];
    leads[mine] = first;
  }
  sync_block();
  for (int r = kParts == 8 ? part : 0; r < (kParts == 8 ? part + 1 : kRows); ++r)
    if (leads[r]) lora_detail::shrink_adapter<C>(a, ids[r], row, chunk, sums, ids);
}

}  // namespace q4
