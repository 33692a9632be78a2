// tile: out = x @ W in 16 x 16 tiles (mma_tile.h), for m from 16 up where no kernel of a vendor's own serves. A block
// owns a strip of 64 columns and `rows` rows of x, and walks the slabs of k: each is dequantized into shared memory
// once, beside the rows of x, while the next one is on its way in registers.
//
//   256 threads: 16 bytes of codes each ──▶ shared_w [64 columns][128 k] ─┐
//                rows / 16 x 16 bytes of x ──▶ shared_x [rows][128 k] ────┴─▶ tiles: a wave has one column of them
#pragma once
#include "epilogue.h"
#include "grouped.h"
#include "lora.h"
#include "mma_tile.h"

namespace q4 {

struct TileConfig {
  Problem p;
  int half2 = 1;  ///< weights are made by fp16 pairs, else through fp32; both round scale * (q - zero) once
  int rows = 64;  ///< rows of x of a block: 32, 64 or 128

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("half2", half2, 1, 0), v("rows", rows, 64, 32, 128);
  }
};

constexpr int kTilePitch = kSlabRows + 8;  // u16 of a shared row: 68 words, so that eight rows meet different banks
/// Grouped: rows of a row tile.
Q4_BOTH constexpr int tile_rows(const TileConfig& c) { return c.rows; }
Q4_BOTH constexpr int threads(const TileConfig&) { return 256; }
Q4_BOTH constexpr int shared_bytes(const TileConfig& c) { return (c.rows + kStripColumns) * kTilePitch * 2; }
/// Grouped: of m row tiles.
Q4_BOTH constexpr i64 grid(const TileConfig& c, i64 m) {
  return strips(c.p.n) * (c.p.grouped ? m : (m + c.rows - 1) / c.rows);
}
Q4_BOTH constexpr bool valid(const TileConfig& c, const Limits& limits) {
  if (c.p.grouped && (c.p.grouped != kGroupedSorted || c.p.gather || c.p.residual)) return false;
  return limits.arch == 0 && !(c.half2 && c.p.bf16) && (c.rows == 32 || c.rows == 64 || c.rows == 128) &&
         shared_bytes(c) <= limits.shared_bytes;
}
namespace tile_detail {

/// What one thread carries from memory to shared memory for one slab.
template <TileConfig C>
struct Staged {
  static constexpr int kSets = C.p.unit < 64 ? 64 / C.p.unit : 1;
  static constexpr int kChunks = C.rows * kSlabRows / 8 / 256;
  Words4 codes;
  u32 scales[kSets], zeros[kSets];
  Words4 x[kChunks];
};

/// Which 16 bytes of a slab a thread has: as reconstruct.
struct Place {
  int lane, half, tile, g, t;
};
Q4_DEVICE Place place() {
  const int thread = thread_index(), lane = thread & 31;
  return {lane, thread >> 5 & 1, thread >> 6, lane >> 2, lane & 3};
}

template <TileConfig C>
Q4_DEVICE Words4 load_x(const MatmulArgs& a, const u16* row, int p) {
  if constexpr (C.p.gather) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const i32 first = a.x_map[p + 2 * i], second = a.x_map[p + 2 * i + 1];
      pairs[i] = (first < 0 ? 0u : row[first]) | (second < 0 ? 0u : static_cast<u32>(row[second])) << 16;
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  } else {
    if (C.p.x_k < C.p.k && p >= C.p.x_k) return {0, 0, 0, 0};
    return *reinterpret_cast<const Words4*>(row + p);
  }
}

template <TileConfig C>
Q4_DEVICE void load(Staged<C>& s, const MatmulArgs& a, int strip, int slab, i64 first_row) {
  const Place at = place();
  s.codes = load_stream(a.codes + codes_offset(C.p.k, strip, slab, at.tile, at.half, at.lane));
#pragma unroll
  for (int i = 0; i < Staged<C>::kSets; ++i) {
    const int p = slab * kSlabRows + at.half * 64 + i * C.p.unit;
    const SetPlace set = set_place(C.p, a, strip, p / C.p.unit);
    s.scales[i] = *reinterpret_cast<const u32*>(set.scales + scale_offset(at.tile, at.g));
    s.zeros[i] = set.zeros[zero_place(at.tile, at.g)];
  }
#pragma unroll
  for (int i = 0; i < Staged<C>::kChunks; ++i) {
    const int chunk = thread_index() + i * 256;
    const i64 row = first_row + chunk / 16;
    s.x[i] = load_x<C>(a, a.x + (row < a.m ? row : a.m - 1) * a.x_stride, slab * kSlabRows + chunk % 16 * 8);
  }
}

/// The pair of rows c, c + 1 (`high`: c + 8, c + 9) of column g or, with `second`, g + 8, as scaled weights.
template <TileConfig C, bool kSecond>
Q4_DEVICE u32 weights(u32 word, bool high, u32 scales, u32 zeros) {
  const u32 shifted = high ? word >> 8 : word;
  const u32 zero = kSecond ? zeros >> 4 : zeros & 15u, scale = kSecond ? scales >> 16 : scales & 0xffffu;
  if constexpr (C.half2) {
    // 1024 + q, or 64 + q, less the same with the zero: exact (gemv.h)
    const u32 q = kSecond ? half2_add(and_or<0x00f000f0u, 0x54005400u>(shifted), 0xd400d400u | zero * 0x00100010u)
                          : half2_add(and_or<0x000f000fu, 0x64006400u>(shifted), 0xe400e400u | zero * 0x00010001u);
    return half2_mul(q, scale * 0x00010001u);
  } else {
    const int bit = kSecond ? 4 : 0;
    const float s = half_to_float(static_cast<u16>(scale)), z = static_cast<float>(zero);
    return from_float2<C.p.bf16 != 0>(s * (static_cast<float>(shifted >> bit & 15u) - z),
                                      s * (static_cast<float>(shifted >> (bit + 16) & 15u) - z));
  }
}

