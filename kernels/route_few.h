// route: sorts the slots of a mixture of experts by expert, stably, and lists the row tiles of grouped.h: what the
// host would otherwise have to wait for. The order follows from the ids alone, whatever runs when. One warp for up to 32
// slots; one block whose threads keep their slots (`each`); else one block that goes over them twice, or for many slots
// two launches of several blocks: the first counts the slots of each block (kCountPart), the second does the rest.
//
//   for each range of experts that shared memory holds counts for (`each`: all experts at once):
//     count     each warp counts its own run of slots: counts[warp][expert]
//     offset    over the blocks and warps of an expert, then over the experts (some a thread, scanned by warps)
//     tiles     an expert's thread lists its row tiles, for either matmul
//     scatter   each warp goes through its slots again: place = offset of (warp, expert) + rank among equals
#pragma once
#include "grouped.h"

namespace q4 {

struct RouteConfig {
  int threads = 1024;  ///< a multiple of 32; 32: one warp, for at most 32 slots
  int experts = 512;   ///< of a range: a multiple of `threads`, or of 32 and fewer
  int part = 0;        ///< 0: everything, in one block; else kCountPart or kPlacePart, in as many blocks
  int each = 0;        ///< of a thread: so many slots, all of them, of at most `experts` experts; 0: any number

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("threads", threads), v("experts", experts), v("part", part), v("each", each);
  }
};
constexpr int kCountPart = 1, kPlacePart = 2;

/// 2^32 / d, rounded up: n / d is the upper half of a product with it, exactly while n times what was rounded up (less
/// than d) is below 2^32. 0 for 1.
Q4_BOTH constexpr u32 route_inverse(i32 d) {
  return d <= 1 ? 0u : static_cast<u32>((0xffffffffull + d) / static_cast<u32>(d));
}

/// Row tiles of one matmul.
struct RouteTiles {
  i32* count;
  GroupTile* tiles;  ///< room for most_tiles()
  i32 rows;          ///< of a tile; 0: not wanted
  u32 inverse;       ///< route_inverse(rows)
};

struct RouteArgs {
  const i32* ids;      ///< [slots]; or null, and `offsets` says it: slot i is expert e's where offsets[e] <= i
  const i32* offsets;  ///< [experts + 1] < offsets[e + 1]
  const i32* map;      ///< [map_size] from an id to an expert or -1; null: an id is an expert
  i32* x_rows;         ///< [slots] row of x (slot / topk) of each sorted row
  i32* row_experts;    ///< [slots] expert of each sorted row; null: not wanted
  i32* places;         ///< [slots] sorted row of each slot, -1: none
  i32* row_count;      ///< sorted rows
  i32* block_counts;   ///< with parts: [blocks, experts]
  RouteTiles lists[2];
  i32 slots, topk, experts, map_size;
  u32 topk_inverse;  ///< route_inverse(topk)
};

/// Row tiles that so many slots can have at most.
Q4_BOTH constexpr i64 most_tiles(i64 slots, i64 experts, i64 rows) {
  const i64 some = slots < experts ? slots : experts;  // each expert has at most one that is not full
  return some + (slots - some) / rows;
}

Q4_BOTH constexpr int threads(const RouteConfig& c) { return c.threads; }
/// [warp][expert] counts, where each expert's rows begin, 3 sums a warp, 3 running totals. With `each` the counts have 16
/// bits, and there are two sums a warp, the number of rows, and the sorted rows.
Q4_BOTH constexpr int shared_bytes(const RouteConfig& c) {
  if (c.threads == 32) return 0;
  const int warps = c.threads / 32;
  if (c.each) return warps * c.experts * 2 + (c.experts + 2 * warps + 4 + c.threads * c.each) * 4;
  return (warps * (c.experts + 3) + c.experts + 3) * 4;
}

namespace route_detail {

/// Bits that tell 0 .. count - 1 apart.
Q4_BOTH constexpr int bits_of(int count) {
  int bits = 0;
  while (1 << bits < count) ++bits;
  return bits;
}
/// n / d, `inverse` being route_inverse(d) and d at most 2^(32 - kBits).
template <int kBits>
Q4_DEVICE i32 divide(i32 n, i32 d, u32 inverse) {
  if (d == 1) return n;
  if (n >= 1 << kBits) return n / d;
  return static_cast<i32>(static_cast<u64>(static_cast<u32>(n)) * inverse >> 32);
}
/// Row of x of a slot; topk is at most 32.
Q4_DEVICE i32 x_row_of(const RouteArgs& a, i32 slot) { return divide<27>(slot, a.topk, a.topk_inverse); }

/// Row tiles of so many rows.
Q4_DEVICE i32 tiles_of(const RouteTiles& list, i32 rows) {
  return list.rows ? divide<24>(rows + list.rows - 1, list.rows, list.inverse) : 0;
}

/// Sums over the lanes before this one and itself.
Q4_DEVICE i32 scan(i32 v, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const i32 before = shuffle(v, (lane - step) & 31);
    if (lane >= step) v += before;
  }
  return v;
}

