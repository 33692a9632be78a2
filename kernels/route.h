// route: sorts the slots of a mixture of experts by expert, as route_few.h describes, where they are more than a warp has
// lanes.
#pragma once
#include "route_few.h"

namespace q4 {

namespace route_detail {

/// At most `each` slots a thread: they stay in registers, and rows are written in their order.
template <RouteConfig C>
Q4_DEVICE void route_block(const RouteArgs& a) {
  constexpr int kWarps = C.threads / 32, kEach = C.each, kOwn = ceil_div(C.experts, C.threads);
  constexpr int kBits = bits_of(C.experts + 1);
  u16* counts = reinterpret_cast<u16*>(shared_memory());              // [warp][expert], then of the warps before
  i32* begins = reinterpret_cast<i32*>(counts + kWarps * C.experts);  // [expert]
  u32(*warp_sums)[2] =
      reinterpret_cast<u32(*)[2]>(begins + C.experts);  // [warp] rows | first tiles << 16, second tiles
  i32* total = reinterpret_cast<i32*>(warp_sums + kWarps);
  u32* sorted = reinterpret_cast<u32*>(total + 4);  // [row] row of x | expert << 16
  const int thread = thread_index(), warp = thread >> 5, lane = thread & 31;
  const u32 lower = (1u << lane) - 1u;
  u16* mine = counts + warp * C.experts;
  for (int i = lane; i < C.experts / 2; i += 32) reinterpret_cast<u32*>(mine)[i] = 0;
  wait_previous_kernel();  // ids may be its, and what is written here may still be read by an earlier run
  allow_next_kernel();
  i32 expert[kEach], rank[kEach];
  u32 equal[kEach];
  const i32 first_slot = warp * 32 * kEach + lane;
#pragma unroll
  for (int i = 0; i < kEach; ++i) expert[i] = first_slot + 32 * i < a.slots ? expert_of(a, first_slot + 32 * i) : -1;
#pragma unroll
  for (int i = 0; i < kEach; ++i) equal[i] = equal_lanes(static_cast<u32>(expert[i] + 1), kBits);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    sync_warp();
    const int before = expert[i] < 0 ? 0 : mine[expert[i]];
    sync_warp();
    rank[i] = before + bit_count(equal[i] & lower);
    if (expert[i] >= 0 && (equal[i] & lower) == 0) mine[expert[i]] = static_cast<u16>(before + bit_count(equal[i]));
  }
  sync_block();
  // Experts from thread * kOwn on: their rows, and their row tiles for either matmul.
  const int own = thread * kOwn;
  i32 rows[kOwn] = {};
  u32 sum[2] = {}, through[2];
  if (own < C.experts) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      i32 of_warp[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) of_warp[w] = counts[w * C.experts + own + j];
      rows[j] = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        counts[w * C.experts + own + j] = static_cast<u16>(rows[j]);
        rows[j] += of_warp[w];
      }
      sum[0] += static_cast<u32>(rows[j] | tiles_of(a.lists[0], rows[j]) << 16);
      sum[1] += static_cast<u32>(tiles_of(a.lists[1], rows[j]));
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    through[i] = static_cast<u32>(scan(static_cast<i32>(sum[i]), lane));
    if (lane == 31) warp_sums[warp][i] = through[i];
  }
  sync_block();
  if (own < C.experts) {
    u32 before[2] = {through[0] - sum[0], through[1] - sum[1]};
    for (int w = 0; w < warp; ++w) before[0] += warp_sums[w][0], before[1] += warp_sums[w][1];
    i32 row = static_cast<i32>(before[0] & 0xffffu);
    i32 tile[2] = {static_cast<i32>(before[0] >> 16), static_cast<i32>(before[1])};
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      begins[own + j] = row;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const i32 tiles = tiles_of(a.lists[i], rows[j]);
        for (i32 t = 0; t < tiles; ++t) a.lists[i].tiles[tile[i] + t] = {own + j, row, row + rows[j], tile[i]};
        tile[i] += tiles;
      }
      row += rows[j];
    }
    if (own + kOwn == C.experts) {
      *total = *a.row_count = row;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (a.lists[i].rows) *a.lists[i].count = tile[i];
    }
  }
  sync_block();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const i32 slot = first_slot + 32 * i;
    if (slot >= a.slots) break;
    const i32 place = expert[i] < 0 ? -1 : begins[expert[i]] + mine[expert[i]] + rank[i];
    a.places[slot] = place;
    if (place >= 0) sorted[place] = static_cast<u32>(x_row_of(a, slot) | expert[i] << 16);
  }
  sync_block();
  const i32 end = *total;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const i32 row = i * C.threads + thread;
    if (row >= end) break;
    a.x_rows[row] = static_cast<i32>(sorted[row] & 0xffffu);
    if (a.row_experts) a.row_experts[row] = static_cast<i32>(sorted[row] >> 16);
  }
}

}  // namespace route_detail

