// x of the decode kernel: staged in shared memory slab by slab, read as fragments of B, and summed for the zeros. Under
// act-order all of x comes there first, as it is, and slabs are gathered from it: a gather from memory meets a line an
// element, in every block.
#pragma once
#include "decode_weights.h"
#include "mma.h"

namespace q4 {
namespace decode_detail {

/// Chains that the sum of a set's x is made in: dependent mma are some 33 clocks apart, registers dear at 16 rows.
template <DecodeConfig C>
inline constexpr int kSumChains = C.batch == 1 && set_steps(C) > 1 ? 2 : 1;

/// Adds step `j` of a set to its sums of x, by an mma with A = 1.
template <DecodeConfig C>
Q4_DEVICE void sum_step(float (&total)[kSumChains<C>][C.batch][4], const u32 (&frag)[C.batch][4], int j, int step) {
  constexpr u32 kOne = kBf16<C> ? 0x3f803f80u : 0x3c003c00u;
  const u32 ones[4] = {kOne, kOne, kOne, kOne};
#pragma unroll
  for (int b = 0; b < C.batch; ++b) {
    float(&sum)[4] = total[j % kSumChains<C>][b];
    if (j < kSumChains<C>)
      mma_16816_first<kBf16<C>>(sum, ones, frag[b][step % 2 * 2], frag[b][step % 2 * 2 + 1]);
    else
      mma_16816<kBf16<C>>(sum, ones, frag[b][step % 2 * 2], frag[b][step % 2 * 2 + 1]);
  }
}
template <DecodeConfig C>
Q4_DEVICE float total_of(const float (&total)[kSumChains<C>][C.batch][4], int b, int e) {
  return kSumChains<C> == 2 ? total[0][b][e] + total[kSumChains<C> - 1][b][e] : total[0][b][e];
}

/// A team's ring of slabs of x in shared memory, and the sums of x over each set of a slab, which the zeros meet. Rows
/// from m on are neither read nor written: their columns of B repeat row m - 1, meet no other column, and are not
/// stored.
template <DecodeConfig C>
struct XRing {
  u8* ring;                                     // this team's
  float* sums;                                  // this team's, [parity][set][row]
  u32 fragment;                                 // this lane's ldmatrix row in slot 0, for rows 0..7
  u32 fragment_8;                               // and for rows 8..15
  u16* whole;                                   // act-order: x as it comes, [row][x_k]
  float squares[larger(1, norm_rows(C))] = {};  // norm: of what this lane brought of its rows
  Words4 maps[x_ahead(C)];
  int lane, side, team;
  int slot = 0;
  i32 source = 0;  // grouped, indirect: row of x of this lane's row of the item

  Q4_DEVICE XRing(const MatmulArgs& a, const Place<C>& at) : lane(at.lane), side(at.side), team(at.team) {
    ring = shared_memory() + (C.share ? 0 : at.team * C.x_slots * x_slot_bytes(C));
    sums = reinterpret_cast<float*>(shared_memory() + x_bytes(C)) + at.team * 2 * slab_sets(C) * rows(C);
    whole = reinterpret_cast<u16*>(shared_memory() + shared_bytes(C) - staged_bytes(C));
    find_rows(a);
  }
  Q4_DEVICE void find_rows(const MatmulArgs& a) {
    const u32 base = shared_address(ring) + (lane >> 3) * 16;
    fragment = base + smaller(lane & 7, a.m - 1) * x_row_bytes(C);
    fragment_8 = base + smaller(8 + (lane & 7), a.m - 1) * x_row_bytes(C);
  }

