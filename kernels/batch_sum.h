// The end of the batch kernel: sums of teams in shared memory, of blocks in the workspace, each in a fixed order; bias,
// rounding, rows of 16 bytes a thread.
#pragma once
#include "batch_stage.h"

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
  const int g = at.lane >> 2, t = at.lane & 3, odd = g & 1, column = at.first_strip * kStripColumns;
  if (at.team == 0) {
    const u32 to =
        area + (at.row_warp * warp_rows(C) + 2 * t + odd) * out_row_bytes(C) + at.strip * (kStripColumns * 2);
#pragma unroll
    for (int tile = 0; tile < kStripTiles; ++tile)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int in_strip = tile * kTileColumns + 8 * upper;
        float bias = 0.f;
        if constexpr (C.p.bias) {
          const int n = column + at.strip * kStripColumns + in_strip + g;
          if (n < C.p.n) bias = to_float<kBf16>(a.bias[n]);
        }
#pragma unroll
        for (int octet = 0; octet < Sums<C>::kOctets; ++octet) {
          const float* v = sums.v[tile][octet] + 2 * upper;
          const u32 mine = pack<kBf16>(v[0] + bias, v[1] + bias), other = shuffle_xor(mine, 4);
          store_shared(to + octet * 8 * out_row_bytes(C) + (in_strip + g - odd) * 2,
                       odd ? byte_perm(other, mine, 0x7632) : byte_perm(mine, other, 0x5410));
        }
      }
  }
  sync_block();
  constexpr int kChunks = C.strips * (kStripColumns / 8);  // of a row
#pragma unroll 4
  for (int i = thread_index(); i < C.rows * kChunks; i += threads(C)) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (at.row + row >= a.m || column + chunk * 8 >= C.p.n) continue;
    u32 v[4];
    load_shared4(v, area + row * out_row_bytes(C) + chunk * 16);
    *reinterpret_cast<Words4*>(a.out + (at.row + row) * a.out_stride + column + chunk * 8) = {v[0], v[1], v[2], v[3]};
  }
}

}  // namespace batch_detail
}  // namespace q4
