// batch: out = x @ W for m from 16 up on tensor cores with mma.sync, NVIDIA from sm_80 on. Weights are A (16 columns of
// W), dequantized in registers from the layout's words; eight rows of x are B, by ldmatrix. The class of kernel that
// Marlin is; the fragment order is layout.h's.
//
//   stage      cp.async: x (swizzled), codes, scales and zeros of a turn, `stages` - 1 turns ahead
//   multiply   a warp: 64 columns by up to 64 rows and 64 of k a turn, sums in registers
//   sum        teams of the block, then parts of the grid, in a fixed order; bias, rounding, store
#pragma once
#include "batch_sum.h"
#include "dequantize.h"
#include "lora_tile.h"

namespace q4 {
namespace batch_detail {

/// What a warp multiplies in one turn: its team's 64 of k in a stage.
template <BatchConfig C>
struct Turn {
  static constexpr bool kBf16 = C.p.bf16 != 0;
  static constexpr int kSteps = kHalfRows / kStepRows, kSetSteps = kSteps / half_sets(C.p);
  u32 x, meta;  // this lane's ldmatrix row: matrices are rows 0-7 and k 0-7, k 8-15, then rows 8-15; its scales
  u32 words[kStripTiles][4];
  Scaling scaling[kStripTiles];

  Q4_DEVICE Turn(const Stages<C>& ring, int stage, const Place<C>& at) {
    const int row = at.row_warp * warp_rows(C) + ((at.lane >> 4) << 3) + (at.lane & 7);
    x = ring.x_tile(stage, at.team) + row * kBatchXRowBytes + ((((at.lane >> 3) & 1) ^ (at.lane & 7)) << 4);
    meta = ring.strip_meta(stage, at) + scale_offset(0, at.lane >> 2);
    const u32 codes = ring.strip_codes(stage, at) + at.lane * 16;
#pragma unroll
    for (int tile = 0; tile < kStripTiles; ++tile) load_shared4(words[tile], codes + tile * (kTileBytes / 2));
  }
  /// A set holds what a lane wants of four tiles side by side.
  Q4_DEVICE void load_set(int step, int lane) {
    if (step % kSetSteps != 0) return;
    const u32 set = meta + step / kSetSteps * kMetaBytes;
    u32 pairs[4];
    load_shared4(pairs, set);
    const u32 zeros = load_shared(set + zero_offset(0, lane >> 2) - scale_offset(0, lane >> 2));
#pragma unroll
    for (int tile = 0; tile < kStripTiles; ++tile)
      scaling[tile] = make_scaling<kBf16>(pairs[tile], zeros >> (8 * tile) & 255u);
  }
  Q4_DEVICE void load_x(u32 (&b)[4], int step, int pair) const {
    load_matrix4(b, (x ^ (step << 5)) + pair * (16 * kBatchXRowBytes));
  }
};

/// sums += one turn, of which `left` of k meet x. The weights of a step are converted between the mma of the step
/// before; each step is a branch of its own, for else ptxas converts each fragment right before its mma, which wait.
template <BatchConfig C>
Q4_DEVICE void multiply(Sums<C>& sums, const Stages<C>& ring, int stage, const Place<C>& at, int left) {
  using T = Turn<C>;
  constexpr int kPairs = Sums<C>::kOctets / 2, kEach = kStripTiles / kPairs;  // tiles converted beside a pair of octets
  T turn(ring, stage, at);
  u32 frag[2][kStripTiles][4], b[2][4];
  turn.load_x(b[0], 0, 0);
  turn.load_set(0, at.lane);
#pragma unroll
  for (int tile = 0; tile < kStripTiles; ++tile)
    dequantize<T::kBf16>(frag[0][tile], turn.words[tile][0], turn.scaling[tile]);
#pragma unroll
  for (int step = 0; step < T::kSteps; ++step) {
    if (step * kStepRows >= left) break;
    if (step + 1 < T::kSteps) turn.load_set(step + 1, at.lane);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const int i = step * kPairs + pair;
      if (i + 1 < T::kSteps * kPairs) turn.load_x(b[(i + 1) & 1], (i + 1) / kPairs, (i + 1) % kPairs);
#pragma unroll
      for (int tile = 0; tile < kStripTiles; ++tile) {
        mma_16816<T::kBf16>(sums.v[tile][2 * pair], frag[step & 1][tile], b[i & 1][0], b[i & 1][1]);
        mma_16816<T::kBf16>(sums.v[tile][2 * pair + 1], frag[step & 1][tile], b[i & 1][2], b[i & 1][3]);
      }
      if (step + 1 == T::kSteps) continue;
#pragma unroll
      for (int tile = pair * kEach; tile < (pair + 1) * kEach; ++tile)
        dequantize<T::kBf16>(frag[(step + 1) & 1][tile], turn.words[tile][step + 1], turn.scaling[tile]);
    }
  }
}

}  // namespace batch_detail

/// Launch: grid(C, m) blocks of threads(C), launch bounds (threads(C), blocks_per_unit(C)), shared_bytes(C) of dynamic
/// shared memory, workspace_bytes(C, m) of workspace; programmatic stream serialization is allowed. serves(C, m).
template <BatchConfig C>
Q4_DEVICE void batch(const MatmulArgs& a) {
  using namespace batch_detail;
  const Place<C> at(a.m);
  const Stages<C> ring(a, at);
  if (at.begin < at.end) ring.load_weights(at.begin, 0, at);
  allow_next_kernel();
  const bool beside = C.p.lora && a.lora.maker == kLoraBeside;
  if (!beside) wait_previous_kernel();  // weights are constant, x is not
#pragma unroll
  for (int i = 0; i < C.stages - 1; ++i) {
    if (at.begin + i < at.end) {
      if (i > 0) ring.load_weights(at.begin + i, i, at);
      ring.load_x(a, at.begin + i, i);
    }
    async_commit();
  }
  Sums<C> sums;
  sums.clear();
  int stage = 0;
#pragma unroll 1
  for (int turn = at.begin; turn < at.end; ++turn) {
    async_wait<C.stages - 2>();
    sync_block();  // everybody's part of this turn has come, and the turn before has been read
    const int next = turn + C.stages - 1, free = stage == 0 ? C.stages - 1 : stage - 1;
    if (next < at.end) {
      ring.load_weights(next, free, at);
      ring.load_x(a, next, free);
    }
    async_commit();
    const int left = C.p.x_k - (turn * C.teams + at.team) * kHalfRows;  // what is past x_k meets zeros
    if (left > 0) multiply<C>(sums, ring, stage, at, left);
    stage = stage + 1 == C.stages ? 0 : stage + 1;
  }
  async_wait<0>();
  sync_block();  // the ring's memory is free
  if constexpr (C.p.lora) {
    if (beside) wait_previous_kernel();
    if (at.team == 0 && at.part == 0) {
      const int row = at.row + at.row_warp * warp_rows(C);
#pragma unroll
      for (int i = 0; i < kStripTiles; ++i) {
        const int tile = (at.first_strip + at.strip) * kStripTiles + i;
        LoraTile<C.p, Sums<C>::kOctets> lora;
        lora.ask(a, tile, row, at.lane, 0, 1);
        lora.add(sums.v[i], a, LoraLow(a.lora, row), tile, row, at.lane, 0, 1);
      }
    }
  }
  if constexpr (C.teams > 1) sum_teams<C>(sums, at, ring.base);
  if constexpr (C.split > 1)
    if (!sum_parts<C>(sums, a, at, ring.base)) return;
  store_tile<C>(sums, a, at, ring.base);
}

}  // namespace q4
