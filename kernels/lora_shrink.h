// lora_shrink: low = scale x A (lora.h) for rows of any adapters, as a launch of its own before the matmul.
//
//   list    `rows` rows, sorted by adapter in shared memory: `parts` blocks share it
//   unit    a chunk of 16 ranks of one adapter, for up to `octets` eights of its rows: A meets no other adapter's rows.
//           A block has every parts-th unit; the blocks of a cluster have the same, each a part of k
//   warp    every warps-th block of 32 of k. What it asks for goes to a queue in shared memory in which each lane reads
//           only what it asked for itself: no barrier, and the next unit's loads are on their way while sums are added
//   sums    warp by warp, then block by block of the cluster (st.async to the first), in order: a row's bits depend on
//           the row, its adapter and how k is cut
#pragma once
#include "lora_mma.h"

namespace q4 {
namespace lora_detail {

template <LoraShrinkConfig C>
class Units {
 public:
  /// Rows sorted[first] to sorted[first + rows - 1], counted from the list's first row.
  struct Unit {
    int lead, chunk, first, rows;
  };

  Q4_DEVICE Units(const LoraArgs& l, i64 row, int rows, int part, int parts, u8* shared) : part_(part), parts_(parts) {
    a_ = reinterpret_cast<const u16**>(shared);
    scales_ = reinterpret_cast<float*>(a_ + C.rows);
    adapter_ = reinterpret_cast<i32*>(scales_ + C.rows);
    chunks_ = adapter_ + C.rows, totals_ = chunks_ + C.rows, firsts_ = totals_ + C.rows, counts_ = firsts_ + C.rows;
    sorted_ = reinterpret_cast<u16*>(counts_ + 4);
    units_ = sorted_ + C.rows;
    make(l, row, rows);
    shift_ = counts_[0], count_ = (counts_[1] - part + parts - 1) / parts, octets_ = counts_[2];
  }
  Q4_DEVICE int count() const { return count_; }    ///< of this block
  Q4_DEVICE int octets() const { return octets_; }  ///< of a unit at most
  Q4_DEVICE Unit unit(int i) const {
    const int v = units_[part_ + i * parts_], lead = v & 127, skip = (v >> 11) << (3 + shift_);
    return {lead, v >> 7 & 15, firsts_[lead] + skip, smaller(8 << shift_, totals_[lead] - skip)};
  }
  Q4_DEVICE int row(const Unit& u, int i) const { return sorted_[u.first + i]; }
  Q4_DEVICE const u16* a(const Unit& u, int k) const {
    return a_[u.lead] + static_cast<i64>(u.chunk) * ceil_div(k, kLoraRows) * 512;
  }
  Q4_DEVICE float scale(const Unit& u) const { return scales_[u.lead]; }

 private:
  static constexpr int kLanes = C.rows <= 32 ? 4 : 8;  // that make a row's part of the list
  static_assert(C.rows % 8 == 0 && C.rows <= 128 && C.rows * kLanes <= 32 * C.warps * 4);

  Q4_DEVICE static int sum_lanes(int v) {
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) v += shuffle_xor(v, step);
    return v;
  }
  /// Pieces of 8 << shift rows.
  Q4_DEVICE static int pieces(int rows, int shift) { return (rows + (8 << shift) - 1) >> (3 + shift); }

