// LoRA: row t of the sums gets scale (x[t] A) B of its own adapter, before bias and activation. A is [k, rank], B is
// [rank, n]; a table on the device says where each adapter's are, so that captured launches meet whatever stands there.
//
//   lora_shrink   low[t] = scale x[t] A, rounded to the activations' type: one launch before the matmul
//   the matmul    sums += low[t] B: on tensor cores where it has them (lora_mma.h), else by lora_sum
//
// Both are stored as mma.m16n8k16 wants them as its A operand, 16 bytes a lane 4 g + t; ranks are padded to 16 with
// zeros, k to 32, columns to 16 in the matmul's packed order.
//
//   a: chunk of 16 ranks > 32 of k > step (2) > lane    ranks g, g + 8 x  k 8 t + 4 step + {0, 1} | {2, 3}
//   b: tile of 16 columns > chunk of 16 ranks > lane    columns g, g + 8 x  ranks 4 t + {0, 1} | {2, 3}
//
// A word has two of k (or of the ranks) side by side; words 0 and 1 are g and g + 8 of the first pair, 2 and 3 of the
// second. So a lane meets eight x side by side, four ranks of low side by side.
#pragma once
#include "problem.h"

namespace q4 {

constexpr int kLoraRanks = 16;  // of a chunk
constexpr int kLoraRows = 32;   // of k in a block of a
constexpr int kLoraShrinkWarps = 16;

Q4_BOTH constexpr int lora_chunks(int rank) { return ceil_div(rank, kLoraRanks); }
Q4_BOTH constexpr i64 lora_a_elements(int k, int rank) {
  return static_cast<i64>(lora_chunks(rank)) * ceil_div(k, kLoraRows) * (2 * 32 * 8);
}
Q4_BOTH constexpr i64 lora_b_elements(int n, int rank) {
  return static_cast<i64>(ceil_div(n, kTileColumns)) * lora_chunks(rank) * (32 * 8);
}
/// Where element (k, rank) of A and (rank, packed column) of B stand.
Q4_BOTH constexpr i64 lora_a_place(int all_k, int k, int rank) {
  const int step = k % 8 / 4, t = k % kLoraRows / 8, pair = k % 4 / 2, g = rank % 8, upper = rank % kLoraRanks / 8;
  const i64 block = static_cast<i64>(rank / kLoraRanks) * ceil_div(all_k, kLoraRows) + k / kLoraRows;
  return ((block * 2 + step) * 32 + 4 * g + t) * 8 + (2 * pair + upper) * 2 + k % 2;
}
Q4_BOTH constexpr i64 lora_b_place(int chunks, int rank, int column) {
  const int t = rank % kLoraRanks / 4, pair = rank % 4 / 2, g = column % 8, upper = column % kTileColumns / 8;
  const i64 block = static_cast<i64>(column / kTileColumns) * chunks + rank / kLoraRanks;
  return (block * 32 + 4 * g + t) * 8 + (2 * pair + upper) * 2 + rank % 2;
}

/// The adapter of a row; -1: none. Numbers outside the table are none.
Q4_DEVICE int lora_adapter(const LoraArgs& a, i64 row) {
  const i32 index = a.adapter[row];
  return index >= 0 && index < a.adapters ? index : -1;
}

/// What is to be added to the sum of packed column `column`.
template <Problem P>
Q4_DEVICE float lora_sum(const MatmulArgs& a, i64 row, int column) {
  const int adapter = lora_adapter(a.lora, row);
  if (adapter < 0) return 0.f;
  const LoraEntry entry = a.lora.table[adapter];
  const u16* low = a.lora.low + row * a.lora.low_stride;
  float sum = 0.f;
  for (int rank = 0; rank < entry.chunks * kLoraRanks; ++rank)
    sum += to_float<P.bf16 != 0>(low[rank]) * to_float<P.bf16 != 0>(entry.b[lora_b_place(entry.chunks, rank, column)]);
  return sum;
}

struct LoraShrinkConfig {
  int bf16 = 0;
  int mma = 1;     ///< tensor cores by mma.sync, NVIDIA from sm_80 on; 0: any GPU
  int octets = 1;  ///< rows of a block, in eights: 1: one adapter a block, for few rows; 4: all of its rows' adapters

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("bf16", bf16), v("mma", mma), v("octets", octets);
  }
};

struct LoraShrinkArgs {
  LoraArgs lora;
  u16* low;      ///< lora.low, to be written
  const u16* x;  ///< [m, k], row stride x_stride
  i64 x_stride;
  i32 m, k, chunks;  ///< chunks: of the largest rank, and of the grid
};

Q4_BOTH constexpr int threads(const LoraShrinkConfig&) { return 32 * kLoraShrinkWarps; }
Q4_BOTH constexpr int rows(const LoraShrinkConfig& c) { return 8 * c.octets; }
Q4_BOTH constexpr int shared_bytes(const LoraShrinkConfig& c) { return kLoraShrinkWarps * c.octets * 512 + 2 * 4 * 32; }
Q4_BOTH constexpr i64 grid(const LoraShrinkConfig& c, i64 m, int chunks) {
  return (m + rows(c) - 1) / rows(c) * chunks * (c.octets == 1 ? 8 : 1);
}

}  // namespace q4
