// LoRA in the prefill kernel, with no launch of its own: the first blocks of the launch make low = scale x A as the launch
// before does (lora_shrink.h), item by item of some rows, a cluster or several each, and tell the blocks of the matmul,
// each by a word of its own for each part of each item of each of its tiles: kLoraTag. The reader clears it, so the next
// launch meets none, and whatever else was written there in between is none (as halves, bf16 or a float it is a NaN that
// no instruction makes). Readers wait for blocks that stand before them in the grid, which therefore run: nothing waits
// the other way.
//
//   shrinking cluster  its part of its items: low to memory, one word a reader
//   matmul, warp 2     tile by tile: waits for its items' words (or the launch before), clears them; brings low of a tile
//                      to shared memory as far as it has room -> low_ready
//   consumers          multiply their tile -> wait for low_ready, add low B -> low_taken
#pragma once
#include "lora_shrink.h"
#include "lora_tile.h"
#include "prefill_mma.h"
#include "prefill_spread.h"

namespace q4::prefill_detail {

/// How items are dealt over the clusters that shrink: each has so many parts, each a cluster's.
template <PrefillConfig C>
struct Items {
  int count, parts, teams;
  Q4_DEVICE explicit Items(const MatmulArgs& a) {
    const int clusters = a.lora.blocks / cluster(C);
    count = static_cast<int>(lora_items(C, a.m));
    parts = lora_parts(count, clusters), teams = clusters / parts;
  }
};

/// Words of a part of an item, one a reader, behind low.
template <PrefillConfig C>
Q4_DEVICE u32* lora_words(const MatmulArgs& a, i64 part) {
  u16* end = const_cast<u16*>(a.lora.low) + static_cast<i64>(a.m) * a.lora.low_stride;
  return reinterpret_cast<u32*>(end) + part * lora_readers(C);
}

template <PrefillConfig C>
Q4_DEVICE void shrink_items(const MatmulArgs& a) {
  constexpr LoraShrinkConfig kShrink = lora_shrink_config(C);
  const int rank = block_index() % cluster(C), mine = block_index() / cluster(C);
  const Items<C> items(a);
  lora_detail::Shrinker<kShrink> shrinker(shared_memory(), rank, cluster(C));
  wait_previous_kernel();
  allow_next_kernel();
  if (mine >= items.teams * items.parts) return;
  const LoraShrinkArgs args{a.lora, const_cast<u16*>(a.lora.low), a.x, a.x_stride, a.m, C.p.x_k, 0, {}};
  const int part = mine % items.parts;
  for (int item = mine / items.parts; item < items.count; item += items.teams) {
    shrinker.shrink(args, static_cast<i64>(item) * kShrink.rows, part, items.parts);
    sync_block();  // and each thread releases what all have written
    if (rank > 0) continue;
    for (int i = thread_index(); i < lora_readers(C); i += threads(C))
      store_release(lora_words<C>(a, item * items.parts + part) + i, kLoraTag);
  }
}

/// The adapter of all rows of a tile, or -1, and its chunks; chunks -1: rows differ.
struct TileAdapter {
  const u16* b;
  i32 chunks, adapter;
};

/// By a warp: finds it, and asks for B.
template <PrefillConfig C>
Q4_DEVICE TileAdapter find_adapter(const MatmulArgs& a, const Work& work, u32 rank, int lane) {
  constexpr int kTiles = C.strips * kStripTiles, kAll = ceil_div(C.p.n, kTileColumns);
  const int row = work.tile_m * C.rows, rows = smaller(C.rows, a.m - row);
  const int first = first_strip<C>(work, rank) * kStripTiles, tiles = smaller(kTiles, kAll - first);
  const auto prefetch = [&](const LoraEntry& entry, int from, int step) {
    const u16* lines = entry.b + static_cast<i64>(first) * entry.chunks * 256;
    for (int i = from; i < tiles * entry.chunks * 4; i += step) prefetch_l2(lines + i * 64);
  };
  const int adapter = lora_adapter(a.lora, row);
  bool same = true;
#pragma unroll 2
  for (int r = lane; r < C.rows; r += 32)
    if (r < rows) same = same && lora_adapter(a.lora, row + r) == adapter;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) same = shuffle_xor(same ? 1 : 0, step) && same;
  if (!same) {
#pragma unroll 1
    for (int r = lane; r < rows; r += 32) {
      const int own = lora_adapter(a.lora, row + r);
      if (own >= 0) prefetch(a.lora.table[own], 0, 1);
    }
    return {nullptr, -1, -1};
  }
  if (adapter < 0) return {nullptr, 0, -1};
  const LoraEntry entry = a.lora.table[adapter];
  prefetch(entry, lane, 32);
  return {entry.b, entry.chunks, adapter};
}