  Q4_DEVICE void make(const LoraArgs& l, i64 row_begin, int rows) {
    constexpr int kTurns = ceil_div(C.rows * kLanes, threads(C)), kRead = ceil_div(C.rows, kLanes);
    const int thread = thread_index(), j = thread % kLanes;
    if (thread < round_up(C.rows, 32)) {
      const LoraRow r = lora_row(l, row_begin + thread, thread < rows && thread < C.rows, thread & 31);
      if (thread < C.rows) {
        adapter_[thread] = r.chunks > 0 ? r.adapter : -1;
        chunks_[thread] = r.chunks, scales_[thread] = r.scale, a_[thread] = r.a;
      }
    }
    sync_block();
    int before[kTurns], lead[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = turn * (threads(C) / kLanes) + thread / kLanes;
      before[turn] = 0, lead[turn] = -1;
      if (row >= C.rows) continue;  // whole warps, as rows are eights
      int total = 0, first = C.rows;
      const int own = adapter_[row];
#pragma unroll
      for (int i = 0; i < kRead; ++i) {
        const int r = i * kLanes + j;
        const bool same = own >= 0 && adapter_[r] == own;
        total += same, before[turn] += same && r < row;
        first = same ? smaller(first, r) : first;
      }
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) first = smaller(first, shuffle_xor(first, step));
      total = sum_lanes(total), before[turn] = sum_lanes(before[turn]);
      if (own >= 0) lead[turn] = first;
      if (j == 0) totals_[row] = first == row ? total : 0;
    }
    sync_block();
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = turn * (threads(C) / kLanes) + thread / kLanes;
      if (row >= C.rows) continue;
      int totals[kRead], chunks[kRead], octets = 0, first = 0;
#pragma unroll
      for (int i = 0; i < kRead; ++i) {
        const int r = i * kLanes + j;
        totals[i] = totals_[r], chunks[i] = chunks_[r];
        octets += pieces(totals[i], 0) * chunks[i];
        first += r < lead[turn] ? totals[i] : 0;
      }
      octets = sum_lanes(octets), first = sum_lanes(first);
      int shift = 0;
      while ((1 << shift) < C.octets && parts_ << shift < octets) ++shift;
      int earlier = 0, all = 0, most = 0;
#pragma unroll
      for (int i = 0; i < kRead; ++i) {
        const int units = pieces(totals[i], shift) * chunks[i];
        earlier += i * kLanes + j < row ? units : 0, all += units;
        most = larger(most, pieces(totals[i], 0));
      }
      earlier = sum_lanes(earlier), all = sum_lanes(all);
#pragma unroll
      for (int step = 1; step < kLanes; step *= 2) most = larger(most, shuffle_xor(most, step));
      if (row == 0 && j == 0) counts_[0] = shift, counts_[1] = all, counts_[2] = smaller(most, 1 << shift);
      if (lead[turn] < 0) continue;
      if (j == 0) sorted_[first + before[turn]] = static_cast<u16>(row);
      if (lead[turn] != row) continue;
      if (j == 0) firsts_[row] = first;
      const int own = pieces(totals_[row], shift);
      for (int i = j; i < own * chunks_[row]; i += kLanes)
        units_[earlier + i] = static_cast<u16>(row | i / own << 7 | i % own << 11);
    }
    sync_block();
  }

  const int part_, parts_;
  const u16** a_;           // of each row
  float* scales_;           // the same
  i32 *adapter_, *chunks_;  // the same; -1: none
  i32 *totals_, *firsts_;   // of the first row of an adapter: its rows, and where they begin among the sorted; else 0
  i32* counts_;             // shift, units, octets of the largest
  u16 *sorted_, *units_;    // rows; units: first row | chunk << 7 | number of its rows' piece << 11
  int shift_, count_, octets_;
};

/// What a block of a cluster of `of` is.
struct Cluster {
  int rank, of;
  u32 bar;          // of the first block: counts what comes from the others
  float* gathered;  // there: [block - 1][octet][128]
  u32 phase = 0;    // of the barrier
};

/// Asks for the blocks of 32 of k that warps have of each unit, in order.
template <LoraShrinkConfig C, int kOctets>
struct Queue {
  static constexpr int kStages = lora_stages(C, kOctets), kPiece = threads(C) * 16, kStage = (2 + kOctets) * kPiece;
  static_assert(kStages >= 2);
  const Units<C>& units;
  const u16* x;
  const i64 x_stride;
  const int k, begin, end;
  const u32 to;
  u8* const ring;
  int unit, block, slot = 0, octets = 0;
  const u16 *a = nullptr, *rows[kOctets] = {};
  u32 inside = 0;  // octets in which this lane has a row

