// LoRA in the decode kernel, with no launch of its own: the first kLoraParts blocks of the launch are not of the matmul.
// Each sums x A over a part of k for all rows and their adapters, and sends it to the block (or the first of a cluster)
// of every block of columns. That adds the parts up in order, rounds, and multiplies with its columns of B while the
// others still wait for weights.
//
//   inbox   chunk of 16 ranks > block of columns > part of k > row > rank     {fp32, kLoraTag}
//
// An element and its tag are stored, and seen, at once, so whoever sees the tag has the element: no fence, and one trip.
// Each block of columns clears what it has read, so the next launch meets no tag: whatever else was written to the
// workspace in between is no tag either (as halves, bf16 or a float it is a NaN that no instruction makes). Blocks of
// the matmul wait for blocks that stand before them in the grid, which therefore run: nothing waits the other way.
#pragma once
#include "decode_weights.h"
#include "lora_mma.h"
#include "words.h"

namespace q4 {
namespace decode_detail {

/// Bytes from the begin of an inbox to the first rank of a row.
template <DecodeConfig C>
Q4_DEVICE i64 lora_inbox(int chunk, int block, int part, int row) {
  const int place = (chunk * column_blocks(C) + block) * kLoraParts + part;
  return (static_cast<i64>(place) * rows(C) + row) * (kLoraRanks * 8);
}

/// What one of the first blocks does.
template <DecodeConfig C>
Q4_DEVICE void lora_shrink_within(const MatmulArgs& a) {
  using Shrink = LoraShrink<lora_shape(C)>;
  constexpr int kBlocks = ceil_div(C.p.x_k, kLoraRows);
  const int part = block_index();
  float* low = reinterpret_cast<float*>(shared_memory() + Shrink::kBytes);  // [pair][row][rank]
  u8* inbox = reinterpret_cast<u8*>(const_cast<u16*>(a.lora.low));
  allow_next_kernel();
  wait_previous_kernel();
  Shrink shrink(a.lora, 0, a.m, {}, shared_memory());
  shrink.prefetch_b(part, kLoraParts, C.p.n);
  shrink.sum(
      a.x, a.x_stride, C.p.x_k, kBlocks * part / kLoraParts, kBlocks * (part + 1) / kLoraParts,
      [&](int j, int row, int, int rank, float v) { low[(j * rows(C) + row) * kLoraRanks + rank] = v; },
      [&](const typename Shrink::Pairs& pairs) {
        constexpr int kOfRow = column_blocks(C) * 8;  // pieces of two ranks
        sync_block();
#pragma unroll 1
        for (int j = 0; j < pairs.count; ++j)
#pragma unroll 4
          for (int i = thread_index(); i < a.m * kOfRow; i += threads(C)) {
            const int row = i / kOfRow, block = i % kOfRow / 8;
            if (!pairs.has(j, row)) continue;
            const u32* v = reinterpret_cast<const u32*>(low + (j * rows(C) + row) * kLoraRanks + i % 8 * 2);
            store_pairs(inbox + lora_inbox<C>(pairs.chunk(j), block, part, row) + i % 8 * 16,
                        {v[0], kLoraTag, v[1], kLoraTag});
          }
      });
}

/// The adapters of a block's rows, in the first block of a cluster: lane 4 g + t has those of rows g and g + 8. A chunk
/// of an adapter belongs to one team, which is named by numbers of the adapter alone, so a row's bits do not depend on
/// the others. Teams that ask for their weights first have time for it.
template <DecodeConfig C>
struct LoraRows {
  static constexpr int kTeams = C.stagger && C.teams > 1 ? C.teams / 2 : C.teams;
  i32 adapter[C.batch], chunks[C.batch];
  const u16* b[C.batch];
  LoraEntry entry;  // of the table's place that is the lane's, where there is one

