// LoRA: row t of the sums gets scale (x[t] A) B of its own adapter, before bias and activation. A is [k, rank], B is
// [rank, n]; a table on the device says where each adapter's are, so that captured launches meet whatever stands there.
//
//   shrink        low[t] = scale x[t] A, rounded to the activations' type: a launch before the matmul, or its own first
//                 blocks (LoraMaker)
//   the matmul    sums += low[t] B: on tensor cores where it has them (lora_tile.h), else by lora_sum
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
#include "device_limits.h"
#include "problem.h"

namespace q4 {

constexpr int kLoraRanks = 16;  // of a chunk
constexpr int kLoraRows = 32;   // of k in a block of a
constexpr int kLoraShrinkWarps = 16;
constexpr u32 kLoraTag = 0xffc5a3e1u;
constexpr int kLoraParts = 4;  // of k, where decode's first blocks shrink

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

/// What a launch will meet: rows, the chunks of the largest rank, adapters in the table.
struct LoraLoad {
  i64 m = 0;
  int chunks = 0, adapters = 0;
  bool invariant = false;  ///< bits must not depend on m
};
constexpr int kLoraMostChunks = 4;  // that a few multiprocessors shrink beside a matmul

/// The adapter of a row; -1: none. Numbers outside the table are none.
Q4_DEVICE int lora_adapter(const LoraArgs& a, i64 row) {
  const i32 index = a.adapter[row];
  return index >= 0 && index < a.adapters ? index : -1;
}

template <class T>
Q4_DEVICE const T* shuffle_pointer(const T* p, int lane) {
  const u64 v = bit_cast<u64>(p);
  const u32 low = shuffle(static_cast<u32>(v), lane), high = shuffle(static_cast<u32>(v >> 32), lane);
  return bit_cast<const T*>(low | static_cast<u64>(high) << 32);
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

/// How blocks of the launch before share the work: blocks of the same rows, each with every parts-th adapter, chunk and
/// pieces of its rows; and blocks of a cluster, each with a part of k.
struct LoraSplit {
  i32 parts = 1, k = 1;
};
constexpr int kLoraMostSplit = 8;

/// How a matmul's own block shrinks (LoraShrink of lora_mma.h).
struct LoraShape {
  int bf16 = 0;
  int octets = 1;  ///< of rows
  int threads = 512;
  int turns = 8;  ///< blocks of 32 of k that a warp has, as far as that is known
};
/// Pairs of an adapter and a chunk of its ranks that are summed at once, and blocks of k that a warp asks for at once:
/// as registers allow.
Q4_BOTH constexpr int lora_group(const LoraShape& s) {
  return s.octets > 1 || s.threads > 512 || s.turns > 4 ? 1 : s.turns > 2 ? 2 : 4;
}
Q4_BOTH constexpr int lora_unroll(const LoraShape& s) {
  int most = s.octets == 1 ? 8 / lora_group(s) : s.octets == 2 ? 5 : 3;
  if (s.threads > 512) most = s.threads > 768 ? 1 : s.octets == 1 ? 4 : s.octets == 2 ? 3 : 2;
  return smaller(s.turns, s.threads <= 384 ? most + 1 : most);
}
/// [pair of a group, octet, warp, 128 floats] [row: A, lead, scale, 16 pairs]
Q4_BOTH constexpr int lora_shrink_bytes(const LoraShape& s) {
  return lora_group(s) * s.octets * s.threads * 16 + 8 * s.octets * (8 + 4 + 4 + 16 * 2);
}

/// The launch before (lora_shrink.h).
struct LoraShrinkConfig {
  int bf16 = 0;
  int mma = 1;     ///< tensor cores by mma.sync, NVIDIA from sm_80 on; 0: any GPU
  int rows = 64;   ///< of x that blocks share: eights, at most 128
  int octets = 2;  ///< of rows that meet a fragment of A, at most: a power of two
  int ring = 0;    ///< bytes of the queues of A and x
  int cuts = 0;    ///< blocks of a cluster that may share k, from sm_90 on; 0: none
  int warps = kLoraShrinkWarps;

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("bf16", bf16), v("mma", mma), v("rows", rows), v("octets", octets), v("ring", ring), v("cuts", cuts);
    v("warps", warps);
  }
};

struct LoraShrinkArgs {
  LoraArgs lora;
  u16* low;      ///< lora.low, to be written
  const u16* x;  ///< [m, k], row stride x_stride
  i64 x_stride;
  i32 m, k, chunks;  ///< chunks: of the largest rank
  LoraSplit split;
};

Q4_BOTH constexpr int threads(const LoraShrinkConfig& c) { return 32 * c.warps; }
Q4_BOTH constexpr i64 grid(const LoraShrinkConfig& c, i64 m, const LoraSplit& s) {
  return (m + c.rows - 1) / c.rows * s.parts * s.k;
}
/// A place of a queue, in all threads: two pieces of 16 bytes of A, one of x for each of so many octets.
Q4_BOTH constexpr int lora_stage_bytes(const LoraShrinkConfig& c, int octets) { return threads(c) * 16 * (2 + octets); }
Q4_BOTH constexpr int lora_stages(const LoraShrinkConfig& c, int octets) {
  return smaller(7, c.ring / lora_stage_bytes(c, octets));
}
/// [octet, warp, 128 floats]
Q4_BOTH constexpr int lora_sum_bytes(const LoraShrinkConfig& c) { return c.octets * c.warps * 512; }
/// [block of a cluster, octet, 128 floats] [barrier]
Q4_BOTH constexpr int lora_gather_bytes(const LoraShrinkConfig& c) {
  return larger(0, c.cuts - 1) * c.octets * 512 + 16;
}
/// [row: A, scale, adapter, chunks, rows, first] [4 counts] [row: sorted, 16 units]
Q4_BOTH constexpr int lora_list_bytes(const LoraShrinkConfig& c) { return c.rows * (8 + 5 * 4 + 2 + 16 * 2) + 16; }
Q4_BOTH constexpr int shared_bytes(const LoraShrinkConfig& c) {
  return c.mma ? c.ring + lora_sum_bytes(c) + lora_gather_bytes(c) + lora_list_bytes(c) : 0;
}
/// As many places as fit, two at least.
Q4_BOTH constexpr int lora_ring(LoraShrinkConfig c, int all_shared_bytes) {
  const int left = all_shared_bytes - shared_bytes(c), stage = lora_stage_bytes(c, c.octets);
  return larger(2, smaller(7, left / stage)) * stage;
}
/// Clusters of so many blocks that run at a time, each within one GPC: of 132 multiprocessors, as
/// cuOccupancyMaxActiveClusters of an H200 says, and a little less of eight.
Q4_BOTH constexpr int lora_clusters(int blocks, const Limits& limits) {
  return limits.units * (blocks <= 1 ? 132 : blocks == 2 ? 66 : blocks == 4 ? 30 : 14) / 132;
}
/// A part for each adapter and chunk that C.rows rows may have, or for the octets of one; k is cut while there are
/// multiprocessors, and blocks of k, for it: what waits for a second wave costs more than it saves.
Q4_BOTH constexpr LoraSplit lora_split(const LoraShrinkConfig& c, const LoraLoad& load, int k, const Limits& limits) {
  const int rows = load.m < c.rows ? static_cast<int>(load.m) : c.rows;
  const int lists = static_cast<int>((load.m + c.rows - 1) / c.rows);
  const int pieces = ceil_div(rows, lists < 4 ? 8 * c.octets : 8);
  const int wanted = load.chunks * larger(pieces, smaller(load.adapters, rows));
  LoraSplit s{larger(1, smaller(wanted, limits.units / larger(1, lists))), 1};
  while (!load.invariant && 2 * s.k <= c.cuts && lists * s.parts <= lora_clusters(2 * s.k, limits) &&
         ceil_div(k, kLoraRows) >= s.k * c.warps)
    s.k *= 2;
  return s;
}

}  // namespace q4
