// The end of the decode kernel: fragments to shared memory, sums over teams and over the cluster in a fixed order, out.
#pragma once
#include "async.h"
#include "decode_weights.h"
#include "epilogue.h"

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

/// Four columns of out in one row: of one quad of sums, or of two whose columns are pairs. A block of the cluster owns
/// kItems of a row.
template <DecodeConfig C>
inline constexpr int kItemQuads = C.p.gated ? 2 : 1;
template <DecodeConfig C>
inline constexpr int kItems = 4 * C.tiles / C.cluster / kItemQuads<C>;
/// The quads of item `item` of the block's tiles.
template <DecodeConfig C>
Q4_DEVICE int item_quad(int item, int which) {
  return C.p.gated ? item / 2 * 4 + item % 2 + 2 * which : item;
}
template <DecodeConfig C>
Q4_DEVICE int item_column(const Place<C>& at, int item) {
  return at.block * out_columns(C.p, C.tiles * kTileColumns) + item * 4;
}

/// Items that a warp sums at once, and the first that a lane stores: those of its rank come last.
template <DecodeConfig C>
inline constexpr int kGroup = 32 / kParts<C>;
template <DecodeConfig C>
Q4_DEVICE const Words2* first_residual(const MatmulArgs& a, const Place<C>& at) {
  const int item = smaller((thread_index() >> 5) * kGroup<C> + at.lane % kGroup<C>, a.m * kItems<C> - 1);
  const int column = smaller(item_column<C>(at, at.rank * kItems<C> + item % kItems<C>), out_columns(C.p, C.p.n) - 4);
  return reinterpret_cast<const Words2*>(a.residual + item / kItems<C> * a.residual_stride + column);
}

/// Norm: 1 / the root of the mean square of a row of x, from the teams' sums in their order.
template <DecodeConfig C>
Q4_DEVICE float norm_scale(const MatmulArgs& a, int row) {
  if constexpr (!C.p.norm) return 1.f;
  const float* squares = reinterpret_cast<const float*>(shared_memory() + x_bytes(C) + x_sum_bytes(C) + sum_bytes(C) +
                                                        inbox_bytes(C) + norm_weight_bytes(C)) +
                         row * norm_parts(C);
  float sum = 0.f;
#pragma unroll
  for (int team = 0; team < C.teams; team += 4) {
    const Floats4 v = *reinterpret_cast<const Floats4*>(squares + team);
    sum += v.x;
    if (team + 1 < C.teams) sum += v.y;
    if (team + 2 < C.teams) sum += v.z;
    if (team + 3 < C.teams) sum += v.w;
  }
  return rsqrt_fast(sum * (1.f / C.p.x_k) + a.norm_epsilon);
}

/// `v`: the sums of an item. `scale`: norm_scale() of its row. `residual`: its four elements.
template <DecodeConfig C>
Q4_DEVICE void store_out(const MatmulArgs& a, const Place<C>& at, float (&v)[kItemQuads<C>][4], int row, int item,
                         [[maybe_unused]] float scale, Words2 residual) {
  const int column = item_column<C>(at, item);
  if (column >= out_columns(C.p, C.p.n)) return;
  [[maybe_unused]] const int first = C.p.gated ? column / 8 * kTileColumns + column % 8 : column;  // packed
#pragma unroll
  for (int q = 0; q < kItemQuads<C>; ++q)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int quad = item_quad<C>(item, q);
      v[q][e] *= column_factor<kBf16<C>>(quad % 4 >= 2);
      if constexpr (C.p.norm) v[q][e] *= scale;
      if constexpr (C.p.bias) v[q][e] += to_float<kBf16<C>>(a.bias[first + 8 * q + e]);
    }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    v[0][e] = C.p.gated ? finish_pair<C.p>(v[0][e], v[kItemQuads<C> - 1][e]) : finish_one<C.p>(v[0][e]);
  if constexpr (C.p.residual) {
    const Float2 low = to_float2<kBf16<C>>(residual.x), high = to_float2<kBf16<C>>(residual.y);
    v[0][0] += low.x, v[0][1] += low.y, v[0][2] += high.x, v[0][3] += high.y;
  }
  *reinterpret_cast<Words2*>(a.out + row * a.out_stride + column) = {from_float2<kBf16<C>>(v[0][0], v[0][1]),
                                                                     from_float2<kBf16<C>>(v[0][2], v[0][3])};
}

/// Each block of the cluster owns its share of the columns: it sends the others theirs, then adds up its own by rank.
/// `residual`: what first_residual points to.
template <DecodeConfig C>
Q4_DEVICE void reduce(const MatmulArgs& a, const float* sums, u8* inbox, const Place<C>& at, Words2 residual) {
  const u32 bar = shared_address(inbox + inbox_bytes(C) - 16);
  if constexpr (C.cluster > 1) cluster_wait();  // every block runs, and expects what it will be sent
  const int part = at.lane / kGroup<C>, first = (thread_index() >> 5) * kGroup<C>;
#pragma unroll
  for (int turn = 1; turn <= C.cluster; ++turn) {
    const int owner = (at.rank + turn) % C.cluster;
    for (int base = first; base < a.m * kItems<C>; base += threads(C) / kParts<C>) {
      const int index = smaller(base + at.lane % kGroup<C>, a.m * kItems<C> - 1);
      const bool mine = part == 0 && base + at.lane % kGroup<C> < a.m * kItems<C>;
      const int row = index / kItems<C>, own = index % kItems<C>, item = owner * kItems<C> + own;
      const float scale = norm_scale<C>(a, row);  // its loads beside those of the sums
      float v[kItemQuads<C>][4];
#pragma unroll
      for (int q = 0; q < kItemQuads<C>; ++q) sum_teams<C>(v[q], sums, row, item_quad<C>(item, q), part);
      if (!mine) continue;
      const auto place = [&](int rank, int q) {
        return ((rank * rows(C) + row) * kItems<C> + own) * kItemQuads<C> + q;
      };
      if (turn < C.cluster) {
#pragma unroll
        for (int q = 0; q < kItemQuads<C>; ++q)
          store_remote(remote_address(shared_address(inbox) + place(at.rank, q) * 16, owner), v[q],
                       remote_address(bar, owner));
        continue;
      }
      if constexpr (C.cluster > 1) {
        mbar_wait_cluster(bar, 0);
#pragma unroll
        for (int q = 0; q < kItemQuads<C>; ++q) {
          float total[4] = {};
#pragma unroll
          for (int r = 0; r < C.cluster; ++r) {
            const float* in = reinterpret_cast<const float*>(inbox) + place(r, q) * 4;
#pragma unroll
            for (int e = 0; e < 4; ++e) total[e] += r == at.rank ? v[q][e] : in[e];
          }
#pragma unroll
          for (int e = 0; e < 4; ++e) v[q][e] = total[e];
        }
      }
      if (C.p.residual && base != first) {
        const int column = smaller(item_column<C>(at, item), out_columns(C.p, C.p.n) - 4);
        residual = *reinterpret_cast<const Words2*>(a.residual + row * a.residual_stride + column);
      }
      store_out<C>(a, at, v, row, item, scale, residual);
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
