// Prefill, stage "epilogue": parts of k are summed in a fixed order, epilogue.h makes out of the sums, rows are stored.
//
// A thread's sums: element 4 j + 2 c + i is column 16 tile + g + 8 c of its strip, row 8 j + 2 (lane % 4) + i of the
// tile. Rows of out, and of the residual before them, stand in shared memory in chunks of 16 bytes that change places
// by row, as the tensor maps' 128-byte swizzle has them.
#pragma once
#include "epilogue.h"
#include "prefill_mma.h"
#include "prefill_residual.h"

namespace q4::prefill_detail {

/// Bias of columns g and g + 8 of a thread; 0 past the last column.
template <PrefillConfig C>
struct Bias {
  float v[2] = {0.f, 0.f};
  Q4_DEVICE Bias(const MatmulArgs& a, int column) {
#pragma unroll
    for (int c = 0; c < 2; ++c)
      if (C.p.bias && column + 8 * c < C.p.n) v[c] = to_float<C.p.bf16>(a.bias[column + 8 * c]);
  }
};

/// 16 rows of the thread's sums (8 elements) to rows of out in shared memory, in place of the residual's.
template <PrefillConfig C>
Q4_DEVICE void store_rows16(u32 to, const float* v, const Bias<C>& bias, const Place& at) {
  constexpr int kWords = C.p.gated ? 2 : 4;  // of pairs of rows: one 8 x 8 matrix each
  const int row = C.p.gated ? at.lane & 15 : (at.lane & 7) + ((at.lane >> 4) << 3);
  const u32 address = to + out_place<C>(row, C.p.gated ? at.tile : 2 * at.tile + ((at.lane >> 3) & 1));
  float out[kWords][2];
#pragma unroll
  for (int i = 0; i < kWords; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if constexpr (C.p.gated)
        out[i][e] = finish_pair<C.p>(v[4 * i + e] + bias.v[0], v[4 * i + 2 + e] + bias.v[1]);
      else
        out[i][e] = finish_one<C.p>(v[2 * i + e] + bias.v[i & 1]);
  if constexpr (C.p.residual) {
    u32 r[kWords];
    load_matrix_transposed(r, address);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const Float2 pair = to_float2<C.p.bf16 != 0>(r[i]);
      out[i][0] += pair.x, out[i][1] += pair.y;
    }
  }
  u32 p[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) p[i] = pack<C.p.bf16>(out[i][0], out[i][1]);
  if constexpr (C.p.gated)
    store_matrix2_transposed(address, p[0], p[1]);
  else
    store_matrix4_transposed(address, p[0], p[1], p[2], p[3]);
}

/// A whole tile: through shared memory, then one tensor store a strip; the map clips rows past m and columns past n.
template <PrefillConfig C, int kRegs>
Q4_DEVICE void store_tile(const float (&acc)[kRegs], const MatmulArgs& a, const TensorMap* out_map, const Shared<C>& s,
                          const Place& at, int column, int row) {
  const u32 out = s.out + at.strip * (C.rows * 128);
  const Bias<C> bias(a, column + kTileColumns * at.tile + at.g);
  if constexpr (C.p.residual) {
    async_wait<0>();
  } else {
    if (at.thread == 0) bulk_wait_read();  // the tile before has left
  }
  named_barrier(1 + at.strip, 128);
#pragma unroll
  for (int j = 0; j < C.rows / 16; ++j) store_rows16<C>(out + j * 16 * kOutRowBytes<C>, acc + 8 * j, bias, at);
  fence_async_shared();
  named_barrier(1 + at.strip, 128);
  if (at.thread == 0) {
    tensor_store(out_map, out, out_columns(C.p, column), row);
    bulk_commit();
  }
}

/// Parts of a cut tile, through the workspace. The last warpgroup to arrive adds them in k order and returns true.
template <PrefillConfig C, int kRegs>
Q4_DEVICE bool sum_cut(float (&acc)[kRegs], const MatmulArgs& a, const Schedule<C>& schedule, const Work& work,
                       const Shared<C>& s, const Place& at) {
  const int begin = work.tile * slabs(C.p.k);
  const int first = schedule.cut_owner(begin), last = schedule.cut_owner(begin + slabs(C.p.k) - 1);
  float* parts = reinterpret_cast<float*>(a.workspace + kCounterBytes);
  const auto part_of = [&](int worker) {  // a worker has at most two: the end of a tile and the beginning of one
    const int which = schedule.cut_begin(worker) > begin ? 0 : 1;
    const u64 slot = (static_cast<u64>(worker * C.share + at.rank) * 2 + which) * C.strips + at.strip;
    return reinterpret_cast<Floats4*>(parts + slot * (kRegs * 128)) + at.thread;
  };
  // As floats: seen as words, the compiler would keep the sums as words and copy them around each wgmma in flight.
  Floats4* mine = part_of(schedule.worker);
#pragma unroll
  for (int i = 0; i < kRegs / 4; ++i) mine[i * 128] = {acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]};
  named_barrier(1 + at.strip, 128);  // and thread 0 releases what all have written
  if (at.thread == 0) {
    u32* counter = reinterpret_cast<u32*>(a.workspace) + (work.tile * C.share + at.rank) * C.strips + at.strip;
    const bool is_last = atomic_add(counter, 1) == static_cast<u32>(last - first);
    if (is_last) *counter = 0;
    store_shared(s.flag + 4 * at.strip, is_last);
  }
  named_barrier(1 + at.strip, 128);
  if (load_shared(s.flag + 4 * at.strip) == 0) return false;
#pragma unroll
  for (int i = 0; i < kRegs; ++i) acc[i] = 0.f;
  for (int w = first; w <= last; ++w) {
    const Floats4* part = part_of(w);
#pragma unroll
    for (int i = 0; i < kRegs / 4; ++i) {
      const Words4 v = load_l2(part + i * 128);
      acc[4 * i] += bits_to_float(v.x), acc[4 * i + 1] += bits_to_float(v.y);
      acc[4 * i + 2] += bits_to_float(v.z), acc[4 * i + 3] += bits_to_float(v.w);
    }
  }
  return true;
}

