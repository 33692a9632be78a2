// prefill: out = x @ W on Hopper's tensor cores, for m from 16 up: 4-bit weights become the register A operand of wgmma
// (out^T = W^T x^T), x its shared-memory B operand. sm_90a only.
//
// A tile is C.rows rows of x by 64 C.strips columns. Warpgroup 0 produces, the others consume, a strip each:
//
//   producer    warp 0: wait empty -> bulk copies of codes and meta ----> full --+
//               warp 1: wait empty -> tensor copy of x, 64 k, swizzled -> full --+--> consumers
//   dequantize  16 bytes of codes a thread and 64 k -> A fragments in registers, while the last wgmma runs
//   mma         wgmma m64 n(rows) k16, at most one batch in flight while the next is converted
//   epilogue    parts of k summed in a fixed order (teams, cluster, cut tiles), bias, rounding, store
//
// Launch: grid(C, m, limits) blocks of threads(C), __launch_bounds__(threads(C), 1), cluster dimension cluster(C),
// shared_bytes(C) of dynamic shared memory; programmatic stream serialization is allowed. Tensor maps, 2-d, 16-bit type
// of the problem, element strides 1, no interleave, 128-byte swizzle, zero fill:
//   x_map    {x_k, m}, row stride x_stride, box {64, x_box_rows(C, m)}; L2 promotion 256 bytes
//   out_map  {columns of out, m}, row stride out_stride, box {64, rows}; gated: {32, rows}, 64-byte swizzle; not read where
//            one_tile(C)
#pragma once
#include "prefill_epilogue.h"
#include "prefill_lora.h"
#include "prefill_producer.h"

