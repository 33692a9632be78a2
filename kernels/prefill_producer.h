// Prefill, stage "producer": warp 0 streams codes, scales and zeros, warp 1 x.
#pragma once
#include "prefill_pipeline.h"

namespace q4::prefill_detail {

// Whole warps walk these loops and one lane acts: then ptxas keeps addresses in uniform registers. One thread alone
// costs a loop around each copy, and as many cycles a slab as its bytes take to arrive.

/// The sets of one slab of strip `i` from `first` on, as they stand together.
template <PrefillConfig C>
Q4_DEVICE void load_apart(u32 to, const SetPlace& first, int i, u32 full) {
#pragma unroll
  for (int j = 0; j < slab_sets(C.p); ++j) {
    const i64 piece = static_cast<i64>(j) * strips(C.p.n) + i;
    bulk_load(to + j * kMetaBytes, first.scales + piece * kScaleBytes, kScaleBytes, full);
    bulk_load(to + j * kMetaBytes + kMetaZeros, first.zeros + piece * kZeroBytes, kZeroBytes, full);
  }
}

template <PrefillConfig C>
Q4_DEVICE void produce_weights(const MatmulArgs& a, const Shared<C>& s, u32 rank, bool leader) {
  constexpr int kStrips = strips(C.p.n), kMeta = slab_sets(C.p) * kMetaBytes;
  constexpr i64 kNextCodes = codes_offset(C.p.k, 1, 0, 0, 0, 0), kNextMeta = meta_offset(C.p.k, C.p.unit, 1, 0);
  StageRing<C> ring;
  Schedule<C> schedule(a, rank);
  for (Work work; schedule.next(work);) {
    const int strip = first_strip<C>(work, rank);
    const int here = smaller(C.strips, larger(0, kStrips - strip));  // the last tile may hold fewer
    for (int slab = work.begin; slab < work.end; ++slab) {
      const int set = C.p.unit < kSlabRows ? slab * slab_sets(C.p) : slab / (C.p.unit / kSlabRows);
      const i64 begin = matrix_begin<C>(a, work);
      const u8* codes = a.codes + begin + codes_offset(C.p.k, strip, slab, 0, 0, 0);
      SetPlace meta = set_place(C.p, a, strip, set);
      meta.scales += begin;
      const u32 full = s.full(ring.stage);
      mbar_wait(s.empty(ring.stage), ring.phase ^ 1);
      if (leader) {
        mbar_expect(full, here * (kSlabBytes + kMeta));
#pragma unroll
        for (int i = 0; i < C.strips; ++i) {
          if (i >= here) break;
          bulk_load(s.strip_codes(ring.stage, i), codes + i * kNextCodes, kSlabBytes, full);
          if constexpr (C.p.apart)
            load_apart<C>(s.strip_meta(ring.stage, i), meta, i, full);
          else
            bulk_load(s.strip_meta(ring.stage, i), meta.scales + i * kNextMeta, kMeta, full);
        }
      }
      ring.advance();
    }
  }
  if (!C.p.grouped) allow_next_kernel();
}

/// Which boxes of x a block loads for a tile: of its slice, those that hold a row before m.
template <PrefillConfig C>
struct Boxes {
  int rows, slice, count, bytes;  // of a box; rows of a block's slice; boxes of this block; bytes from all blocks
  Q4_DEVICE Boxes(int m, int row, u32 rank) {
    rows = x_box_rows(C, m);
    if constexpr (C.p.grouped) {
      slice = C.rows;
      count = boxes(m - row);
      bytes = count * rows * 128;
      return;
    }
    slice = m < C.rows ? rows : C.rows / C.share;
    count = boxes(m - row - static_cast<int>(rank) * slice);
    bytes = 0;
#pragma unroll
    for (int r = 0; r < C.share; ++r) bytes += boxes(m - row - r * slice) * rows * 128;
  }
  Q4_DEVICE int boxes(int left) const { return ceil_div(larger(0, smaller(slice, left)), rows); }
};

template <PrefillConfig C>
Q4_DEVICE void produce_x(const MatmulArgs& a, const TensorMap* x_map, const Shared<C>& s, u32 rank, bool leader) {
  if (!C.p.lora || a.lora.maker != kLoraBeside) wait_previous_kernel();
  StageRing<C> ring;
  XRing<C> x_ring;
  Schedule<C> schedule(a, rank);
  for (Work work; schedule.next(work);) {
    const u32 slice_of = C.share > 1 ? rank : 0;
    const int tile_row = C.p.grouped ? work.row : work.tile_m * C.rows;
    const Boxes<C> boxes(C.p.grouped ? work.row + work.rows : a.m, tile_row, slice_of);
    const int first = slice_of * boxes.slice, row = tile_row + first;
    const auto load = [&](u32 tile, int column, u32 full) {
#pragma unroll 1
      for (int i = 0; i < boxes.count; ++i) {
        const u32 to = tile + (first + i * boxes.rows) * 128;
        if constexpr (C.share == 1)
          tensor_load(to, x_map, column, row + i * boxes.rows, full);
        else
          tensor_load_multicast(to, x_map, column, row + i * boxes.rows, full, (1 << C.share) - 1);
      }
    };
    if constexpr (one_ring(C)) {
      for (int slab = work.begin; slab < work.end; ++slab) {
        const u32 full = s.full(ring.stage);
        mbar_wait(s.empty(ring.stage), ring.phase ^ 1);
        if (leader) {
          mbar_expect(full, 2 * boxes.bytes);
          load(s.x_tile(ring.stage, 0), kSlabRows * slab, full);
          load(s.x_tile(ring.stage, 1), kSlabRows * slab + 64, full);
        }
        ring.advance();
      }
    } else {
      for (int half = 2 * work.begin; half < 2 * work.end; ++half) {
        const u32 full = s.x_full(x_ring.stage);
        mbar_wait(s.x_empty(x_ring.stage), x_ring.phase ^ 1);
        if (leader) {
          mbar_expect(full, boxes.bytes);
          load(s.x_tile(x_ring.stage, 0), 64 * half, full);
        }
        x_ring.advance();
      }
    }
  }
  // Grouped, the next kernel reads the row tiles before its own wait: all before this kernel must have ended.
  if (C.p.grouped) allow_next_kernel();
}

}  // namespace q4::prefill_detail