/// Elements [index, index + kSlice) of a thread's sums, row by row: few rows, straight from registers.
template <PrefillConfig C, int kSlice>
Q4_DEVICE void store_elements(const float (&sum)[kSlice], const SliceResidual<C, kSlice>& residual, const MatmulArgs& a,
                              const Place& at, int column, int row, int index) {
  const Bias<C> bias(a, column + kTileColumns * at.tile + at.g);
#pragma unroll
  for (int i = 0; i < SliceResidual<C, kSlice>::kElements; ++i) {
    const ElementPlace<C> place(at, column, row, index, i);
    if (place.m >= a.m || place.n >= kOuts<C>) continue;
    float v;
    if constexpr (C.p.gated)
      v = finish_pair<C.p>(sum[i / 2 * 4 + i % 2] + bias.v[0], sum[i / 2 * 4 + 2 + i % 2] + bias.v[1]);
    else
      v = finish_one<C.p>(sum[i] + (((index + i) / 2) & 1 ? bias.v[1] : bias.v[0]));
    if constexpr (C.p.residual) v += to_float<C.p.bf16 != 0>(residual.elements[i]);
    a.out[place.m * a.out_stride + place.n] = static_cast<u16>(pack<C.p.bf16>(v, 0.f));
  }
}

/// kSlice / 8 times 16 rows: transposed in shared memory of this warpgroup, then 16 bytes a thread.
template <PrefillConfig C, int kSlice>
Q4_DEVICE void store_slice(const float (&sum)[kSlice], const SliceResidual<C, kSlice>& residual, const MatmulArgs& a,
                           const Place& at, u32 area, int column, int row) {
  const int barrier = 1 + at.team * C.strips + at.strip;
  const Bias<C> bias(a, column + kTileColumns * at.tile + at.g);
  named_barrier(barrier, 128);  // everyone has read the area
  if constexpr (C.p.residual) {
    residual.put(area, at);
    named_barrier(barrier, 128);
  }
#pragma unroll
  for (int j = 0; j < kSlice / 8; ++j) store_rows16<C>(area + j * 16 * kOutRowBytes<C>, sum + 8 * j, bias, at);
  named_barrier(barrier, 128);
#pragma unroll
  for (int i = 0; i < SliceResidual<C, kSlice>::kPasses; ++i) {
    const ChunkPlace<C> place(at, i);
    const int m = row + place.row, n = out_columns(C.p, column) + 8 * place.chunk;
    if (!place.within(2 * kSlice)) continue;
    u32 v[4];
    load_shared4(v, area + out_place<C>(place.row, place.chunk));
    if (m < a.m && n < kOuts<C>) *reinterpret_cast<Words4*>(a.out + m * a.out_stride + n) = {v[0], v[1], v[2], v[3]};
  }
}

