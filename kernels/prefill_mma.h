// Prefill, stage "mma": a consumer warpgroup converts the next codes while the tensor cores work on the last ones.
#pragma once
#include "dequantize.h"
#include "prefill_pipeline.h"
#include "wgmma.h"

namespace q4::prefill_detail {

/// Which part of the block's work a consumer thread has.
struct Place {
  u32 rank;          // of the block in its cluster
  int strip, team;   // of the warpgroup
  int thread, lane;  // in the warpgroup, in the warp
  int tile, g;       // 16 columns of the strip: the warp; column g and g + 8 of them: the lane
};

/// The rings of a consumer; its team meets every C.teams-th slab.
template <PrefillConfig C>
struct Rings {
  StageRing<C> slab;
  XRing<C> x;
  Q4_DEVICE void skip(int slabs) {
    slab.advance(slabs);
    if (!one_ring(C)) x.advance(2 * slabs);
  }
};

/// Where a thread's codes, scales and zeros stand in a stage of the ring. Their places in the first one are kept, so that
/// a stage's offset alone leads to all of them; grouped, computed each time: registers are short.
template <PrefillConfig C>
struct WeightPlace {
  const Shared<C>& s;
  const Place& at;
  u32 words = 0, scale = 0, zero = 0;

  Q4_DEVICE WeightPlace(const Shared<C>& shared, const Place& place) : s(shared), at(place) {
    if constexpr (!C.p.grouped) {
      words = words_of(0), scale = scale_of(0), zero = zero_of(0);
      keep_in_register(words), keep_in_register(scale), keep_in_register(zero);
    }
  }
  Q4_DEVICE u32 words_of(u32 stage) const {
    return s.strip_codes(stage, at.strip) + at.tile * kTileBytes + at.lane * 16;
  }
  Q4_DEVICE u32 scale_of(u32 stage) const { return s.strip_meta(stage, at.strip) + scale_offset(at.tile, at.g); }
  Q4_DEVICE u32 zero_of(u32 stage) const { return s.strip_meta(stage, at.strip) + zero_offset(at.tile, at.g); }

  Q4_DEVICE void load_words(u32 (&to)[4], u32 stage, int half) const {
    load_shared4(to, (C.p.grouped ? words_of(stage) : words + stage) + half * 512);
  }
  Q4_DEVICE Scaling load_scaling(u32 stage, int set) const {
    const u32 scale_at = C.p.grouped ? scale_of(stage) : scale + stage;
    const u32 zero_at = C.p.grouped ? zero_of(stage) : zero + stage;
    return make_scaling<C.p.bf16>(load_shared(scale_at + set * kMetaBytes),
                                  load_shared_byte(zero_at + set * kMetaBytes));
  }
};

template <PrefillConfig C>
Q4_DEVICE void release_slab(const Shared<C>& s, u32 stage, int lane) {
  if (lane == 0) mbar_arrive(s.empty(stage));
}
template <PrefillConfig C>
Q4_DEVICE void release_x(const Shared<C>& s, u32 stage, int lane) {
  if constexpr (C.share == 1) {
    if (lane == 0) mbar_arrive(s.x_empty(stage));
  } else {
    if (lane < C.share) mbar_arrive_remote(s.x_empty(stage), lane);
  }
}

/// Starts one batch of k16 steps; the first adds to `acc` only if `add`.
template <PrefillConfig C, int kRegs, int kSteps>
Q4_DEVICE void start(float (&acc)[kRegs], u32 (&frag)[kSteps][4], u32 x_tile, int first_step, int add) {
  const u64 x = wgmma_descriptor(x_tile) + 2 * first_step;
#pragma unroll
  for (int j = 0; j < kSteps; ++j) wgmma_pin(frag[j]);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < kSteps; ++j) wgmma<C.p.bf16>(acc, frag[j], x + 2 * j, j == 0 ? add : 1);
  wgmma_commit();
}

