// Where a thread of the batch kernel stands, and the ring of stages that cp.async fills: x, codes, scales and zeros.
#pragma once
#include "batch_config.h"
#include "words.h"

namespace q4 {
namespace batch_detail {

/// What a thread is in its block, and which tile and turns [begin, end) of k the block has.
template <BatchConfig C>
struct Place {
  int lane, strip, team, row_warp;  // strip: of the tile's
  int tile, part, row, first_strip, begin, end;

  Q4_DEVICE explicit Place(int m) {
    const int warp = thread_index() >> 5;
    lane = thread_index() & 31;
    row_warp = warp % row_warps(C);
    strip = warp / row_warps(C) % C.strips;
    team = warp / row_warps(C) / C.strips;
    tile = block_index() / C.split;
    part = block_index() % C.split;
    begin = turns(C) * part / C.split;
    end = turns(C) * (part + 1) / C.split;
    // Bands of about 1024 rows: within one, all its rows meet a column tile before the next column tile.
    constexpr int kBand = larger(1, 1024 / C.rows), kTilesN = tiles_n(C);
    const int band = tile / (kBand * kTilesN), rest = tile - band * kBand * kTilesN;
    const int tiles_m = smaller(kBand, ceil_div(m, C.rows) - band * kBand);
    row = (band * kBand + rest % tiles_m) * C.rows;
    first_strip = rest / tiles_m * C.strips;
  }
};

/// Rows of x stand in 128 bytes, their 16-byte chunks swizzled by row: ldmatrix and the copies meet no bank conflict.
template <BatchConfig C>
struct Stages {
  u32 base;
  // What this thread copies: a chunk of every kRowStep-th row of x, and 16 bytes of tiles of its own warp's strip.
  static constexpr int kRowStep = threads(C) / 8, kRowCopies = C.teams * C.rows / kRowStep;
  static constexpr int kMetaChunks = half_sets(C.p) * kMetaBytes / 16;
  const u16* x;
  const u8* codes;
  SetPlace meta;               // of the strip's first set
  int line, chunk, rows_left;  // line: of the rows of all teams; rows_left: of m from the tile on

  Q4_DEVICE Stages(const MatmulArgs& a, const Place<C>& at) {
    base = shared_address(shared_memory());
    line = thread_index() / 8;
    chunk = thread_index() % 8;
    rows_left = a.m - at.row;
    x = a.x + at.row * a.x_stride + chunk * 8;
    const int strip = smaller(at.first_strip + at.strip, strips(C.p.n) - 1);  // past the last: repeated, never stored
    codes = a.codes + codes_offset(C.p.k, strip, 0, 0, 0, at.lane);
    meta = set_place(C.p, a, strip, 0);
  }
  Q4_DEVICE u32 x_tile(int stage, int team) const {
    return base + stage * stage_bytes(C) + team * (C.rows * kBatchXRowBytes);
  }
  Q4_DEVICE u32 strip_codes(int stage, const Place<C>& at) const {
    return base + stage * stage_bytes(C) + x_bytes(C) + (at.team * C.strips + at.strip) * kHalfBytes;
  }
  Q4_DEVICE u32 strip_meta(int stage, const Place<C>& at) const {
    return base + stage * stage_bytes(C) + x_bytes(C) + batch_codes_bytes(C) +
           (at.team * C.strips + at.strip) * (half_sets(C.p) * kMetaBytes);
  }

  /// 16 bytes of the sets from `set` on, as they stand in a stage.
  Q4_DEVICE const u8* meta_chunk(int set, int chunk) const {
    if constexpr (!C.p.apart) return meta.scales + static_cast<i64>(set) * kMetaBytes + chunk * 16;
    constexpr int kEach = kMetaBytes / 16, kScales = kScaleBytes / 16;
    const int inside = chunk % kEach;
    const i64 past = static_cast<i64>(set + chunk / kEach) * set_stride(C.p);
    return inside < kScales ? meta.scales + past + inside * 16 : meta.zeros + past / 4 + (inside - kScales) * 16;
  }
  /// Asks for this thread's part of a turn. Halves past the last have no codes, and x is zero past x_k and m.
  Q4_DEVICE void load_weights(int turn, int stage, const Place<C>& at) const {
    const int half = turn * C.teams + at.team;
    if (2 * slabs(C.p.k) % C.teams != 0 && half >= 2 * slabs(C.p.k)) return;
    const u8* from = codes + static_cast<i64>(half >> 1) * kSlabBytes + (half & 1) * (kTileBytes / 2);
    const u32 to = strip_codes(stage, at) + at.lane * 16;
#pragma unroll
    for (int tile = 0; tile < kStripTiles; tile += row_warps(C))
      async_copy16(to + (tile + at.row_warp) * (kTileBytes / 2), from + (tile + at.row_warp) * kTileBytes, 16);
    if (at.row_warp != 0) return;
    const int set = C.p.unit < kHalfRows ? half * half_sets(C.p) : half / (C.p.unit / kHalfRows);
#pragma unroll
    for (int i = 0; i < kMetaChunks; i += 32)
      if (i + at.lane < kMetaChunks)
        async_copy16(strip_meta(stage, at) + (i + at.lane) * 16, meta_chunk(set, i + at.lane), 16);
  }
  Q4_DEVICE void load_x(const MatmulArgs& a, int turn, int stage) const {
    // A team's rows are copied by whole passes of the block, or several teams' by one. Not all unrolled: as many row
    // addresses would be kept in registers.
    static_assert(kRowStep % 8 == 0, "the swizzle repeats");
    constexpr int kPasses = C.rows > kRowStep ? C.rows / kRowStep : 1, kTeams = kRowCopies / kPasses;
    const int first_row = line % C.rows;
#pragma unroll
    for (int i = 0; i < kTeams; ++i) {
      const int team = i * (C.teams / kTeams) + line / C.rows;
      const int column = (turn * C.teams + team) * kHalfRows;
      const bool inside = C.p.x_k >= turns(C) * C.teams * kHalfRows || column + chunk * 8 < C.p.x_k;
      const u16* from = x + first_row * a.x_stride + (inside ? column : 0);
      u32 to = x_tile(stage, team) + first_row * kBatchXRowBytes + ((chunk ^ (first_row & 7)) << 4);
#pragma unroll 2
      for (int row = first_row; row < first_row + kPasses * kRowStep; row += kRowStep) {
        async_copy16(to, from, inside && row < rows_left ? 16 : 0);
        from += kRowStep * a.x_stride, to += kRowStep * kBatchXRowBytes;
      }
    }
  }
};

}  // namespace batch_detail
}  // namespace q4