/// By a warp: low of a tile's rows, and B of its columns, to shared memory as far as it has room.
template <PrefillConfig C>
Q4_DEVICE void copy_low(const MatmulArgs& a, const Shared<C>& s, const Work& work, u32 rank, int lane,
                        const TileAdapter& found) {
  constexpr int kTiles = C.strips * kStripTiles, kAll = ceil_div(C.p.n, kTileColumns);
  const int row = work.tile_m * C.rows, rows = smaller(C.rows, a.m - row);
#pragma unroll 1
  for (int chunk = 0; chunk < smaller(lora_staged(C), a.lora.low_stride / kLoraRanks); ++chunk) {
    const u16* from = a.lora.low + row * static_cast<i64>(a.lora.low_stride) + chunk * kLoraRanks;
    const u32 to = s.low + chunk * lora_low_bytes(C);
#pragma unroll 4
    for (int i = lane; i < 2 * rows; i += 32)
      async_copy16(to + i * 16, from + (i >> 1) * static_cast<i64>(a.lora.low_stride) + (i & 1) * 8, 16);
  }
  if constexpr (lora_staged(C) > 0) {
    const int first = first_strip<C>(work, rank) * kStripTiles, tiles = smaller(kTiles, kAll - first);
#pragma unroll 1
    for (int chunk = 0; chunk < smaller(lora_staged(C), found.chunks); ++chunk)
#pragma unroll 4
      for (int tile = 0; tile < tiles; ++tile)
        async_copy16(s.low_b + chunk * lora_b_bytes(C) + (tile * 32 + lane) * 16,
                     found.b + ((static_cast<i64>(first + tile) * found.chunks + chunk) * 32 + lane) * 8, 16);
  }
  async_commit();
  async_wait<0>();
}

/// Warp 2 of a block of the matmul, tile by tile.
template <PrefillConfig C>
Q4_DEVICE void bring_low(const MatmulArgs& a, const Shared<C>& s, u32 rank) {
  constexpr int kItems = ceil_div(C.rows, 128);  // of a tile
  if (a.lora.maker != kLoraBeside) wait_previous_kernel();
  const int lane = thread_index() & 31;
  u32 taken = 1;  // parity of the tile before the last; the first meets a barrier that lets it pass
  Schedule<C> schedule(a, rank);
  for (Work work; schedule.next(work); taken ^= 1) {
    TileAdapter found = find_adapter<C>(a, work, rank, lane);
    mbar_wait(s.low_taken, taken);
    if constexpr (lora_spreads(C)) {
      if (found.chunks < 0 && a.lora.adapters <= lora_spread_adapters(C)) {
        const int units = SpreadList<C>(s).make(a, work.tile_m * C.rows, rank, lane);
        if (units >= 0) found.chunks = kSpreadRows, found.adapter = units;
      }
    }
    if (a.lora.maker == kLoraBeside) wait_previous_kernel();
    if (a.lora.maker >= kLoraWithin) {
      const Items<C> items(a);
      const int part = work.tile_m * kItems * items.parts + lane;
      if (lane < kItems * items.parts && part < items.count * items.parts) {
        u32* word = lora_words<C>(a, part) + work.tile_n * cluster(C) + static_cast<int>(rank);
        while (load_acquire(word) != kLoraTag) {}
        *word = 0;
      }
      sync_warp();
    }
    if (lane == 0) {
      const u64 b = bit_cast<u64>(found.b);
      store_shared4(s.lora, {static_cast<u32>(b), static_cast<u32>(b >> 32), static_cast<u32>(found.chunks),
                             static_cast<u32>(found.adapter)});
    }
    if constexpr (lora_staged(C) > 0) {
      if (found.chunks != 0) copy_low<C>(a, s, work, rank, lane, found);
    }
    sync_warp();
    if (lane == 0) mbar_arrive(s.low_ready);
  }
}

/// low of a tile, of which warp 2 has brought some chunks, and B.
template <PrefillConfig C>
struct StagedLow {
  LoraLow memory;
  u32 shared, b;
  Q4_DEVICE StagedLow(const MatmulArgs& a, const Shared<C>& s, int row, const Place& at)
      : memory(a.lora, row), shared(s.low), b(s.low_b + ((at.strip * kStripTiles + at.tile) * 32 + at.lane) * 16) {}
  Q4_DEVICE Words2 operator()(int row, int chunk, int four) const {
    if (chunk >= lora_staged(C)) return memory(row, chunk, four);
    float v[2];
    load_shared_floats(v, shared + ((chunk * C.rows + row) * kLoraRanks + 4 * four) * 2);
    return {bit_cast<u32>(v[0]), bit_cast<u32>(v[1])};
  }
  Q4_DEVICE Words4 fragment(const u16* from, int chunk) const {
    if (chunk >= lora_staged(C)) return memory.fragment(from, chunk);
    u32 v[4];
    load_shared4(v, b + chunk * lora_b_bytes(C));
    return {v[0], v[1], v[2], v[3]};
  }
};

/// What warp 2 has found.
template <PrefillConfig C>
Q4_DEVICE TileAdapter tile_adapter(const Shared<C>& s) {
  u32 v[4];
  load_shared4(v, s.lora);
  return {bit_cast<const u16*>(v[0] | static_cast<u64>(v[1]) << 32), static_cast<i32>(v[2]), static_cast<i32>(v[3])};
}

}  // namespace q4::prefill_detail