/// Grouped: wgmma of no more rows than a row tile has. Tiles of 80, 96 and 256 rows, which are chosen where nearly every
/// tile has one of two numbers of rows, have a loop over k for half of them or a few more: kOwnLoops. Of the others, those
/// with up to kFewRows go in steps of kWidth: the sums of the other rows stay as they are. (One loop for all these widths: a
/// loop for each would take more registers than there are. Full tiles have their own, as the choice costs 5 to 10%.)
template <PrefillConfig C>
inline constexpr int kOwnLoops[2] = {C.rows == 256                  ? 128
                                     : C.rows == 80 || C.rows == 96 ? 64
                                                                    : 0,
                                     C.rows == 256 ? 160 : 0};
template <PrefillConfig C>
inline constexpr int kWidth = larger(16, C.rows / 8);
template <PrefillConfig C>
inline constexpr int kFewRows = kOwnLoops<C>[0] ? 0 : C.rows - kWidth<C>;
template <PrefillConfig C, int kFirst, int kLast, int kRegs, int kSteps>
Q4_DEVICE void start_rows(int rows, float (&acc)[kRegs], u32 (&frag)[kSteps][4], u32 x_tile, int first_step, int add) {
  constexpr int kMiddle = (kFirst + kLast) / 2;
  if constexpr (kFirst == kLast)
    start<C>(reinterpret_cast<float(&)[kLast * kWidth<C> / 2]>(acc), frag, x_tile, first_step, add);
  else if (rows <= kMiddle * kWidth<C>)
    start_rows<C, kFirst, kMiddle>(rows, acc, frag, x_tile, first_step, add);
  else
    start_rows<C, kMiddle + 1, kLast>(rows, acc, frag, x_tile, first_step, add);
}

/// acc = this team's slabs of a tile, at least one, weights scaled as they are converted. (A loop that might run no
/// time would end in a copy that merges its sums with those before it: one more place to touch a wgmma in flight.)
template <PrefillConfig C, bool kFew = false, int kRegs>
Q4_DEVICE void multiply(float (&acc)[kRegs], Rings<C>& rings, const Shared<C>& s, const Place& at, const Work& work) {
  constexpr int kSteps = steps(C), kBatches = 4 / kSteps;
  constexpr int kSets = C.p.unit < 64 ? 64 / C.p.unit : 1;  // of meta, in 64 rows
  // Batches in flight while the next is converted: one, or two where they are short.
  constexpr int kInFlight = in_flight(C), kBuffers = 2 * kInFlight;
  u32 frag[kBuffers][kSteps][4], words[4];
  Scaling scaling[kSets];
  const WeightPlace<C> weights(s, at);
  int add = 0;
  u32 held = 0;  // the stage that a wgmma in flight may still read
  int slab = work.begin + at.team;
  do {
    const u32 stage = rings.slab.stage;
    mbar_wait(s.full(stage), rings.slab.phase);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 0 || C.p.unit < kSlabRows) {
#pragma unroll
        for (int i = 0; i < kSets; ++i) scaling[i] = weights.load_scaling(stage, half * kSets + i);
      }
      weights.load_words(words, stage, half);
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        auto& next = frag[(half * kBatches + batch) % kBuffers];
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
          const int step = batch * kSteps + j;
          dequantize<C.p.bf16>(next[j], words[step], scaling[step * kSets / 4]);
        }
        const u32 x_stage = one_ring(C) ? stage : rings.x.stage;
        if (batch == 0 && !one_ring(C)) mbar_wait(s.x_full(x_stage), rings.x.phase);
        if constexpr (kFew)
          start_rows<C, 1, kFewRows<C> / kWidth<C>>(work.rows, acc, next, s.x_tile(x_stage, half), batch * kSteps,
                                                    batch == 0 ? add : 1);
        else
          start<C>(acc, next, s.x_tile(x_stage, half), batch * kSteps, batch == 0 ? add : 1);
        wgmma_wait<kInFlight>();  // all before these batches are done
        if (batch == kInFlight - 1) {
          if constexpr (one_ring(C)) {
            if (half == 0) {
              if (add) release_slab(s, held, at.lane);
              held = stage;
            }
          } else {
            if (add) release_x(s, held, at.lane);
            held = x_stage;
            if (half == 1) release_slab(s, stage, at.lane);  // its last words are in registers
          }
          add = 1;
        }
      }
      if (!one_ring(C)) rings.x.advance(half == 0 ? 1 : 2 * C.teams - 1);
    }
    rings.slab.advance(C.teams);
    slab += C.teams;
  } while (slab < work.end);
  wgmma_wait<0>();
  wgmma_pin(acc);
  if constexpr (one_ring(C))
    release_slab(s, held, at.lane);
  else
    release_x(s, held, at.lane);
}

