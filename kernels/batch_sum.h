// The end of the batch kernel: sums of teams in shared memory, of blocks in the workspace, each in a fixed order; bias,
// rounding, rows of 16 bytes a thread.
#pragma once
#include "batch_stage.h"
#include "epilogue.h"

namespace q4 {
namespace batch_detail {

/// A warp's sums: [tile][8 rows][element], element e of lane 4 g + t is column g + 8 (e / 2), row 2 t + e % 2.
template <BatchConfig C>
struct Sums {
  static constexpr int kOctets = warp_rows(C) / 8;
  float v[kStripTiles][kOctets][4];

  Q4_DEVICE void clear() {
    each([](float(&f)[4], int) { f[0] = f[1] = f[2] = f[3] = 0.f; });
  }
  /// f(four elements, their place among the warp's)
  template <class F>
  Q4_DEVICE void each(const F& f) {
#pragma unroll
    for (int tile = 0; tile < kStripTiles; ++tile)
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) f(v[tile][octet], tile * kOctets + octet);
  }
};

/// Team 0 has the sums of all: the upper half of the teams gives to the lower, and so on.
template <BatchConfig C>
Q4_DEVICE void sum_teams(Sums<C>& sums, const Place<C>& at, u32 area) {
  constexpr int kWarps = C.strips * row_warps(C);  // of a team
  const int warp = at.strip * row_warps(C) + at.row_warp;
#pragma unroll
  for (int half = C.teams / 2; half >= 1; half /= 2) {
    const u32 slot = area + (at.team % half * kWarps + warp) * (Sums<C>::kOctets * kBatchGather) + at.lane * 16;
    if (at.team >= half && at.team < 2 * half)
      sums.each([&](float(&f)[4], int i) { store_shared_floats(slot + i * 512, f); });
    sync_block();
    if (at.team < half)
      sums.each([&](float(&f)[4], int i) {
        float other[4];
        load_shared_floats(other, slot + i * 512);
#pragma unroll
        for (int e = 0; e < 4; ++e) f[e] += other[e];
      });
    sync_block();
  }
}

/// Parts of a tile, through the workspace. The last block to arrive adds them in order and returns true.
template <BatchConfig C>
Q4_DEVICE bool sum_parts(Sums<C>& sums, const MatmulArgs& a, const Place<C>& at, u32 flag) {
  constexpr int kWarps = C.strips * row_warps(C), kPieces = kStripTiles * Sums<C>::kOctets;
  const int warp = at.strip * row_warps(C) + at.row_warp;
  const auto piece = [&](int part) {
    const i64 slot = (static_cast<i64>(at.tile) * C.split + part) * kWarps + warp;
    return reinterpret_cast<Words4*>(a.workspace + kCounterBytes) + slot * (kPieces * 32) + at.lane;
  };
  if (at.team == 0) {
    Words4* mine = piece(at.part);
    sums.each([&](float(&f)[4], int i) {
      mine[i * 32] = {float_to_bits(f[0]), float_to_bits(f[1]), float_to_bits(f[2]), float_to_bits(f[3])};
    });
  }
  sync_block();  // and thread 0 releases what all have written
  if (thread_index() == 0) {
    u32* counter = reinterpret_cast<u32*>(a.workspace) + at.tile;
    const bool is_last = atomic_add(counter, 1) == C.split - 1;
    if (is_last) *counter = 0;
    store_shared(flag, is_last);
  }
  sync_block();
  const bool is_last = load_shared(flag) != 0;
  sync_block();  // the flag's place is used again
  if (!is_last || at.team != 0) return is_last;
  sums.clear();
#pragma unroll 1
  for (int part = 0; part < C.split; ++part) {
    const Words4* from = piece(part);
    sums.each([&](float(&f)[4], int i) {
      const Words4 w = load_l2(from + i * 32);
      f[0] += bits_to_float(w.x), f[1] += bits_to_float(w.y), f[2] += bits_to_float(w.z), f[3] += bits_to_float(w.w);
    });
  }
  return true;
}

/// Lanes g and g ^ 1 trade rows, so that each has two columns of one row; then rows go out whole.
template <BatchConfig C>
Q4_DEVICE void store_tile(Sums<C>& sums, const MatmulArgs& a, const Place<C>& at, u32 area) {
  constexpr bool kBf16 = C.p.bf16 != 0;
  constexpr int kStripOuts = out_columns(C.p, kStripColumns), kOuts = out_columns(C.p, C.p.n);
  const int g = at.lane >> 2, t = at.lane & 3, odd = g & 1, column = at.first_strip * kStripOuts;
  if (at.team == 0) {
    const int row = at.row_warp * warp_rows(C) + 2 * t + odd;
    const u32 to = area + row * out_row_bytes(C) + at.strip * (kStripOuts * 2);
    const auto bias_at = [&](int in_strip) {
      float bias = 0.f;
      if constexpr (C.p.bias) {
        const int n = (C.p.gated ? 2 * column : column) + at.strip * kStripColumns + in_strip + g;
        if (n < C.p.n) bias = bias_of<C.p>(a, n);
      }
      return bias;
    };
#pragma unroll
    for (int tile = 0; tile < kStripTiles; ++tile)
#pragma unroll
      for (int upper = 0; upper < (C.p.gated ? 1 : 2); ++upper) {
        const int in_strip = tile * kTileColumns + 8 * upper, out = out_columns(C.p, in_strip);
        const float bias = bias_at(in_strip), up_bias = C.p.gated ? bias_at(in_strip + 8) : 0.f;
#pragma unroll
        for (int octet = 0; octet < Sums<C>::kOctets; ++octet) {
          const float* v = sums.v[tile][octet] + 2 * upper;
          float mine[2];  // rows 2 t and 2 t + 1
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if constexpr (C.p.gated)
              mine[e] = finish_pair<C.p>(v[e] + bias, v[2 + e] + up_bias);
            else
              mine[e] = finish_one<C.p>(v[e] + bias);
          u32 pair;                      // columns g - odd and the next of row 2 t + odd
          if constexpr (C.p.residual) {  // traded before they are rounded
            const float other = shuffle_xor(odd ? mine[0] : mine[1], 4);
            const int m = at.row + row + octet * 8, n = column + at.strip * kStripOuts + out + g - odd;
            u32 residual = 0;
            if (m < a.m && n < kOuts) residual = *reinterpret_cast<const u32*>(a.residual + m * a.residual_stride + n);
            const Float2 r = to_float2<kBf16>(residual);
            pair = pack<kBf16>((odd ? other : mine[0]) + r.x, (odd ? mine[1] : other) + r.y);
          } else {
            const u32 both = pack<kBf16>(mine[0], mine[1]), other = shuffle_xor(both, 4);
            pair = odd ? byte_perm(other, both, 0x7632) : byte_perm(both, other, 0x5410);
          }
          store_shared(to + octet * 8 * out_row_bytes(C) + (out + g - odd) * 2, pair);
        }
      }
  }
  sync_block();
  constexpr int kChunks = C.strips * (kStripOuts / 8);  // of a row
#pragma unroll 4
  for (int i = thread_index(); i < C.rows * kChunks; i += threads(C)) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (at.row + row >= a.m || column + chunk * 8 >= kOuts) continue;
    u32 v[4];
    load_shared4(v, area + row * out_row_bytes(C) + chunk * 16);
    *reinterpret_cast<Words4*>(a.out + (at.row + row) * a.out_stride + column + chunk * 8) = {v[0], v[1], v[2], v[3]};
  }
}

}  // namespace batch_detail
}  // namespace q4
