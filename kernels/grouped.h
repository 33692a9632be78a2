// Grouped: many matrices of one shape (experts), each of which meets some of the rows. Rows are sorted by expert
// (route.h); a *row tile* is up to `tile_rows` of one expert's rows, and a work item is a row tile and a block of
// columns. A kernel is grouped by its Problem: its stages are the same, and take a MatmulArgs of the item's own.
//
//   sorted rows    expert 3: 0 1 2 3 4 | expert 7: 5 | expert 12: 6 7 8 ...
//   row tiles (4)  {3: 0..5} {3: 0..5} | {7: 5..6}   | {12: 6..}             each names its expert's rows: [begin, end)
//   items          expert by expert, a block of columns after the other, and within one the expert's row tiles, so that
//                  blocks that run at the same time meet the same weights
#pragma once
#include "problem.h"

namespace q4 {

/// The rows [begin, end) of an expert, in sorted order, and the number of its first row tile.
struct alignas(16) GroupTile {
  i32 expert, begin, end, first;
};

/// Part of Problem::grouped: the kernel sorts the slots itself, of which there are few (RoutedArgs in route_few.h).
constexpr int kGroupedRouted = 4;
Q4_BOTH constexpr bool is_indirect(const Problem& p) { return (p.grouped & ~kGroupedRouted) == kGroupedIndirect; }
Q4_BOTH constexpr bool is_routed(const Problem& p) { return (p.grouped & kGroupedRouted) != 0; }

/// Arguments of every grouped kernel. `codes`, `meta` and `bias` are expert 0's; x, out and m are of all sorted rows.
struct GroupedArgs : MatmulArgs {
  const i32* tile_count;   ///< of `tiles`
  const GroupTile* tiles;  ///< row tiles of tile_rows(C) rows
  const i32* x_rows;       ///< is_indirect(): row of x of each sorted row
  i64 stride;              ///< bytes from an expert's codes, meta and bias to the next one's
};

/// One work item.
struct GroupItem {
  int expert, row, rows, block;  // the first of its sorted rows, how many they are, which block of columns
};

/// Item `number` of all, `kRows` rows a tile and `kBlocks` blocks of columns. Blocks take every block_count()-th. They
/// ask before they wait for the previous kernel, unless that is the router itself: the kernels between allow the next
/// one only after their own wait. (`tiles` has room for every block's first item, whether there is one or not.)
template <int kRows, int kBlocks>
Q4_DEVICE GroupItem group_item(const GroupedArgs& g, int number) {
  const Words4 w = *reinterpret_cast<const Words4*>(g.tiles + number / kBlocks);
  const int begin = static_cast<int>(w.y), end = static_cast<int>(w.z), first = static_cast<int>(w.w);
  const int of_expert = larger(1, ceil_div(end - begin, kRows)), rest = number - first * kBlocks;
  GroupItem item;
  item.expert = static_cast<int>(w.x);
  item.block = rest / of_expert;
  item.row = begin + (rest - item.block * of_expert) * kRows;
  item.rows = smaller(kRows, end - item.row);
  return item;
}
template <int kBlocks>
Q4_DEVICE int group_items(const GroupedArgs& g) {
  return *g.tile_count * kBlocks;
}

/// What the stages of a kernel are given for an item: its rows are all there is.
Q4_DEVICE MatmulArgs item_args(const GroupedArgs& g, const GroupItem& item, const Problem& p) {
  MatmulArgs a = g;
  a.codes += item.expert * g.stride;
  a.meta += item.expert * g.stride;
  if (p.bias) a.bias += item.expert * (g.stride / 2);
  if (!is_indirect(p)) a.x += item.row * a.x_stride;
  a.out += item.row * a.out_stride;
  a.m = item.rows;
  return a;
}

}  // namespace q4