  Q4_DEVICE Queue(const Units<C>& units, const u16* x, i64 x_stride, int k, int begin, int end, u8* ring)
      : units(units),
        x(x),
        x_stride(x_stride),
        k(k),
        begin(begin + (thread_index() >> 5)),
        end(end),
        to(shared_address(ring) + thread_index() * 16),
        ring(ring) {
    block = this->begin;
    unit = block < end ? 0 : units.count();
    turn();
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) ask(i);
  }
  Q4_DEVICE void turn() {
    if (unit >= units.count()) return;
    const int lane = thread_index() & 31;
    const typename Units<C>::Unit u = units.unit(unit);
    a = units.a(u, k) + lane * 8;
    octets = ceil_div(u.rows, 8), inside = 0;
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const int r = 8 * o + (lane >> 2);
      inside |= static_cast<u32>(r < u.rows) << o;
      rows[o] = x + (r < u.rows ? units.row(u, r) : 0) * x_stride + 8 * (lane & 3);
    }
  }
  Q4_DEVICE void ask(int slot) {
    if (unit < units.count()) {
      const u32 at = to + slot * kStage;
      const u16* of_a = a + static_cast<i64>(block) * 512;
      async_copy16(at, of_a, 16), async_copy16(at + kPiece, of_a + 256, 16);
      const int first = block * kLoraRows;
      const bool within = first + 8 * (thread_index() & 3) < k;
#pragma unroll
      for (int o = 0; o < kOctets; ++o)
        if (o < octets)
          async_copy16(at + (2 + o) * kPiece, rows[o] + (within ? first : 0), within && (inside >> o & 1) ? 16 : 0);
      block += C.warps;
      if (block >= end) {
        block = begin, ++unit;
        turn();
      }
    }
    async_commit();
  }
  /// A unit's.
  Q4_DEVICE void multiply(float (&acc)[kOctets][4], int of_unit) {
    const u8* from = ring + thread_index() * 16;
#pragma unroll 1
    for (int b = begin; b < end; b += C.warps) {
      ask(slot == 0 ? kStages - 1 : slot - 1);  // what was read last is free
      async_wait<kStages - 1>();
      const u8* at = from + slot * kStage;
      const Words4 p = *reinterpret_cast<const Words4*>(at), q = *reinterpret_cast<const Words4*>(at + kPiece);
      const u32 low_k[4] = {p.x, p.y, p.z, p.w}, high_k[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int o = 0; o < kOctets; ++o) {
        if (o >= of_unit) continue;
        const Words4 v = *reinterpret_cast<const Words4*>(at + (2 + o) * kPiece);
        mma_16816<C.bf16 != 0>(acc[o], low_k, v.x, v.y);
        mma_16816<C.bf16 != 0>(acc[o], high_k, v.z, v.w);
      }
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
  }
};

/// v: the sums of this block, becomes those of the cluster in its first block, where that returns true.
template <LoraShrinkConfig C, int kOctets>
Q4_DEVICE bool sum_cluster(float (&v)[4], const Cluster& cluster, int octet, int lane) {
  if constexpr (C.cuts) {
    if (cluster.rank > 0) {
      const u32 to = shared_address(cluster.gathered + ((cluster.rank - 1) * kOctets + octet) * 128 + lane * 4);
      store_remote(remote_address(to, 0), v, remote_address(cluster.bar, 0));
      return false;
    }
    if (cluster.of > 1) mbar_wait_cluster(cluster.bar, cluster.phase);
#pragma unroll 1
    for (int b = 0; b < cluster.of - 1; ++b) {
      const Words4 f = *reinterpret_cast<const Words4*>(cluster.gathered + (b * kOctets + octet) * 128 + lane * 4);
      v[0] += bits_to_float(f.x), v[1] += bits_to_float(f.y), v[2] += bits_to_float(f.z), v[3] += bits_to_float(f.w);
    }
  }
  return true;
}