/// Expert of a slot; -1: none.
Q4_DEVICE i32 expert_of(const RouteArgs& a, i32 slot) {
  if (a.offsets) {
    if (slot < a.offsets[0] || slot >= a.offsets[a.experts]) return -1;
    i32 low = 0, high = a.experts;  // offsets[low] <= slot < offsets[high]
    while (high - low > 1) {
      const i32 middle = (low + high) / 2;
      if (a.offsets[middle] <= slot)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  const i32 id = a.ids[slot];
  if (!a.map) return id >= 0 && id < a.experts ? id : -1;
  return id >= 0 && id < a.map_size ? a.map[id] : -1;
}

/// Rows, and row tiles for either matmul.
struct Sums {
  i32 rows, first, second;
};

/// The experts of kBatch x 32 slots of a warp, as places in the range that begins at `first`: -1 where it is in another
/// range or there is none. All loads are on their way at once.
constexpr int kBatch = 8;
struct Batch {
  i32 expert[kBatch], index[kBatch];
  u32 equal[kBatch];  ///< lanes of the same index
  template <RouteConfig C>
  Q4_DEVICE void load(const RouteArgs& a, i32 first, i32 base, i32 end, int lane, int bits) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const i32 slot = base + 32 * i + lane;
      expert[i] = slot < end ? expert_of(a, slot) : -1;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const i32 at = expert[i] - first;
      index[i] = expert[i] >= 0 && at >= 0 && at < C.experts ? at : -1;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (base + 32 * i < end) equal[i] = equal_lanes(static_cast<u32>(index[i] + 1), bits);
  }
};

}  // namespace route_detail

namespace route_detail {

constexpr int kTurn = kLanesUnroll < 8 ? kLanesUnroll : 8;
/// At most 32 slots, one a lane: every lane meets every other that has one.
Q4_DEVICE void route_warp(const RouteArgs& a) {
  const int lane = thread_index();
  const i32 expert = lane < a.slots ? expert_of(a, lane) : -1;
  i32 begin = 0, rank = 0, rows = 0, total = 0;
#pragma unroll 1
  for (int first = 0; first < a.slots; first += kTurn)  // one token has eight slots or fewer
#pragma unroll kTurn
    for (int i = 0; i < kTurn; ++i) {
      const int other = first + i;
      const i32 theirs = shuffle(expert, other);
      begin += theirs >= 0 && theirs < expert;
      rank += theirs == expert && other < lane;
      rows += theirs == expert;
      total += theirs >= 0;
    }
  const bool leads = expert >= 0 && rank == 0;
  if (lane < a.slots) a.places[lane] = expert >= 0 ? begin + rank : -1;
  if (expert >= 0) {
    a.x_rows[begin + rank] = x_row_of(a, lane);
    if (a.row_experts) a.row_experts[begin + rank] = expert;
  }
  if (lane == 0) *a.row_count = total;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!a.lists[i].rows) continue;
    const i32 tiles = leads ? tiles_of(a.lists[i], rows) : 0;
    i32 first = 0, all = 0;
#pragma unroll 1
    for (int turn = 0; turn < a.slots; turn += kTurn)
#pragma unroll kTurn
      for (int j = 0; j < kTurn; ++j) {
        const i32 theirs = shuffle(tiles, turn + j);
        if (shuffle(expert, turn + j) < expert) first += theirs;
        all += theirs;
      }
    for (i32 t = 0; t < tiles; ++t) a.lists[i].tiles[first + t] = {expert, begin, begin + rows, first};
    if (lane == 0) *a.lists[i].count = all;
  }
}

}  // namespace route_detail

/// Arguments of a grouped kernel that is_routed(): the lists that it makes for itself are not written. The first of a layer
/// (is_indirect()) writes the places.
struct RoutedArgs : GroupedArgs {
  RouteArgs route;
};
constexpr int kRoutedSlots = 32;  ///< at most
/// Of a block: row tiles, rows of x, places, counts.
Q4_BOTH constexpr int routed_bytes(const Problem& p) { return is_routed(p) ? kRoutedSlots * (16 + 4 + 4) + 16 : 0; }

/// The arguments with lists in the block's shared memory, 16-byte aligned.
template <Problem P>
Q4_DEVICE GroupedArgs route_itself(const RoutedArgs& given, u8* shared, int tile_rows) {
  GroupTile* tiles = reinterpret_cast<GroupTile*>(shared);
  i32* x_rows = reinterpret_cast<i32*>(tiles + kRoutedSlots);
  i32* counts = x_rows + 2 * kRoutedSlots;
  if (thread_index() < 32) {
    RouteArgs route = given.route;
    if (!is_indirect(P) || block_index() != 0) route.places = x_rows + kRoutedSlots;
    route.x_rows = x_rows, route.row_experts = nullptr, route.row_count = counts + 1;
    route.lists[0] = {counts, tiles, tile_rows, route_inverse(tile_rows)}, route.lists[1].rows = 0;
    route_detail::route_warp(route);
  }
  sync_block();
  GroupedArgs args = given;
  args.tile_count = counts, args.tiles = tiles, args.x_rows = x_rows;
  return args;
}

}  // namespace q4