namespace q4 {
namespace prefill_detail {

template <PrefillConfig C>
Q4_DEVICE void produce(const MatmulArgs& a, const TensorMap* x_map, const Shared<C>& s, u32 rank) {
  const int warp = shuffle(thread_index() / 32, 0);
  const bool leader = elect_one();
  if (warp == 0) produce_weights<C>(a, s, rank, leader);
  if (warp == 1) produce_x<C>(a, x_map, s, rank, leader);
  if constexpr (C.p.lora && !C.cut) {
    if (warp == 2) bring_low<C>(a, s, rank);
  }
  sync_warp();
  if constexpr (C.split > 1) {  // all threads of a cluster meet at its barriers: this pairs with sum_parts'
    if (gather_in_ring(C)) cluster_arrive();
    cluster_wait();
  }
}

/// Grouped: what is stored of a row tile, the first kRegs of its sums.
template <PrefillConfig C, int kRegs>
Q4_DEVICE void store_item(const float (&acc)[C.rows / 2], const GroupedArgs& g, const Shared<C>& s, const Place& at,
                          const Work& work) {
  SliceResidual<C, kRegs> none;
  const int column = (first_strip<C>(work, 0) + at.strip) * kStripColumns;
  const MatmulArgs a = item_args(g, {work.expert, work.row, work.rows, 0}, C.p);
  store_slice<C>(reinterpret_cast<const float(&)[kRegs]>(acc), none, a, at, s.out + at.strip * (C.rows * 128), column,
                 0);
}
/// The product of a row tile, by a loop over k for its number of rows.
template <PrefillConfig C>
Q4_DEVICE void multiply_item(float (&acc)[C.rows / 2], Rings<C>& rings, const Shared<C>& s, const Place& at,
                             const Work& work) {
  constexpr int kHalf = larger(8, C.rows / 4), kFirst = kOwnLoops<C>[0] / 2, kSecond = kOwnLoops<C>[1] / 2;
  if constexpr (C.fold) {
    if (work.rows <= 2 * kHalf)
      multiply_folded<C>(reinterpret_cast<float(&)[kHalf]>(acc), rings, s, at, work);
    else
      multiply_folded<C>(acc, rings, s, at, work);
  } else if (kFewRows<C> > 0 && work.rows <= kFewRows<C>) {
    multiply<C, (kFewRows<C> > 0)>(acc, rings, s, at, work);
  } else if (kFirst > 0 && work.rows <= 2 * kFirst) {
    multiply<C>(reinterpret_cast<float(&)[larger(8, kFirst)]>(acc), rings, s, at, work);
  } else if (kSecond > 0 && work.rows <= 2 * kSecond) {
    multiply<C>(reinterpret_cast<float(&)[larger(8, kSecond)]>(acc), rings, s, at, work);
  } else {
    multiply<C>(acc, rings, s, at, work);
  }
}
template <PrefillConfig C>
Q4_DEVICE void consume_items(const GroupedArgs& g, const Shared<C>& s, const Place& at) {
  constexpr int kFew = kOwnLoops<C>[0] ? kOwnLoops<C>[0] / 2 : larger(8, C.rows / 4);
  Rings<C> rings;
  Schedule<C> schedule(g, 0);
  float acc[C.rows / 2];
  for (Work work; schedule.next(work);) {
    work.expert = work.row = work.tile_n = 0;  // not kept: registers are short
    multiply_item<C>(acc, rings, s, at, work);
    work = schedule.again();
    if (work.rows <= 2 * kFew)
      store_item<C, kFew>(acc, g, s, at, work);
    else
      store_item<C, C.rows / 2>(acc, g, s, at, work);
  }
}

template <PrefillConfig C>
Q4_DEVICE void consume(const MatmulArgs& a, const TensorMap* out_map, const Shared<C>& s, const Place& at) {
  // What a shrink beside it writes is waited for where it is read; all else that is read was there when that began.
  const bool beside = C.p.lora && a.lora.maker == kLoraBeside;
  if ((C.p.residual || C.p.lora) && !beside) wait_previous_kernel();
  Rings<C> rings;
  rings.skip(at.team);
  [[maybe_unused]] u32 low_phase = 0;
  const int lora_part = one_tile(C) ? part_of<C>(at) : 0, lora_parts = one_tile(C) ? parts(C) : 1;
  Schedule<C> schedule(a, at.rank);
  for (Work work; schedule.next(work);) {
    float acc[C.rows / 2];
    SliceResidual<C, C.rows / 2 / slices(C)> residual;
    if constexpr (C.p.residual) {
      const int column = (first_strip<C>(work, at.rank) + at.strip) * kStripColumns, row = work.tile_m * C.rows;
      if constexpr (one_tile(C))
        residual.begin(a, at, column, row);
      else if (!C.cut || work.end - work.begin == slabs(C.p.k))
        load_residual<C>(a, s, at, column, row);
    }
    [[maybe_unused]] LoraTile<C.p, C.rows / 8, consumers(C) <= 2 ? 8 : 4> lora;
    [[maybe_unused]] const auto lora_tile = [&] {
      return (first_strip<C>(work, at.rank) + at.strip) * kStripTiles + at.tile;
    };
    // Two trips to memory: until then the rings fill, and stop asking (kLoraFirst).
    if (C.p.lora && (C.cut || a.lora.maker == kLoraFirst))
      lora.ask(a, lora_tile(), work.tile_m * C.rows, at.lane, lora_part, lora_parts);
    if constexpr (C.fold)
      multiply_folded<C>(acc, rings, s, at, work);
    else
      multiply<C>(acc, rings, s, at, work);
    const int column = (first_strip<C>(work, at.rank) + at.strip) * kStripColumns, row = work.tile_m * C.rows;
    [[maybe_unused]] const auto add_lora = [&] {
      lora.add(reinterpret_cast<float(*)[4]>(acc), a, StagedLow<C>(a, s, row, at), lora_tile(), row, at.lane, lora_part,
               lora_parts);
    };
    if constexpr (C.p.lora && C.cut) {
      if (beside) wait_previous_kernel();
      if (work.end - work.begin == slabs(C.p.k)) add_lora();
    } else if constexpr (C.p.lora) {
      mbar_wait(s.low_ready, low_phase);
      low_phase ^= 1;
      const TileAdapter found = tile_adapter(s);
      bool spread = false;
      if constexpr (lora_spreads(C)) {
        spread = found.chunks == kSpreadRows;
        if (spread)
          add_spread<C>(acc, a, s, rings, at, first_strip<C>(work, at.rank) + at.strip, row,
                        found.adapter >> 8 * at.team & 255);
      }
      if (!spread) {
        lora.take(found.b, found.chunks, found.adapter, lora_tile(), at.lane, lora_part, lora_parts);
        add_lora();
      }
      sync_warp();
      if (at.lane == 0) mbar_arrive(s.low_taken);
    }
    if constexpr (one_tile(C)) {  // the only one
      sum_parts<C>(acc, residual, a, s, at, column, row);
      return;
    } else {
      if (C.cut && work.end - work.begin != slabs(C.p.k)) {
        if (!sum_cut<C>(acc, a, schedule, work, s, at)) continue;
        if constexpr (C.p.residual) load_residual<C>(a, s, at, column, row);
        if constexpr (C.p.lora) add_lora();
      }
      store_tile<C>(acc, a, out_map, s, at, column, row);
    }
  }
  if (!one_tile(C) && at.thread == 0) bulk_wait_all();
}

}  // namespace prefill_detail

/// Args: MatmulArgs, or GroupedArgs where the problem is grouped; x and its map are then all sorted rows, and out_map is
/// not read.
template <PrefillConfig C, class Args>
Q4_DEVICE void prefill(const Args& a, const TensorMap* x_map, const TensorMap* out_map) {
  using namespace prefill_detail;
  if constexpr (lora_fits(C)) {
    if (block_index() < a.lora.blocks) return shrink_items<C>(a);
  }
  const Shared<C> s;
  const u32 rank = cluster(C) > 1 ? static_cast<u32>(block_index() % cluster(C)) : 0;
  if (thread_index() == 32) {
    prefetch_map(x_map);
    if (!one_tile(C) && !C.p.grouped) prefetch_map(out_map);
  }
  if (thread_index() == 0) s.init_barriers();
  sync_warp();
  if (C.share > 1)
    cluster_sync();  // neighbours write into this block's x ring
  else
    sync_block();
  if (C.split > 1 && !gather_in_ring(C)) cluster_arrive();
  const int warpgroup = shuffle(thread_index() / 128, 0);
  if (warpgroup == 0) {
    registers_lower<producer_registers(C)>();
    produce<C>(a, x_map, s, rank);
  } else {
    registers_raise<consumer_registers(C)>();
    const int index = warpgroup - 1, thread = thread_index() % 128, lane = thread % 32;
    const Place at{rank, index % C.strips, index / C.strips, thread, lane, thread / 32, lane / 4};
    if constexpr (C.p.grouped)
      consume_items<C>(a, s, at);
    else
      consume<C>(a, out_map, s, at);
  }
  if (C.share > 1) cluster_sync();  // no block leaves while a neighbour may still reach its shared memory
}

}  // namespace q4