  Q4_DEVICE static u8* norm_memory() {
    return shared_memory() + x_bytes(C) + x_sum_bytes(C) + sum_bytes(C) + inbox_bytes(C);
  }
  /// Norm: brings the weights of this team's slabs, which unlike x are constant.
  Q4_DEVICE void bring_weights(const MatmulArgs& a, const Place<C>& at) {
    const int member = side * 32 + lane, column = (member & 15) * 8;
    const u32 to = shared_address(norm_memory() + team * most_slabs(C) * kNormSlabBytes) + column * 2;
    for (int i = member >> 4; i < at.count; i += 2 * C.side) {
      const int p = (at.slot + i * slots(C)) * kSlabRows + column;
      const bool inside = C.p.x_k >= C.p.k || p < C.p.x_k;
      async_copy16(to + i * kNormSlabBytes, a.norm + (inside ? p : 0), inside ? 16 : 0);
    }
    async_commit();
  }
  Q4_DEVICE void wait_weights() {
    async_wait<0>();
    sync_team();
  }
  /// Norm: what this lane brought of the team's slab `i`: squares are summed, and elements multiplied by their weights.
  Q4_DEVICE void normalize(const MatmulArgs& a, int i, int into) {
    const int member = side * 32 + lane, first_row = member >> 4, column = (member & 15) * 8;
    const Words4 weight =
        *reinterpret_cast<const Words4*>(norm_memory() + (team * most_slabs(C) + i) * kNormSlabBytes + column * 2);
    const u32 weights[4] = {weight.x, weight.y, weight.z, weight.w};
#pragma unroll
    for (int j = 0; j < norm_rows(C); ++j) {
      const int row = first_row + 2 * C.side * j;
      if (row >= a.m) break;
      Words4* at = reinterpret_cast<Words4*>(ring + into * x_slot_bytes(C) + row * kXRowBytes + column * 2);
      const Words4 v = *at;
      u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Float2 x = to_float2<kBf16<C>>(words[e]), w = to_float2<kBf16<C>>(weights[e]);
        squares[j] += x.x * x.x + x.y * x.y;
        words[e] = from_float2<kBf16<C>>(x.x * w.x, x.y * w.y);
      }
      *at = {words[0], words[1], words[2], words[3]};
    }
  }
  /// Norm: the team's sums of squares to where norm_scale() finds them.
  Q4_DEVICE void store_squares(const MatmulArgs& a) {
    float* to = reinterpret_cast<float*>(norm_memory() + norm_weight_bytes(C));
#pragma unroll
    for (int j = 0; j < norm_rows(C); ++j) {
#pragma unroll
      for (int d = 8; d > 0; d /= 2) squares[j] += shuffle_xor(squares[j], d);
      const int row = 2 * side + (lane >> 4) + 2 * C.side * j;
      if ((lane & 15) == 0 && row < a.m) to[row * norm_parts(C) + team] = squares[j];
    }
  }
  /// Asks for one slab of x, 8 columns of one row a lane and turn.
  Q4_DEVICE void stage(const MatmulArgs& a, int slab, int into) {
    const int member = side * 32 + lane, first_row = member >> 4, column = (member & 15) * 8,
              p = slab * kSlabRows + column;
    const bool inside = C.p.x_k >= C.p.k || p < C.p.x_k;
    if constexpr (is_indirect(C.p)) {
      u32 to = shared_address(ring) + into * x_slot_bytes(C) + first_row * kXRowBytes + column * 2;
      const u16* x = a.x + (inside ? p : 0);
#pragma unroll 1
      for (int base = 2 * side; base < a.m; base += 2 * C.side) {
        const int row = base + (lane >> 4);
        const i32 from = shuffle(source, row);
        if (row < a.m) async_copy16(to, x + from * a.x_stride, inside ? 16 : 0);
        to += 2 * C.side * kXRowBytes;
      }
      return;
    }
    const u16* x = a.x + first_row * a.x_stride + (inside ? p : 0);
    u32 to = shared_address(ring) + into * x_slot_bytes(C) + first_row * kXRowBytes + column * 2;
#pragma unroll 1
    for (int row = first_row; row < a.m; row += 2 * C.side) {
      async_copy16(to, x, inside ? 16 : 0);
      x += 2 * C.side * a.x_stride;
      to += 2 * C.side * kXRowBytes;
    }
  }
  /// Asks for all of x, by all threads.
  Q4_DEVICE void stage_whole(const MatmulArgs& a) {
    constexpr int kPieces = C.p.x_k / 8;  // of 16 bytes, in a row
    for (int i = thread_index(); i < a.m * kPieces; i += threads(C))
      async_copy16(shared_address(whole) + i * 16, a.x + i / kPieces * a.x_stride + i % kPieces * 8, 16);
  }
  /// Where this lane's four columns of a slab stand in x; below 0: nowhere, they are 0.
  Q4_DEVICE static Words4 load_map(const MatmulArgs& a, const Place<C>& at, int i) {
    return *reinterpret_cast<const Words4*>(a.x_map + (at.slot + i * slots(C)) * kSlabRows + 4 * at.lane);
  }
  /// Before the weights are asked for: the map, unlike x, is constant.
  Q4_DEVICE void load_maps(const MatmulArgs& a, const Place<C>& at) {
#pragma unroll
    for (int i = 0; i < x_ahead(C); ++i)
      if (C.p.gather && i < at.count) maps[i] = load_map(a, at, i);
  }
  /// One slab of x from all of it: a row a turn.
  Q4_DEVICE void gather(const MatmulArgs& a, const Words4& map, int into) {
    u8* to = ring + into * x_slot_bytes(C) + side * kXRowBytes + lane * 8;
    const u16* x = whole + side * C.p.x_k;
    const u32 from[4] = {map.x, map.y, map.z, map.w};
#pragma unroll 1
    for (int row = side; row < a.m; row += C.side) {
      u32 v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = static_cast<i32>(from[i]) < 0 ? 0u : x[from[i]];
      *reinterpret_cast<Words2*>(to) = {v[0] | v[1] << 16, v[2] | v[3] << 16};
      x += C.side * C.p.x_k;
      to += C.side * kXRowBytes;
    }
  }
  Q4_DEVICE void sync_team() {
    if constexpr (C.side == 1)
      sync_warp();
    else
      named_barrier(1 + team, 32 * C.side);
  }
  /// The B fragments of steps 2 pair and 2 pair + 1 of the slab in `slot`.
  Q4_DEVICE void load(u32 (&frag)[C.batch][4], int slot, int pair) const {
    load_matrix4(frag[0], fragment + slot * x_slot_stride(C) + pair * 64);
    if constexpr (C.batch == 2) load_matrix4(frag[1], fragment_8 + slot * x_slot_stride(C) + pair * 64);
  }
  /// One warp of the team sums x of slab `i` by an mma with A = 1.
  Q4_DEVICE void sum(int i, int slot) {
    if (C.side > 1 && i % C.side != side) return;
    u32 frag[C.batch][4];
#pragma unroll
    for (int u = 0; u < slab_sets(C); ++u) {
      float total[kSumChains<C>][C.batch][4];
#pragma unroll
      for (int j = 0; j < set_steps(C); ++j) {
        const int step = u * set_steps(C) + j;
        if (step % 2 == 0) load(frag, slot, step / 2);
        sum_step<C>(total, frag, j, step);
      }
      if (lane < 4)
#pragma unroll
        for (int b = 0; b < C.batch; ++b)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            sums[(i % 2 * slab_sets(C) + u) * rows(C) + 8 * b + 2 * lane + e] = total_of<C>(total, b, e);
    }
  }
  /// Grouped: asks for the first slabs; nobody reads the ring any more.
  Q4_DEVICE void ask(const MatmulArgs& a, const Place<C>& at) {
    slot = 0;
#pragma unroll
    for (int i = 0; i < x_ahead(C); ++i) {
      if (i < at.count) stage(a, at.slot + i * slots(C), i);
      async_commit();
    }
  }
  // ---- all of x, in two parts, each block of the cluster its share of both -------------------------------------------
  Q4_DEVICE static u32 bar() {
    return shared_address(shared_memory()) + x_bytes(C) + x_sum_bytes(C) + sum_bytes(C) + inbox_bytes(C);
  }
  /// Barriers, and how much will come, before other blocks may send.
  Q4_DEVICE static void open(int m) {
    if (thread_index() == 0) {
      mbar_init(bar(), 1), mbar_init(bar() + 8, 1);
      mbar_expect(bar(), m * x_part_slabs(C) * kSlabRows * 2);
      mbar_expect(bar() + 8, m * (slabs(C.p.k) - x_part_slabs(C)) * kSlabRows * 2);
      mbar_fence_init();
    }
    sync_warp();
    if constexpr (C.share > 1)
      cluster_arrive();
    else
      sync_block();
  }
  Q4_DEVICE void ask_whole(const MatmulArgs& a) {
    constexpr int kPart = x_part_slabs(C), kLast = slabs(C.p.k) - kPart;
    if constexpr (C.share > 1) cluster_wait();
    if (thread_index() >= 32) return;
    const int rank = C.share > 1 ? block_index() % C.share : 0;
    for (int i = lane; i < (kLast > 0 ? 2 : 1) * a.m; i += 32) {
      const int part = i >= a.m, row = i - part * a.m;
      const int bytes = (part ? kLast : kPart) * kSlabRows * 2 / C.share;
      const int offset = part * kPart * kSlabRows * 2 + rank * bytes;
      const u32 to = shared_address(ring) + row * whole_row_bytes(C) + offset;
      const u8* from = reinterpret_cast<const u8*>(a.x + row * a.x_stride) + offset;
      if constexpr (C.share > 1)
        bulk_load_multicast(to, from, bytes, bar() + 8 * part, (1 << C.share) - 1);
      else
        bulk_load(to, from, bytes, bar() + 8 * part);
    }
  }
  Q4_DEVICE static void wait_slab(int slab) { mbar_wait_cluster(bar() + (slab < x_part_slabs(C) ? 0 : 8), 0); }

