// LoRA in the prefill kernel, with no launch of its own: the first blocks of the launch make low = scale x A, item by
// item of some rows, and tell the blocks of the matmul, each by a word of its own for each item of each of its tiles:
// kLoraTag. The reader clears it, so the next launch meets none, and whatever else was written there in between is none
// (as halves, bf16 or a float it is a NaN that no instruction makes). Readers wait for blocks that stand before them in
// the grid, which therefore run: nothing waits the other way.
//
//   shrinking block   items block, block + blocks, ...: low to memory, one word a reader
//   matmul, warp 2    tile by tile: waits for its items' words, clears them -> low_ready
//   consumers         multiply their tile -> wait for low_ready, add low B
#pragma once
#include "lora_mma.h"
#include "prefill_pipeline.h"

namespace q4::prefill_detail {

/// Words of an item, one a reader, behind low.
template <PrefillConfig C>
Q4_DEVICE u32* lora_words(const MatmulArgs& a, i64 item) {
  u16* end = const_cast<u16*>(a.lora.low) + static_cast<i64>(a.m) * a.lora.low_stride;
  return reinterpret_cast<u32*>(end) + item * lora_readers(C);
}

template <PrefillConfig C>
Q4_DEVICE void shrink_items(const MatmulArgs& a) {
  using Shrink = LoraShrink<lora_shape(C)>;
  constexpr int kRows = lora_rows(C);
  u16* low = const_cast<u16*>(a.lora.low);
  wait_previous_kernel();
  allow_next_kernel();
  for (int item = block_index(); item < ceil_div(a.m, kRows); item += a.lora.blocks) {
    const i64 row = static_cast<i64>(item) * kRows;
    Shrink shrink(a.lora, row, static_cast<int>(a.m - row), {}, shared_memory());
    if (item == block_index()) shrink.prefetch_b(0, 1, C.p.n);
    shrink.sum(
        a.x, a.x_stride, C.p.x_k, 0, ceil_div(C.p.x_k, kLoraRows),
        [&](int, int r, int chunk, int rank, float v) {
          low[(row + r) * a.lora.low_stride + chunk * kLoraRanks + rank] = from_float<C.p.bf16 != 0>(v);
        },
        [](const typename Shrink::Pairs&) {});
    sync_block();  // and each thread releases what all have written
    for (int i = thread_index(); i < lora_readers(C); i += threads(C))
      store_release(lora_words<C>(a, item) + i, kLoraTag);
  }
}

/// Warp 2 of a block of the matmul.
template <PrefillConfig C>
Q4_DEVICE void await_low(const MatmulArgs& a, const Shared<C>& s, u32 rank) {
  constexpr int kItems = C.rows / lora_rows(C);  // of a tile
  if (a.lora.maker != kLoraWithin) return;
  wait_previous_kernel();
  const int lane = thread_index() & 31;
  u32 taken = 1;  // parity of the tile before the last; the first meets a barrier that lets it pass
  Schedule<C> schedule(a, rank);
  for (Work work; schedule.next(work); taken ^= 1) {
    const int item = work.tile_m * kItems + lane;
    if (lane < kItems && item < ceil_div(a.m, lora_rows(C))) {
      u32* word = lora_words<C>(a, item) + work.tile_n * cluster(C) + static_cast<int>(rank);
      while (load_acquire(word) != kLoraTag) {}
      *word = 0;
    }
    sync_warp();
    mbar_wait(s.low_taken, taken);
    if (lane == 0) mbar_arrive(s.low_ready);
  }
}

}  // namespace q4::prefill_detail