template <TileConfig C>
Q4_DEVICE void store(const Staged<C>& s, u16* shared_x, u16* shared_w) {
  const Place at = place();
  const u32 words[4] = {s.codes.x, s.codes.y, s.codes.z, s.codes.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int set = C.p.unit < 64 ? j * kStepRows / C.p.unit : 0;
    u16* to = shared_w + (at.tile * kTileColumns + at.g) * kTilePitch + at.half * 64 + j * kStepRows + 2 * at.t;
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      *reinterpret_cast<u32*>(to + 8 * high) = weights<C, false>(words[j], high, s.scales[set], s.zeros[set]);
      *reinterpret_cast<u32*>(to + 8 * kTilePitch + 8 * high) =
          weights<C, true>(words[j], high, s.scales[set], s.zeros[set]);
    }
  }
#pragma unroll
  for (int i = 0; i < Staged<C>::kChunks; ++i) {
    const int chunk = thread_index() + i * 256;
    *reinterpret_cast<Words4*>(shared_x + chunk / 16 * kTilePitch + chunk % 16 * 8) = s.x[i];
  }
}

/// Strip `strip` of C.rows rows from `first_row` on.
template <TileConfig C>
Q4_DEVICE void multiply_strip(const MatmulArgs& a, int strip, i64 first_row) {
  constexpr bool kBf16 = C.p.bf16 != 0;
  constexpr int kWaves = 256 / mma_tile::kWave,
                kRowWaves = kWaves / kStripTiles;               // 1 or 2 waves share a column of tiles
  constexpr int kTiles = C.rows / mma_tile::kSide / kRowWaves;  // of a wave
  const int lane = thread_index() % mma_tile::kWave, wave = thread_index() / mma_tile::kWave;
  const int column_tile = wave % kStripTiles, first_tile = wave / kStripTiles * kTiles;
  u16 *shared_x = reinterpret_cast<u16*>(shared_memory()), *shared_w = shared_x + C.rows * kTilePitch;
  mma_tile::Sums sums[kTiles] = {};
  Staged<C> staged;
  load<C>(staged, a, strip, 0, first_row);
  for (int slab = 0; slab < slabs(C.p.k); ++slab) {
    store<C>(staged, shared_x, shared_w);
    sync_block();
    if (slab + 1 < slabs(C.p.k)) load<C>(staged, a, strip, slab + 1, first_row);
#pragma unroll mma_tile::kUnroll
    for (int k = 0; k < kSlabRows; k += kStepRows) {
      const auto w = mma_tile::load<kBf16>(shared_w + column_tile * kTileColumns * kTilePitch + k, kTilePitch, lane);
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        mma_tile::multiply<kBf16>(
            sums[i],
            mma_tile::load<kBf16>(shared_x + (first_tile + i) * mma_tile::kSide * kTilePitch + k, kTilePitch, lane), w);
    }
    sync_block();
  }
  const int column = strip * kStripColumns + column_tile * kTileColumns + mma_tile::sum_col(lane);
  if (column >= C.p.n) return;
  const float bias = bias_of<C.p>(a, column);
  const int out = out_column(C.p, column);
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < mma_tile::kSums; ++j) {
      const i64 row = first_row + (first_tile + i) * mma_tile::kSide + mma_tile::sum_row(j, lane);
      float v = sums[i].v[j] + bias;
      if constexpr (C.p.lora)
        if (row < a.m) v += lora_sum<C.p>(a, row, column);
      if constexpr (C.p.gated)  // a gate's up is eight columns on, so eight lanes
        v = finish_pair<C.p>(v, shuffle_xor(v, 8));
      else
        v = finish_one<C.p>(v);
      if (C.p.gated && column % kTileColumns >= 8) continue;
      if (row < a.m) a.out[row * a.out_stride + out] = from_float<kBf16>(v + residual_of<C.p>(a, row, out));
    }
}

}  // namespace tile_detail

template <TileConfig C>
Q4_DEVICE void tile(const MatmulArgs& a) {
  const int row_blocks = (a.m + C.rows - 1) / C.rows;
  tile_detail::multiply_strip<C>(a, block_index() / row_blocks, static_cast<i64>(block_index() % row_blocks) * C.rows);
}

/// Grouped: a block has one item, or none.
template <TileConfig C>
Q4_DEVICE void tile(const GroupedArgs& g) {
  constexpr int kStrips = strips(C.p.n);
  if (block_index() >= group_items<kStrips>(g)) return;
  const GroupItem item = group_item<C.rows, kStrips>(g, block_index());
  tile_detail::multiply_strip<C>(item_args(g, item, C.p), item.block, 0);
}

}  // namespace q4
