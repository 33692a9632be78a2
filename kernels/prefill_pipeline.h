// What all roles of a prefill block agree on: shared memory, the rings, and the list of work.
#pragma once
#include "hopper.h"
#include "prefill_config.h"

namespace q4::prefill_detail {

/// Addresses in the block's shared memory; a stage is named by its offset in its ring. x tiles are 1024-byte aligned, as
/// their swizzle wants.
template <PrefillConfig C>
struct Shared {
  static constexpr int kStages = stages(C), kXStages = x_stages(C);
  u32 x, out, ring, x_barriers, gathered, low_ready, low_taken, flag, lora, list, low, low_b;

  Q4_DEVICE Shared() {
    x = (shared_address(shared_memory()) + 1023u) & ~1023u;
    out = x + (one_ring(C) ? kStages * stage_bytes(C) : kXStages * x_tile_bytes(C));
    ring = one_ring(C) ? x : out + out_bytes(C);
    x_barriers = one_ring(C) ? out + out_bytes(C) : ring + kStages * stage_bytes(C);
    gathered = x_barriers + (one_ring(C) ? 0 : 16 * kXStages);
    low_ready = gathered + 8, low_taken = gathered + 16;  // with LoRA
    flag = gathered + (C.p.lora ? 24 : 8);
    lora = (flag + 4 * C.strips + 15u) & ~15u;
    list = lora + kLoraInfoBytes;                      // SpreadList
    low = list + lora_spread_bytes(C);                 // [chunk][row][kLoraRanks]
    low_b = low + lora_staged(C) * lora_low_bytes(C);  // [chunk][tile of 16 columns][lane][8]
  }
  Q4_DEVICE u32 full(u32 stage) const { return ring + stage + (stage_bytes(C) - 16); }
  Q4_DEVICE u32 empty(u32 stage) const { return ring + stage + (stage_bytes(C) - 8); }
  Q4_DEVICE u32 strip_codes(u32 stage, int strip) const { return ring + stage + stage_codes(C) + strip * kSlabBytes; }
  Q4_DEVICE u32 strip_meta(u32 stage, int strip) const {
    return ring + stage + stage_meta(C) + strip * (slab_sets(C.p) * kMetaBytes);
  }
  /// Where one tile of x begins: in a stage of the one ring, or a stage of the ring of x.
  Q4_DEVICE u32 x_tile(u32 stage, int half) const { return x + stage + (one_ring(C) ? half * x_tile_bytes(C) : 0); }
  Q4_DEVICE u32 x_full(u32 stage) const { return x_barriers + stage / (x_tile_bytes(C) / 16); }
  Q4_DEVICE u32 x_empty(u32 stage) const { return x_full(stage) + 8; }

  Q4_DEVICE void init_barriers() const {
    // One thread, unrolled: barrier instructions want uniform addresses, lanes in parallel are serialized.
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      mbar_init(full(i * stage_bytes(C)), one_ring(C) ? 2 : 1);  // the producers of codes and of x
      mbar_init(empty(i * stage_bytes(C)), 4 * C.strips);        // the warps of one team
    }
    if (!one_ring(C)) {
#pragma unroll
      for (int i = 0; i < kXStages; ++i) {
        mbar_init(x_full(i * x_tile_bytes(C)), 1);
        mbar_init(x_empty(i * x_tile_bytes(C)), 4 * C.strips * C.share);
      }
    }
    if (C.split > 1) {
      mbar_init(gathered, 1);
      mbar_expect(gathered, gather_bytes(C) / C.split * (C.split - 1));  // what the other blocks will send
    }
    if (C.p.lora) {
      mbar_init(low_ready, 1);
      mbar_init(low_taken, 4 * consumers(C));
    }
    mbar_fence_init();
  }
};

/// Where a ring stands: the offset of a stage. Barriers start in phase 0: a consumer waits for `phase`, a producer for
/// `phase ^ 1`.
template <int kStages, int kStageBytes>
struct Ring {
  u32 stage = 0, phase = 0;
  /// At most a whole turn.
  Q4_DEVICE void advance(int stages = 1) {
    stage += stages * kStageBytes;
    if (stage >= kStages * kStageBytes) {
      stage -= kStages * kStageBytes;
      phase ^= 1;
    }
  }
};
template <PrefillConfig C>
using StageRing = Ring<stages(C), stage_bytes(C)>;
template <PrefillConfig C>
using XRing = Ring<x_stages(C), x_tile_bytes(C)>;

