// Where a thread of the decode kernel stands, and its weights: loads of codes and of scales straight to registers.
#pragma once
#include "decode_config.h"

namespace q4 {
namespace decode_detail {

template <DecodeConfig C>
inline constexpr bool kBf16 = C.p.bf16 != 0;

/// What a thread is in its block and grid.
template <DecodeConfig C>
struct Place {
  int lane, side, team, rank, block, first_tile, slot, count;  // block: of columns; count: slabs of this team
};
template <DecodeConfig C>
Q4_DEVICE Place<C> place(int block) {
  Place<C> v;
  const int warp = thread_index() >> 5;
  v.block = block;
  v.lane = thread_index() & 31;
  v.side = warp % C.side;
  v.team = warp / C.side;
  v.rank = block_index() % C.cluster;
  v.first_tile = block * C.tiles + v.side * warp_tiles(C);
  v.slot = v.team * C.cluster + v.rank;  // what is over when the slabs do not divide goes to all ranks alike
  v.count = slabs(C.p.k) % slots(C) == 0 ? most_slabs(C) : (slabs(C.p.k) - v.slot + slots(C) - 1) / slots(C);
  return v;
}

/// `brick` tiles of one slab.
template <DecodeConfig C>
struct Brick {
  Words4 words[C.brick][2];  // [tile][half]
  // Of a slab's sets, lane 4 g + t has t, t + 4, ... (modulo their number).
  u32 scales[kept_sets(C)][C.brick];  // columns g (low) and g + 8 (high)
  u32 zeros[kept_sets(C)];            // a byte a tile: column g (low nibble) and g + 8
};

/// Where this lane finds slab 0 of one brick. Tiles past the last strip repeat the last: they are never stored.
struct BrickSource {
  const u8 *codes, *scales;
  int zeros;              // from the scales
  const u8* zeros_apart;  // where they are apart
};
template <DecodeConfig C>
Q4_DEVICE BrickSource brick_source(const MatmulArgs& a, int tile, int lane) {
  if constexpr (strips(C.p.n) * kStripTiles % C.tiles != 0 || column_blocks(C) % larger(1, C.share) != 0)
    tile = smaller(tile, strips(C.p.n) * kStripTiles - C.brick);
  const int strip = tile / kStripTiles, in_strip = tile % kStripTiles, g = lane >> 2;
  const SetPlace set = set_place(C.p, a, strip, lane & 3 & (slab_sets(C) - 1));
  return {a.codes + codes_offset(C.p.k, strip, 0, in_strip, 0, lane), set.scales + scale_offset(in_strip, g),
          zero_offset(in_strip, g) - scale_offset(in_strip, g), set.zeros + zero_place(in_strip, g)};
}
template <DecodeConfig C>
Q4_DEVICE void load_words(Brick<C>& b, const BrickSource& from, int slab, int half) {
#pragma unroll
  for (int s = 0; s < C.brick; ++s)
    b.words[s][half] = load_stream(from.codes + static_cast<i64>(slab) * kSlabBytes + s * kTileBytes + half * 512);
}
template <DecodeConfig C>
Q4_DEVICE void load_words(Brick<C>& b, const BrickSource& from, int slab) {
  load_words<C>(b, from, slab, 0);
  load_words<C>(b, from, slab, 1);
}
template <DecodeConfig C>
Q4_DEVICE void load_meta(Brick<C>& b, const BrickSource& from, int slab) {
#pragma unroll
  for (int u = 0; u < kept_sets(C); ++u) {
    const int set = C.p.unit > kSlabRows ? slab / (C.p.unit / kSlabRows) : slab * slab_sets(C) + 4 * u;
    const i64 past = static_cast<i64>(set) * set_stride(C.p);
    const u8 *scales = from.scales + past, *zeros = C.p.apart ? from.zeros_apart + past / 4 : scales + from.zeros;
    if constexpr (C.brick == 1) {
      b.scales[u][0] = *reinterpret_cast<const u32*>(scales);
      b.zeros[u] = *zeros;
    } else if constexpr (C.brick == 2) {
      const Words2 v = *reinterpret_cast<const Words2*>(scales);
      b.scales[u][0] = v.x, b.scales[u][1] = v.y;
      b.zeros[u] = *reinterpret_cast<const u16*>(zeros);
    } else {
      const Words4 v = *reinterpret_cast<const Words4*>(scales);
      b.scales[u][0] = v.x, b.scales[u][1] = v.y, b.scales[u][2] = v.z, b.scales[u][3] = v.w;
      b.zeros[u] = *reinterpret_cast<const u32*>(zeros);
    }
  }
}
/// The scales and zeros of set `u`, from the lane that has them.
template <DecodeConfig C>
Q4_DEVICE void spread_meta(u32 (&scales)[C.brick], u32& zeros, const Brick<C>& b, int u, int lane) {
  const auto of = [&](u32 v) { return slab_sets(C) == 1 ? v : shuffle(v, (lane & ~3) | (u & 3)); };
#pragma unroll
  for (int s = 0; s < C.brick; ++s) scales[s] = of(b.scales[u / 4][s]);
  zeros = of(b.zeros[u / 4]);
}

/// The weights of a warp on their way: `depth` slabs of its team.
template <DecodeConfig C>
struct Weights {
  static constexpr int kBricks = warp_bricks(C);
  BrickSource source[kBricks];
  Brick<C> buffer[C.depth][kBricks];

  Q4_DEVICE void find(const MatmulArgs& a, const Place<C>& at) {
#pragma unroll
    for (int b = 0; b < kBricks; ++b) source[b] = brick_source<C>(a, at.first_tile + b * C.brick, at.lane);
  }
  Q4_DEVICE void ask_meta(const Place<C>& at) {
#pragma unroll
    for (int d = 0; d < C.depth; ++d)
#pragma unroll
      for (int b = 0; b < kBricks; ++b)
        if (d < at.count) load_meta<C>(buffer[d][b], source[b], at.slot + d * slots(C));
  }
  Q4_DEVICE void ask_words(const Place<C>& at) {
#pragma unroll
    for (int d = 0; d < C.depth; ++d)
#pragma unroll
      for (int b = 0; b < kBricks; ++b)
        if (d < at.count) load_words<C>(buffer[d][b], source[b], at.slot + d * slots(C));
  }
};

}  // namespace decode_detail
}  // namespace q4
