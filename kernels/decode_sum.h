// The end of the decode kernel: fragments to shared memory, sums over teams and over the cluster in a fixed order, out.
#pragma once
#include "async.h"
#include "decode_weights.h"

namespace q4 {
namespace decode_detail {

/// Undoes 2^-24 and 16 of the fp16 form, for columns g and g + 8.
template <bool kBf16>
Q4_DEVICE float column_factor(bool upper) {
  return kBf16 ? 1.f : upper ? 1048576.f : 16777216.f;
}

/// Lanes that share the sum over the teams of four columns.
template <DecodeConfig C>
inline constexpr int kParts = C.teams >= 32  ? 8
                              : C.teams >= 8 ? 4
                              : C.teams >= 4 ? 2
                                             : 1;

template <DecodeConfig C>
Q4_DEVICE void store_sums(const float (&acc)[warp_tiles(C)][C.batch][4], float* sums, const Place<C>& at, int m) {
  const int g = at.lane >> 2, t = at.lane & 3;
  float* mine = sums + at.team * rows(C) * sum_stride(C) + at.side * warp_tiles(C) * kTileColumns + g;
#pragma unroll
  for (int i = 0; i < warp_tiles(C); ++i)
#pragma unroll
    for (int b = 0; b < C.batch; ++b)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = 8 * b + 2 * t + e;
        if (row >= m) continue;
        float* to = mine + row * sum_stride(C) + i * kTileColumns;
        to[0] = acc[i][b][e];
        to[8] = acc[i][b][2 + e];
      }
}

/// Four columns of one row, summed over the teams: in each lane of a part's, the same order whatever m is.
template <DecodeConfig C>
Q4_DEVICE void sum_teams(float (&v)[4], const float* sums, int row, int quad, int part) {
  constexpr int kEach = ceil_div(C.teams, kParts<C>);
  v[0] = v[1] = v[2] = v[3] = 0.f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int team = part * kEach + i;
    if (kEach * kParts<C> != C.teams && team >= C.teams) break;
    const Words4 w = *reinterpret_cast<const Words4*>(sums + (team * rows(C) + row) * sum_stride(C) + quad * 4);
    v[0] += bits_to_float(w.x), v[1] += bits_to_float(w.y), v[2] += bits_to_float(w.z), v[3] += bits_to_float(w.w);
  }
#pragma unroll
  for (int step = 32 / kParts<C>; step < 32; step *= 2)
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] += shuffle_xor(v[e], step);
}

template <DecodeConfig C>
Q4_DEVICE void store_out(const MatmulArgs& a, float (&v)[4], int row, int column, int quad) {
  if (column >= C.p.n) return;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    v[e] *= column_factor<kBf16<C>>(quad % 4 >= 2);
    if constexpr (C.p.bias) v[e] += to_float<kBf16<C>>(a.bias[column + e]);
  }
  *reinterpret_cast<Words2*>(a.out + row * a.out_stride + column) = {from_float2<kBf16<C>>(v[0], v[1]),
                                                                     from_float2<kBf16<C>>(v[2], v[3])};
}

/// Each block of the cluster owns its share of the columns: it sends the others theirs, then adds up its own by rank.
template <DecodeConfig C>
Q4_DEVICE void reduce(const MatmulArgs& a, const float* sums, u8* inbox, const Place<C>& at) {
  constexpr int kQuads = 4 * C.tiles / C.cluster;  // of one owner, in a row
  constexpr int kGroup = 32 / kParts<C>;           // quads that a warp sums at once
  const u32 bar = shared_address(inbox + inbox_bytes(C) - 16);
  if constexpr (C.cluster > 1) cluster_wait();  // every block runs, and expects what it will be sent
  const int part = at.lane / kGroup;
#pragma unroll
  for (int turn = 1; turn <= C.cluster; ++turn) {
    const int owner = (at.rank + turn) % C.cluster;
    for (int base = (thread_index() >> 5) * kGroup; base < a.m * kQuads; base += threads(C) / kParts<C>) {
      const int item = smaller(base + at.lane % kGroup, a.m * kQuads - 1);
      const bool mine = part == 0 && base + at.lane % kGroup < a.m * kQuads;
      const int row = item / kQuads, own = item % kQuads, quad = owner * kQuads + own;
      float v[4];
      sum_teams<C>(v, sums, row, quad, part);
      if (!mine) continue;
      if (turn < C.cluster) {
        const u32 to = shared_address(inbox) + ((at.rank * rows(C) + row) * kQuads + own) * 16;
        store_remote(remote_address(to, owner), v, remote_address(bar, owner));
        continue;
      }
      if constexpr (C.cluster > 1) {
        mbar_wait_cluster(bar, 0);
        float total[4] = {};
#pragma unroll
        for (int r = 0; r < C.cluster; ++r) {
          const float* in = reinterpret_cast<const float*>(inbox) + ((r * rows(C) + row) * kQuads + own) * 4;
#pragma unroll
          for (int e = 0; e < 4; ++e) total[e] += r == at.rank ? v[e] : in[e];
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = total[e];
      }
      store_out<C>(a, v, row, (block_index() / C.cluster * C.tiles) * kTileColumns + quad * 4, quad);
    }
  }
}

/// Before the first send: the inbox's barrier, and how much will come.
template <DecodeConfig C>
Q4_DEVICE void open_inbox(u8* inbox, int m) {
  const u32 bar = shared_address(inbox + inbox_bytes(C) - 16);
  if (thread_index() == 0) {
    mbar_init(bar, 1);
    mbar_expect(bar, (C.cluster - 1) * m * (4 * C.tiles / C.cluster) * 16);
    mbar_fence_init();
  }
  sync_warp();
  cluster_arrive();
}

}  // namespace decode_detail
}  // namespace q4