/// Parts of the teams and of the blocks of a cluster. Part p = rank * teams + team; the q-th slice of every thread's
/// sums is gathered in block q / teams, and added (in order of parts) and stored by its team q % teams, so by part q.
/// What goes to another block is counted by the barrier `gathered` there. Parts past the slices only send.
template <PrefillConfig C, int kRegs>
Q4_DEVICE void sum_parts(const float (&acc)[kRegs], SliceResidual<C, kRegs / slices(C)>& residual, const MatmulArgs& a,
                         const Shared<C>& s, const Place& at, int column, int row) {
  constexpr int kParts = parts(C), kSlices = slices(C), kSlice = kRegs / kSlices;
  constexpr int kAll = 15;                              // named barrier of all consumers
  constexpr int kWide = smaller(4, kSlice);             // floats of one store
  constexpr bool kPair = C.split == 2 && C.teams == 1;  // then the slice a block keeps stays in registers
  const int rank = C.split > 1 ? static_cast<int>(at.rank) : 0, part = part_of<C>(at);
  const auto slot = [&](int team, int part_from, int i) {
    const int slice = (team * kParts + part_from) * C.strips + at.strip;
    return (gather_in_ring(C) ? s.x : s.out) + ((slice * kSlice + i) * 128 + kWide * at.thread) * 4;
  };
  if constexpr (C.split > 1) {
    if (gather_in_ring(C)) cluster_arrive();
    cluster_wait();  // the neighbour has started; or has left its ring, where that receives
  } else if (gather_in_ring(C)) {
    named_barrier(kAll, 128 * consumers(C));
  }
  float sum[kSlice];
  if constexpr (kPair) {
#pragma unroll
    for (int i = 0; i < kSlice; i += kWide) {
      float away[kWide];
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        away[j] = part ? acc[i + j] : acc[kSlice + i + j];
        sum[i + j] = part ? acc[kSlice + i + j] : acc[i + j];
      }
      store_remote(remote_address(slot(0, part, i), part ^ 1), away, remote_address(s.gathered, part ^ 1));
    }
  } else {
#pragma unroll
    for (int q = 0; q < kSlices; ++q)
#pragma unroll
      for (int i = 0; i < kSlice; i += kWide) {
        float v[kWide];
#pragma unroll
        for (int j = 0; j < kWide; ++j) v[j] = acc[q * kSlice + i + j];
        const u32 to = slot(q % C.teams, part, i);
        if (q / C.teams == rank)
          store_shared_floats(to, v);
        else
          store_remote(remote_address(to, q / C.teams), v, remote_address(s.gathered, q / C.teams));
      }
    if (rank >= kSlices / C.teams) return;
    named_barrier(kAll, 128 * consumers(C));
#pragma unroll
    for (int i = 0; i < kSlice; ++i) sum[i] = 0.f;
  }
  if constexpr (C.p.residual && !SliceResidual<C, kSlice>::kEarly) residual.load(a, at, column, row);
  if constexpr (C.split > 1) mbar_wait(s.gathered, 0);
#pragma unroll
  for (int i = 0; i < kSlice; i += kWide)
#pragma unroll
    for (int p = 0; p < (kPair ? 1 : kParts); ++p) {
      float v[kWide];
      load_shared_floats(v, slot(at.team, kPair ? part ^ 1 : p, i));
#pragma unroll
      for (int j = 0; j < kWide; ++j) sum[i + j] += v[j];
    }
  if constexpr (kSlice % 8 == 0)
    store_slice<C>(sum, residual, a, at, slot(at.team, 0, 0) - 4 * kWide * at.thread, column, row + 2 * part * kSlice);
  else
    store_elements<C>(sum, residual, a, at, column, row, part * kSlice);
}

}  // namespace q4::prefill_detail