  /// Asks for the first slabs (grouped: after ask()) and sums the first (as `next`). `then` runs when this thread's part
  /// of it has come.
  template <class F>
  Q4_DEVICE void first(const MatmulArgs& a, const Place<C>& at, F then) {
    if constexpr (C.share > 0) {
      ask_whole(a);
      if (at.count > 0) wait_slab(at.slot);
      sync_warp();
      then();
      if constexpr (!sums_itself(C)) {
        if (at.count > 0) sum(0, at.slot);
      }
      return;
    }
    if constexpr (C.p.gather) {
      stage_whole(a);
      async_commit();
      async_wait<0>();
      then();
      sync_block();
#pragma unroll
      for (int i = 0; i < x_ahead(C); ++i)
        if (i < at.count) gather(a, maps[i], i);
      if (x_ahead(C) < at.count) maps[0] = load_map(a, at, x_ahead(C));
    } else {
      if constexpr (!C.p.grouped) {
#pragma unroll
        for (int i = 0; i < x_ahead(C); ++i) {
          if (i < at.count) stage(a, at.slot + i * slots(C), i);
          async_commit();
        }
      }
      async_wait<x_ahead(C) - 1>();
      then();
    }
    if constexpr (!sums_itself(C)) {
      if (at.count == 0) return;
      if constexpr (C.p.norm) normalize(a, 0, 0);
      sync_team();
      sum(0, 0);
    }
  }
  /// Makes slab `i` of the team and its sums readable, asks for the one that takes the slot all have left behind, and
  /// sums the next, unless each warp sums for itself.
  Q4_DEVICE void next(const MatmulArgs& a, const Place<C>& at, int i) {
    if constexpr (C.share > 0) {
      slot = at.slot + i * slots(C);
      if (i > 0) wait_slab(slot);
      sync_team();
      if constexpr (!sums_itself(C) && most_slabs(C) > 1) {
        if (i + 1 < at.count) {
          wait_slab(slot + slots(C));
          sync_warp();
          sum(i + 1, slot + slots(C));
        }
      }
      return;
    }
    if (i > 0) slot = slot + 1 == C.x_slots ? 0 : slot + 1;
    if constexpr (most_slabs(C) > 1) async_wait<x_ahead(C) - (sums_itself(C) ? 1 : 2)>();
    if constexpr (C.p.norm && sums_itself(C)) normalize(a, i, slot);
    if constexpr (C.p.norm && !sums_itself(C))
      if (i + 1 < at.count) normalize(a, i + 1, slot + 1 == C.x_slots ? 0 : slot + 1);
    sync_team();
    if constexpr (most_slabs(C) > x_ahead(C)) {
      const int into = slot == 0 ? C.x_slots - 1 : slot - 1, coming = i + x_ahead(C);
      if (C.p.gather && coming < at.count) {
        gather(a, maps[0], into);
        if (coming + 1 < at.count) maps[0] = load_map(a, at, coming + 1);
      } else if (coming < at.count) {
        stage(a, at.slot + coming * slots(C), into);
      }
    }
    if constexpr (most_slabs(C) > 1) {
      async_commit();  // a group each time, so that waiting for all but some goes on meaning the oldest
      if (!sums_itself(C) && i + 1 < at.count) sum(i + 1, slot + 1 == C.x_slots ? 0 : slot + 1);
    }
  }
  Q4_DEVICE const float* slab_sums(int i) const { return sums + i % 2 * slab_sets(C) * rows(C) + 2 * (lane & 3); }
};

}  // namespace decode_detail
}  // namespace q4