  /// Asks; what has come is told by find(), when x has come too.
  Q4_DEVICE void ask(const MatmulArgs& a, int lane) {
    entry = LoraEntry{};
    if (lane < a.lora.adapters) entry = a.lora.table[lane];
#pragma unroll
    for (int o = 0; o < C.batch; ++o) {
      const int row = 8 * o + (lane >> 2);
      adapter[o] = row < a.m ? a.lora.adapter[row] : -1;
    }
  }
  Q4_DEVICE void find(const MatmulArgs& a) {
#pragma unroll
    for (int o = 0; o < C.batch; ++o) {
      if (adapter[o] >= a.lora.adapters) adapter[o] = -1;
      const bool inside = adapter[o] >= 0;
      const int from = inside ? adapter[o] % 32 : 0;
      chunks[o] = shuffle(entry.chunks, from), b[o] = shuffle_pointer(entry.b, from);
      if (adapter[o] >= 32) chunks[o] = a.lora.table[adapter[o]].chunks, b[o] = a.lora.table[adapter[o]].b;
      if (!inside) chunks[o] = 0;
    }
  }
  /// The first chunk of this team, of which it has every kTeams-th.
  Q4_DEVICE static int first_chunk(int adapter, int team) {
    return team < kTeams ? (team + kTeams - adapter % kTeams) % kTeams : 1 << 20;
  }
  /// Four ranks of row 8 o + g, as B of an mma.
  Q4_DEVICE Words2 low(const MatmulArgs& a, const Place<C>& at, int o, int chunk) const {
    const int row = 8 * o + (at.lane >> 2), rank = (at.lane & 3) * 4;
    if (a.lora.maker != kLoraWithin)
      return *reinterpret_cast<const Words2*>(a.lora.low + static_cast<i64>(row) * a.lora.low_stride +
                                              chunk * kLoraRanks + rank);
    const u8* inbox = reinterpret_cast<const u8*>(a.lora.low) + rank * 8;
    Words4 v[kLoraParts][2];
    bool here;
    do {
      here = true;
#pragma unroll
      for (int part = 0; part < kLoraParts; ++part)
#pragma unroll
        for (int i = 0; i < 2; ++i) v[part][i] = load_pairs(inbox + lora_inbox<C>(chunk, at.block, part, row) + i * 16);
#pragma unroll
      for (int part = 0; part < kLoraParts; ++part)
#pragma unroll
        for (int i = 0; i < 2; ++i) here = here && v[part][i].y == kLoraTag && v[part][i].w == kLoraTag;
    } while (!here);
    float sum[4] = {};
#pragma unroll
    for (int part = 0; part < kLoraParts; ++part)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        sum[2 * i] += bits_to_float(v[part][i].x), sum[2 * i + 1] += bits_to_float(v[part][i].z);
    return {pack<kBf16<C>>(sum[0], sum[1]), pack<kBf16<C>>(sum[2], sum[3])};
  }
  /// acc += low B, in the sums' own scale.
  Q4_DEVICE void add(float (&acc)[warp_tiles(C)][C.batch][4], const MatmulArgs& a, const Place<C>& at,
                     const float (&factor)[2]) const {
#pragma unroll
    for (int o = 0; o < C.batch; ++o) {
      const int g = at.lane >> 2, begin = chunks[o] > 0 ? first_chunk(adapter[o], at.team) : 0;
      int left = begin < chunks[o] ? adapter[o] * 8 + g : -1;
#pragma unroll 1
      for (;;) {  // the largest number among those left, with all of its rows
        int now = left;
#pragma unroll
        for (int step = 4; step < 32; step *= 2) now = larger(now, shuffle_xor(now, step));
        if (now < 0) break;
        const bool taken = left >> 3 == now >> 3;
        if (taken) left = -1;
        const int lane = now % 8 * 4, all = shuffle(chunks[o], lane);
        const u16* from = shuffle_pointer(b[o], lane) + at.lane * 8;
#pragma unroll 1
        for (int chunk = first_chunk(now >> 3, at.team); chunk < all; chunk += kTeams) {
          Words4 frag[warp_tiles(C)];
#pragma unroll
          for (int i = 0; i < warp_tiles(C); ++i) {
            const int tile = smaller(at.first_tile + i, ceil_div(C.p.n, kTileColumns) - 1);  // past it: never stored
            frag[i] = *reinterpret_cast<const Words4*>(from + (static_cast<i64>(tile) * all + chunk) * 256);
          }
          Words2 x{0, 0};
          if (taken) x = low(a, at, o, chunk);
          sync_warp();
#pragma unroll
          for (int i = 0; i < warp_tiles(C); ++i) {
            const u32 words[4] = {frag[i].x, frag[i].y, frag[i].z, frag[i].w};
            if constexpr (kBf16<C>) {
              mma_16816<true>(acc[i][o], words, x.x, x.y);
            } else {
              float d[4];
              mma_16816_first<false>(d, words, x.x, x.y);
#pragma unroll
              for (int e = 0; e < 4; ++e) acc[i][o][e] += factor[e / 2] * d[e];
            }
          }
        }
      }
    }
  }
  /// When all warps of the team have read: no tag is left for the next launch.
  Q4_DEVICE void clear(const MatmulArgs& a, const Place<C>& at) const {
    if (at.side != 0) return;
    u8* inbox = reinterpret_cast<u8*>(const_cast<u16*>(a.lora.low)) + (at.lane & 3) * 32;
#pragma unroll
    for (int o = 0; o < C.batch; ++o)
      for (int chunk = chunks[o] > 0 ? first_chunk(adapter[o], at.team) : 0; chunk < chunks[o]; chunk += kTeams)
#pragma unroll
        for (int part = 0; part < kLoraParts; ++part)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            store_pairs(inbox + lora_inbox<C>(chunk, at.block, part, 8 * o + (at.lane >> 2)) + i * 16, {});
  }
};

}  // namespace decode_detail
}  // namespace q4
