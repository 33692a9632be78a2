// Adding low B where the rows of a tile have different adapters, by wgmma: low is spread over as many columns as the tile's
// adapters have ranks, zero in those of the others, so that one step of k16 meets a chunk of an adapter for all rows.
//
//   list     warp 2: units (a chunk of an adapter that some row has) and each row's, in shared memory; of the units, each
//            team has those of its part (LoraTile::first_chunk)
//   area     64 columns in x's form, four units at a time, a row a thread: where out will stand, or the team's last x
//   wgmma    A: B of the chunk as lora.h stores it, from memory; added to the sums of the team
//
// A row's bits depend on no other: what it gets from their units is 0.
#pragma once
#include "lora_mma.h"
#include "prefill_epilogue.h"

namespace q4::prefill_detail {

constexpr int kSpreadRows = -2;  // TileAdapter::chunks: rows differ, and there is a list

/// The list, in shared memory.
template <PrefillConfig C>
struct SpreadList {
  struct alignas(16) Unit {
    const u16* b;  // of the chunk
    i32 all, chunk;
  };
  static constexpr int kPlaceBits = 6, kBits = 12;  // of a row's first unit; of that and how many, of one team
  static_assert(kSpreadUnits <= 1 << kPlaceBits && C.teams <= 2);
  Unit* units;  // [team][kSpreadUnits]
  i32* rows;    // while the list is made, an adapter's number, or -1; then -2 - what unit() reads

  Q4_DEVICE explicit SpreadList(const Shared<C>& s)
      : units(reinterpret_cast<Unit*>(shared_memory() + (s.list - shared_address(shared_memory())))),
        rows(reinterpret_cast<i32*>(units + C.teams * kSpreadUnits)) {}

  Q4_DEVICE int first(int row, int team) const { return (-2 - rows[row]) >> team * kBits & ((1 << kPlaceBits) - 1); }
  Q4_DEVICE int count(int row, int team) const {
    const i32 v = -2 - rows[row];
    return v < 0 ? 0 : v >> (team * kBits + kPlaceBits) & ((1 << (kBits - kPlaceBits)) - 1);
  }

  /// By a warp, of the tile from `row` on. Returns the units of each team, eight bits each; below 0: there is no room.
  Q4_DEVICE int make(const MatmulArgs& a, int row, u32 rank, int lane) const {
    constexpr int kParts = one_tile(C) ? parts(C) : 1;
#pragma unroll 1
    for (int r = lane; r < C.rows; r += 32) rows[r] = row + r < a.m ? lora_adapter(a.lora, row + r) : -1;
    sync_warp();
    int counts[C.teams] = {};
#pragma unroll 1
    for (int base = 0; base < C.rows; base += 32) {
      LoraEntry of{};  // of the lane's row: one trip for all
      if (rows[base + lane] >= 0) of = a.lora.table[rows[base + lane]];
#pragma unroll 1
      for (;;) {  // the adapter of the first row that is left, with all of its rows
        const i32 mine = rows[base + lane];
        const u32 alike = equal_lanes(mine >= 0 ? 1u : 0u, 1), left = mine >= 0 ? alike : ~alike;
        if (left == 0) break;
        const int lead = bit_count((left & (~left + 1)) - 1);
        const i32 number = shuffle(mine, lead), all = shuffle(of.chunks, lead);
        const u16* b = shuffle_pointer(of.b, lead);
        i32 as = 0;
#pragma unroll
        for (int team = 0; team < C.teams; ++team) {
          const int part = one_tile(C) ? (C.split > 1 ? static_cast<int>(rank) : 0) * C.teams + team : 0;
          const int begin = (part + kParts - number % kParts) % kParts;
          const int own = begin < all ? (all - begin + kParts - 1) / kParts : 0;
          if (counts[team] + own > kSpreadUnits) return -1;
          const int chunk = begin + lane * kParts;
          if (lane < own) units[team * kSpreadUnits + counts[team] + lane] = {b + chunk * 256, all, chunk};
          if (own > 0) as |= (counts[team] | own << kPlaceBits) << team * kBits;
          counts[team] += own;
        }
#pragma unroll 1
        for (int r = base + lane; r < C.rows; r += 32)
          if (rows[r] == number) rows[r] = -2 - as;
        sync_warp();
      }
    }
    int each = 0;
#pragma unroll
    for (int team = 0; team < C.teams; ++team) each |= counts[team] << 8 * team;
    return each;
  }
};

/// The 16 ranks of a chunk of row r of the tile from `row` on.
template <PrefillConfig C>
Q4_DEVICE void load_low(Words4 (&w)[2], const MatmulArgs& a, const Shared<C>& s, int row, int r, int chunk) {
  const u16* memory = a.lora.low + static_cast<i64>(row + r) * a.lora.low_stride + chunk * kLoraRanks;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (chunk < lora_staged(C)) {
      u32 v[4];
      load_shared4(v, s.low + ((chunk * C.rows + r) * kLoraRanks + 8 * half) * 2);
      w[half] = {v[0], v[1], v[2], v[3]};
    } else {
      w[half] = *reinterpret_cast<const Words4*>(memory + 8 * half);
    }
  }
}