/// The same with C.fold: q - z meets x, and the sums over each set of rows that share scales (a slab at most) are
/// scaled and added when its last wgmma is done. Fewer instructions a weight, more a sum, and exact weights: for few
/// rows.
template <PrefillConfig C, int kRegs>
Q4_DEVICE void multiply_folded(float (&acc)[kRegs], Rings<C>& rings, const Shared<C>& s, const Place& at,
                               const Work& work) {
  constexpr int kSets = slab_sets(C.p), kSteps = kSets > 2 ? 8 / kSets : 4;  // of one batch
  constexpr int kBatches = 8 / kSteps / kSets;                               // of a set: 2 or 1
  static_assert(one_ring(C) && steps(C) == 4 && kSteps >= 2, "x travels with the codes");
  u32 frag[2][kSteps][4], words[2][4];
  float part[kRegs], scale[2] = {};
  const WeightPlace<C> weights(s, at);
  u32 held = 0;
  // Where a set is less than a slab the compiler may not peel off the first time round: it would copy the sums of a wgmma
  // in flight from one loop to the other, and ptxas wait for each wgmma (C7514). So it does not know what `add` is. Nor
  // with four warpgroups and many slabs, for which less code is faster.
  constexpr bool kWhole = kSets > 1 || (C.strips == 2 && C.teams == 2 && slabs(C.p.k) / C.split >= 16);
  u32 add = 0;
  if constexpr (kWhole) keep_in_register(add);
#pragma unroll
  for (int i = 0; i < kRegs; ++i) acc[i] = 0.f;
  const auto finish = [&](bool last) {  // the set before, perhaps the last of its slab
    wgmma_wait<0>();
    wgmma_pin(part);
    if (last) release_slab(s, held, at.lane);
#pragma unroll
    for (int i = 0; i < kRegs; ++i) acc[i] = fma_float(scale[(i / 2) & 1], part[i], acc[i]);
  };
  int slab = work.begin + at.team;
  do {
    const u32 stage = rings.slab.stage;
    mbar_wait(s.full(stage), rings.slab.phase);
#pragma unroll
    for (int half = 0; half < 2; ++half) weights.load_words(words[half], stage, half);
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const Scaling scaling = weights.load_scaling(stage, set);
#pragma unroll
      for (int batch = 0; batch < kBatches; ++batch) {
        const int step = (set * kBatches + batch) * kSteps, half = step / 4;
        auto& next = frag[(step / kSteps) & 1];
#pragma unroll
        for (int j = 0; j < kSteps; ++j) center<C.p.bf16>(next[j], words[half][(step + j) % 4], scaling);
        if (batch == 0 && (set > 0 || add)) finish(set == 0);
        start<C>(part, next, s.x_tile(stage, half), step % 4, batch);
        if (batch == 1) wgmma_wait<1>();
      }
      scale[0] = scaling.scale[0];
      scale[1] = scaling.scale[1];
    }
    held = stage;
    add = 1;
    if constexpr (kWhole) keep_in_register(add);
    rings.slab.advance(C.teams);
    slab += C.teams;
  } while (slab < work.end);
  finish(true);
}

}  // namespace q4::prefill_detail