/// Launch: one block of threads(C), or with parts as many as block_counts has room for; shared_bytes(C).
template <RouteConfig C>
Q4_DEVICE void route(const RouteArgs& a) {
  using namespace route_detail;
  if constexpr (C.threads == 32) {
    wait_previous_kernel();
    allow_next_kernel();
    route_warp(a);
    return;
  } else if constexpr (C.each > 0) {
    return route_block<C>(a);
  }
  constexpr int kWarps = C.threads / 32, kEach = C.experts / C.threads > 0 ? C.experts / C.threads : 1;
  i32* counts = reinterpret_cast<i32*>(shared_memory());  // [warp][expert], then where the warp's rows of it begin
  i32* begins = counts + kWarps * C.experts;              // [expert]
  i32(*warp_sums)[3] = reinterpret_cast<i32(*)[3]>(begins + C.experts);
  i32* totals = reinterpret_cast<i32*>(warp_sums + kWarps);
  const int thread = thread_index(), warp = thread >> 5, lane = thread & 31;
  const int blocks = C.part ? block_count() : 1, block = C.part ? block_index() : 0;
  const i32 each = ceil_div(ceil_div(a.slots, 32), kWarps * blocks) * 32;  // slots of a warp
  const i32 begin = smaller(a.slots, (block * kWarps + warp) * each), end = smaller(a.slots, begin + each);
  const u32 lower = (1u << lane) - 1u;
  i32* mine = counts + warp * C.experts;
  if (thread < 3) totals[thread] = 0;
  wait_previous_kernel();  // ids may be its, and what is written here may still be read by an earlier run
  allow_next_kernel();
  for (i32 first = 0; first < a.experts; first += C.experts) {
    const int range = smaller(C.experts, a.experts - first), bits = bits_of(range + 1);
    for (int i = lane; i < range; i += 32) mine[i] = 0;
    sync_warp();
    Batch batch;
    for (i32 base = begin; base < end; base += 32 * kBatch) {
      batch.load<C>(a, first, base, end, lane, bits);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (base + 32 * i >= end) break;
        const i32 slot = base + 32 * i + lane, index = batch.index[i];
        const u32 equal = batch.equal[i];
        if (index >= 0 && (equal & lower) == 0) mine[index] += bit_count(equal);
        if (C.part != kCountPart && first == 0 && slot < end && batch.expert[i] < 0) a.places[slot] = -1;
        sync_warp();
      }
    }
    sync_block();
    // kEach experts a thread: their rows, and their row tiles for either matmul.
    i32 rows[kEach], earlier[kEach];  // earlier: of the blocks before
    Sums sum{}, before{};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int expert = thread * kEach + j;
      rows[j] = earlier[j] = 0;
      if (expert >= range) continue;
      i32 of_warp[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) of_warp[w] = counts[w * C.experts + expert];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        counts[w * C.experts + expert] = rows[j];
        rows[j] += of_warp[w];
      }
      if constexpr (C.part == kCountPart) {
        a.block_counts[static_cast<i64>(block) * a.experts + first + expert] = rows[j];
        continue;
      }
      if constexpr (C.part == kPlacePart) {
        rows[j] = 0;
        for (int b = 0; b < blocks; ++b) {
          if (b == block) earlier[j] = rows[j];
          rows[j] += a.block_counts[static_cast<i64>(b) * a.experts + first + expert];
        }
      }
      sum.rows += rows[j];
      sum.first += tiles_of(a.lists[0], rows[j]), sum.second += tiles_of(a.lists[1], rows[j]);
    }
    if constexpr (C.part == kCountPart) {
      sync_block();
    } else {
      const Sums through{scan(sum.rows, lane), scan(sum.first, lane), scan(sum.second, lane)};
      before = {through.rows - sum.rows, through.first - sum.first, through.second - sum.second};
      if (lane == 31) {
        i32* of_warp = warp_sums[warp];
        of_warp[0] = through.rows, of_warp[1] = through.first, of_warp[2] = through.second;
      }
      sync_block();
      if (warp == 0) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const i32 of_warp = lane < kWarps ? warp_sums[lane][i] : 0, through = scan(of_warp, lane), total = totals[i];
          if (lane < kWarps) warp_sums[lane][i] = total + through - of_warp;
          sync_warp();
          if (lane == 31) totals[i] = total + through;
        }
      }
      sync_block();
      const i32* of_warp = warp_sums[warp];
      before.rows += of_warp[0], before.first += of_warp[1], before.second += of_warp[2];
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int expert = thread * kEach + j;
        if (expert >= range) break;
        begins[expert] = before.rows + earlier[j];
        const auto list = [&](const RouteTiles& to, i32& at) {
          const i32 tiles = tiles_of(to, rows[j]);
          for (i32 t = 0; t < tiles && block == 0; ++t)
            to.tiles[at + t] = {first + expert, before.rows, before.rows + rows[j], at};
          at += tiles;
        };
        list(a.lists[0], before.first), list(a.lists[1], before.second);
        before.rows += rows[j];
      }
      sync_block();
      for (i32 base = begin; base < end; base += 32 * kBatch) {
        if (end - begin > 32 * kBatch) batch.load<C>(a, first, base, end, lane, bits);  // else it still is
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (base + 32 * i >= end) break;
          const i32 slot = base + 32 * i + lane, index = batch.index[i];
          const u32 equal = batch.equal[i];
          const int rank = bit_count(equal & lower);
          const i32 place = index >= 0 ? begins[index] + mine[index] + rank : 0;
          sync_warp();
          if (index >= 0) {
            a.x_rows[place] = x_row_of(a, slot);
            a.places[slot] = place;
            if (a.row_experts) a.row_experts[place] = batch.expert[i];
            if (rank == 0) mine[index] += bit_count(equal);
          }
          sync_warp();
        }
      }
      sync_block();
    }
  }
  if (thread == 0 && block == 0 && C.part != kCountPart) {
    *a.row_count = totals[0];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (a.lists[i].rows) *a.lists[i].count = totals[1 + i];
  }
}

}  // namespace q4