/// Where a warpgroup spreads, in shared memory: out's place, or, where that is for sums or a team's x is free at its end
/// (there is one tile), one of the tiles of x that the team met last, its other strip's warpgroup the other.
template <PrefillConfig C>
Q4_DEVICE u32 spread_area(const Shared<C>& s, const Rings<C>& rings, const Place& at) {
  if constexpr (!one_tile(C)) return s.out + at.strip * (C.rows * 128);
  constexpr u32 kAll = one_ring(C) ? stages(C) * stage_bytes(C) : x_stages(C) * x_tile_bytes(C);
  const u32 back = one_ring(C) ? C.teams * stage_bytes(C) : (2 * C.teams - at.strip) * x_tile_bytes(C);
  const u32 now = one_ring(C) ? rings.slab.stage : rings.x.stage, last = now < back ? now + kAll - back : now - back;
  return s.x_tile(last, one_ring(C) ? at.strip : 0);
}

/// By a warpgroup: sums += low B. `count`: of its team's units. Columns are of strip `strip`.
template <PrefillConfig C, int kRegs>
Q4_DEVICE void add_spread(float (&acc)[kRegs], const MatmulArgs& a, const Shared<C>& s, const Rings<C>& rings,
                          const Place& at, int strip, int row, int count) {
  constexpr int kOwn = ceil_div(C.rows, 128);  // rows of a thread
  const SpreadList<C> list(s);
  const typename SpreadList<C>::Unit* units = list.units + at.team * kSpreadUnits;
  const u32 area = spread_area<C>(s, rings, at);
  const int barrier = 1 + at.team * C.strips + at.strip;
  const int tile = smaller(strip * kStripTiles + at.tile, ceil_div(C.p.n, kTileColumns) - 1);
  if (!one_tile(C) && at.thread == 0) bulk_wait_read();  // the tile before has left
  if (one_tile(C) && C.strips > 1)
    named_barrier(8 + at.team, 128 * C.strips);  // both have met the last x
  else
    named_barrier(barrier, 128);
  if (count == 0) return;
  int first[kOwn], own[kOwn];
  Words4 low[kOwn][2];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int r = i * 128 + at.thread;
    first[i] = own[i] = 0;
    if (r < C.rows) own[i] = list.count(r, at.team);
    if (own[i] > 0) {
      first[i] = list.first(r, at.team);
      load_low<C>(low[i], a, s, row, r, units[first[i]].chunk);
    }
  }
  u32 frag[4][4];
  const auto load = [&](int unit) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      Words4 w{0, 0, 0, 0};
      if (unit + j < count) {
        const typename SpreadList<C>::Unit& of = units[unit + j];
        w = *reinterpret_cast<const Words4*>(of.b + (static_cast<i64>(tile) * of.all * 32 + at.lane) * 8);
      }
      frag[j][0] = w.x, frag[j][1] = w.y, frag[j][2] = w.z, frag[j][3] = w.w;
    }
  };
  load(0);
#pragma unroll 1
  for (int i = at.thread; i < C.rows * 8; i += 128) store_shared4(area + i * 16, {0, 0, 0, 0});
  named_barrier(barrier, 128);
#pragma unroll 1
  for (int unit = 0; unit < count; unit += 4) {
    if (unit > 0) load(unit);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int r = i * 128 + at.thread, end = first[i] + own[i];
      if (first[i] >= unit + 4 || end <= unit - 4) continue;  // nothing to write nor to clear
#pragma unroll 1
      for (int j = 0; j < 4; ++j) {
        const int now = unit + j;
        const bool is = now >= first[i] && now < end, was = now - 4 >= first[i] && now - 4 < end;
        if (!is && !was) continue;
        Words4 w[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        if (is && now == first[i]) w[0] = low[i][0], w[1] = low[i][1];
        if (is && now > first[i]) load_low<C>(w, a, s, row, r, units[now].chunk);
        // As the fragments of B have it: words 2 t, 2 t + 1 of the ranks are t and t + 4 of k.
        store_shared4(area + r * 128 + ((2 * j) ^ (r & 7)) * 16, {w[0].x, w[0].z, w[1].x, w[1].z});
        store_shared4(area + r * 128 + ((2 * j + 1) ^ (r & 7)) * 16, {w[0].y, w[0].w, w[1].y, w[1].w});
      }
    }
    fence_async_shared();
    named_barrier(barrier, 128);
    start<C>(acc, frag, area, 0, 1);
    wgmma_wait<0>();
    wgmma_pin(acc);
    named_barrier(barrier, 128);  // the area is read
  }
}

}  // namespace q4::prefill_detail