/// Slabs [begin, end) of a tile, which stands at tile_m, tile_n. Grouped: which is of a row tile (grouped.h).
struct Work {
  int tile, begin, end, tile_m, tile_n;
  int expert, row, rows;
};

/// Every role of a block walks the same list: first this worker's range of the cut tiles, then whole tiles, every
/// `workers`-th. A worker is a cluster.
template <PrefillConfig C, bool kGrouped = C.p.grouped != 0>
struct Schedule {
  static constexpr int kSlabs = slabs(C.p.k), kTilesN = tiles_n(C);
  int workers, worker, tiles_m, tiles, cut, cutters, cut_now, cut_end, whole, first, last;

  Q4_DEVICE Schedule(const MatmulArgs& a, u32 rank) {
    const int before = C.p.lora ? a.lora.blocks : 0;  // blocks that shrink
    workers = (block_count() - before) / cluster(C);
    worker = (block_index() - before) / cluster(C);
    tiles_m = ceil_div(a.m, C.rows);
    tiles = tiles_m * kTilesN;
    cut = cut_tiles(C, tiles, workers);
    cutters = smaller(workers, cut * kSlabs);
    cut_now = cut_begin(smaller(worker, cutters));
    cut_end = cut_begin(smaller(worker + 1, cutters));
    whole = cut + worker;
    first = C.split > 1 ? kSlabs * static_cast<int>(rank) / C.split : 0;
    last = C.split > 1 ? kSlabs * (static_cast<int>(rank) + 1) / C.split : kSlabs;
  }
  /// The cut tiles' slabs, in order, are dealt evenly, at least one each: where a worker's begin, and who has one.
  Q4_DEVICE int cut_begin(int w) const {
    return static_cast<int>(static_cast<u64>(cut * kSlabs) * w / static_cast<u32>(larger(1, cutters)));
  }
  Q4_DEVICE int cut_owner(int slab) const {
    return static_cast<int>((static_cast<u64>(slab + 1) * cutters - 1) / static_cast<u32>(cut * kSlabs));
  }
  Q4_DEVICE bool next(Work& work) {
    if (C.cut && cut_now < cut_end) {
      work.tile = cut_now / kSlabs;
      work.begin = cut_now - work.tile * kSlabs;
      work.end = smaller(kSlabs, work.begin + cut_end - cut_now);
      cut_now += work.end - work.begin;
    } else {
      if (whole >= tiles) return false;
      work = {whole, first, last, 0, 0, 0, 0, 0};
      whole += workers;
    }
    place(work);
    return true;
  }
  /// Bands of about 1024 rows: within one, all its rows meet a column tile before the next column tile.
  Q4_DEVICE void place(Work& work) const {
    if (tiles_m == 1) {  // the divisions below would delay a short launch's first byte
      work.tile_m = 0, work.tile_n = work.tile;
      return;
    }
    constexpr int kBand = larger(1, 1024 / C.rows);
    const int band = work.tile / (kBand * kTilesN);
    const int rows = smaller(kBand, tiles_m - band * kBand);
    const int rest = work.tile - band * kBand * kTilesN;
    work.tile_n = rest / rows;
    work.tile_m = band * kBand + rest - work.tile_n * rows;
  }
};

/// Grouped: items, every `workers`-th.
template <PrefillConfig C>
struct Schedule<C, true> {
  const GroupedArgs& g;
  int now = block_index();
  Q4_DEVICE Schedule(const MatmulArgs& a, u32) : g(static_cast<const GroupedArgs&>(a)) {}
  Q4_DEVICE bool next(Work& work) {
    if (now >= group_items<tiles_n(C)>(g)) return false;
    work = at(now);
    now += block_count();
    return true;
  }
  /// What the last next() gave, once more: registers are short while it is multiplied.
  Q4_DEVICE Work again() const { return at(now - block_count()); }
  Q4_DEVICE Work at(int number) const {
    const GroupItem item = group_item<C.rows, tiles_n(C)>(g, number);
    return {0, 0, slabs(C.p.k), 0, item.block, item.expert, item.row, item.rows};
  }
};

/// Bytes from the first matrix of a launch to that of a tile.
template <PrefillConfig C>
Q4_DEVICE i64 matrix_begin(const MatmulArgs& a, const Work& work) {
  return C.p.grouped ? work.expert * static_cast<const GroupedArgs&>(a).stride : 0;
}

/// First strip of this block's part of a tile.
template <PrefillConfig C>
Q4_DEVICE int first_strip(const Work& work, u32 rank) {
  return (work.tile_n * C.share + (C.share > 1 ? static_cast<int>(rank) : 0)) * C.strips;
}

}  // namespace q4::prefill_detail