/// All units of a block, whose part of k is blocks [begin, end).
template <LoraShrinkConfig C, int kOctets>
Q4_DEVICE void multiply_units(const LoraShrinkArgs& args, i64 row, const Units<C>& units, Cluster& cluster, int begin,
                              int end, u8* ring, float* sums) {
  const int warp = thread_index() >> 5, lane = thread_index() & 31;
  const auto expect = [&] {  // what the other blocks of the cluster will send to the first
    if constexpr (C.cuts) {
      if (cluster.of == 1 || units.count() == 0) return;
      if (cluster.rank == 0 && thread_index() == 0) mbar_expect(cluster.bar, (cluster.of - 1) * kOctets * 512);
      sync_warp();
      cluster_arrive();
    }
  };
  const auto all_expect = [&] {
    if constexpr (C.cuts) {
      if (cluster.of > 1) cluster_wait();
    }
  };
  expect();
  Queue<C, kOctets> queue(units, args.x + row * args.x_stride, args.x_stride, args.k, begin, end, ring);
#pragma unroll 1
  for (int i = 0; i < units.count(); ++i) {
    const typename Units<C>::Unit u = units.unit(i);
    float acc[kOctets][4] = {};
    queue.multiply(acc, ceil_div(u.rows, 8));
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
      *reinterpret_cast<Floats4*>(sums + (o * C.warps + warp) * 128 + lane * 4) = {acc[o][0], acc[o][1], acc[o][2],
                                                                                   acc[o][3]};
    sync_block();
    all_expect();
    if (warp < kOctets) {
      float v[4] = {};
#pragma unroll
      for (int w = 0; w < C.warps; ++w) {
        const Words4 f = *reinterpret_cast<const Words4*>(sums + (warp * C.warps + w) * 128 + lane * 4);
        v[0] += bits_to_float(f.x), v[1] += bits_to_float(f.y), v[2] += bits_to_float(f.z), v[3] += bits_to_float(f.w);
      }
      if (sum_cluster<C, kOctets>(v, cluster, warp, lane)) {
        const float scale = units.scale(u);
#pragma unroll
        for (int e = 0; e < 4; ++e) {  // rank g + 8 (e / 2) of row 2 t + e % 2
          const int r = 8 * warp + (lane & 3) * 2 + e % 2;
          if (r >= u.rows) continue;
          u16* low = args.low + (row + units.row(u, r)) * args.lora.low_stride + u.chunk * kLoraRanks;
          low[(lane >> 2) + e / 2 * 8] = from_float<C.bf16 != 0>(v[e] * scale);
        }
      }
    }
    sync_block();  // the sums' place is used again, and the first block's for what comes
    cluster.phase ^= 1;
    if (i + 1 < units.count()) expect();
  }
  async_wait<0>();
}

/// A block that shrinks, of a cluster or alone: the rank-th of `of` that share k.
template <LoraShrinkConfig C>
class Shrinker {
 public:
  Q4_DEVICE Shrinker(u8* shared, int rank, int of) : ring_(shared), sums_(reinterpret_cast<float*>(shared + C.ring)) {
    float* gathered = sums_ + lora_sum_bytes(C) / 4;
    list_ = reinterpret_cast<u8*>(gathered) + lora_gather_bytes(C);
    cluster_ = {rank, of, shared_address(list_ - 16), gathered};
    if constexpr (C.cuts) {
      if (thread_index() == 0) {
        mbar_init(cluster_.bar, 1);
        mbar_fence_init();
      }
    }
  }
  /// Part `part` of `parts` of the list of C.rows rows from `row` on.
  Q4_DEVICE void shrink(const LoraShrinkArgs& a, i64 row, int part, int parts) {
    const int blocks = ceil_div(a.k, kLoraRows), of = cluster_.of;
    const int begin = blocks * cluster_.rank / of, end = blocks * (cluster_.rank + 1) / of;
    const Units<C> units(a.lora, row, static_cast<int>(a.m - row), part, parts, list_);
    constexpr int kFew = C.octets > 2 ? 2 : 1;
    if (C.octets == kFew || units.octets() <= kFew)
      multiply_units<C, kFew>(a, row, units, cluster_, begin, end, ring_, sums_);
    else
      multiply_units<C, C.octets>(a, row, units, cluster_, begin, end, ring_, sums_);
  }

 private:
  u8* ring_;
  float* sums_;
  u8* list_;
  Cluster cluster_;
};

}  // namespace lora_detail

/// Launch: grid(C, m, split) blocks of threads(C), launch bounds (threads(C), 1), shared_bytes(C) of dynamic shared
/// memory, clusters of split.k blocks (1 without cuts); programmatic stream serialization is allowed.
template <LoraShrinkConfig C>
Q4_DEVICE void lora_shrink(const LoraShrinkArgs& a) {
  lora_detail::Shrinker<C> shrinker(shared_memory(), block_index() % a.split.k, a.split.k);
  const int group = block_index() / a.split.k;
  wait_previous_kernel();
  allow_next_kernel();  // not before: the next kernel reads x at once
  shrinker.shrink(a, static_cast<i64>(group / a.split.parts) * C.rows, group % a.split.parts, a.split.parts);
}

}  // namespace q4
