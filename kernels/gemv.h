// gemv: out = x @ W on plain FMA units, for any GPU and any m: the portable direct kernel. A block owns `tiles` x 16
// columns and `rows` rows of x; its warps split the slabs of k between them and are summed in warp order.
//
//   lane 4 g + t:  16 bytes of codes -> (q - zero) of columns g, g + 8 -> x of rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9
//                  -> fp32 sum a unit, times its scale -> 4 lanes by shuffle -> warps through shared memory -> out
#pragma once
#include "epilogue.h"
#include "grouped.h"
#include "lora.h"

namespace q4 {

struct GemvConfig {
  Problem p;
  int half2 = 1;  ///< 1: fp16 products, summed in fp16 by twos; a lane that overflows repeats itself in fp32. 0: fp32
  int rows = 1;   ///< rows of x a block multiplies
  int tiles = 2;  ///< 16-column tiles of a block: 1, 2 or 4
  int warps = 8;  ///< they split k

  /// Each tunable with the values worth trying.
  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("half2", half2, 1, 0), v("rows", rows, 1, 2, 4, 8), v("tiles", tiles, 2, 1, 4), v("warps", warps, 8, 4, 16);
  }
};

/// Grouped: rows of a row tile.
Q4_BOTH constexpr int tile_rows(const GemvConfig& c) { return c.rows; }
Q4_BOTH constexpr int threads(const GemvConfig& c) { return 32 * c.warps; }
Q4_BOTH constexpr int shared_bytes(const GemvConfig& c) { return c.warps * c.rows * c.tiles * kTileColumns * 4; }
Q4_BOTH constexpr i64 grid(const GemvConfig& c, i64 m) {
  return static_cast<i64>(strips(c.p.n) * kStripTiles / c.tiles) * (c.p.grouped ? m : (m + c.rows - 1) / c.rows);
}
Q4_BOTH constexpr bool valid(const GemvConfig& c, const Limits& limits) {
  if (c.p.grouped && (c.p.grouped != kGroupedSorted || c.p.gather || c.p.residual)) return false;
  return !(c.half2 && c.p.bf16) && threads(c) <= 1024 && shared_bytes(c) <= limits.shared_bytes &&
         c.rows * c.tiles * c.warps <= 128;
}
namespace gemv_detail {

/// The x that a lane meets in one 16-row step: rows 2t, 2t+1 and 2t+8, 2t+9, for every row of the block.
template <GemvConfig C>
struct StepX {
  u32 pair[C.rows][2];
};

template <GemvConfig C>
Q4_DEVICE u32 load_pair(const MatmulArgs& a, const u16* x, int p) {
  if constexpr (C.p.gather) {
    const i32 first = a.x_map[p], second = a.x_map[p + 1];
    const u32 low = first < 0 ? 0u : x[first], high = second < 0 ? 0u : x[second];
    return low | high << 16;
  } else {
    if (C.p.x_k < C.p.k && p >= C.p.x_k) return 0u;
    return *reinterpret_cast<const u32*>(x + p);
  }
}

template <GemvConfig C>
Q4_DEVICE void load_step(StepX<C>& v, const MatmulArgs& a, i64 row, int p) {
#pragma unroll
  for (int r = 0; r < C.rows; ++r) {
    const u16* x = a.x + (row + r < a.m ? row + r : a.m - 1) * a.x_stride;  // rows past m repeat the last, unstored
    v.pair[r][0] = load_pair<C>(a, x, p);
    v.pair[r][1] = load_pair<C>(a, x, p + 8);
  }
}

/// Scales and zeros of the two columns of a lane in one tile.
struct Meta {
  float scale[2];
  u32 zero[2];
};
template <GemvConfig C>
Q4_DEVICE Meta load_meta(const MatmulArgs& a, int strip, int tile, int g, int p) {
  const SetPlace set = set_place(C.p, a, strip, p / C.p.unit);
  const u32 scales = *reinterpret_cast<const u32*>(set.scales + scale_offset(tile, g));
  const u32 zeros = set.zeros[zero_place(tile, g)];
  return {{half_to_float(static_cast<u16>(scales)), half_to_float(static_cast<u16>(scales >> 16))},
          {zeros & 15u, zeros >> 4}};
}

/// fp16 pairs (q - zero) of one word: [column g, g + 8][rows 2t.. , 2t + 8..]. 0x6400 | q is 1024 + q and 0x5400 | q <<
/// 4 is 64 + q, so subtracting 1024 + zero or 64 + zero is exact.
Q4_DEVICE void dequantize_half2(u32 (&w)[2][2], u32 word, const u32 (&minus_zero)[2]) {
  const u32 upper = word >> 8;
  w[0][0] = half2_add(and_or<0x000f000fu, 0x64006400u>(word), minus_zero[0]);
  w[1][0] = half2_add(and_or<0x00f000f0u, 0x54005400u>(word), minus_zero[1]);
  w[0][1] = half2_add(and_or<0x000f000fu, 0x64006400u>(upper), minus_zero[0]);
  w[1][1] = half2_add(and_or<0x00f000f0u, 0x54005400u>(upper), minus_zero[1]);
}

/// One nibble as float: 0x4b000000 | q is 2^23 + q, minus (2^23 + zero).
template <int kNibble>
Q4_DEVICE float dequantize_float(u32 word, float minus_zero) {
  return bits_to_float((word >> (4 * kNibble) & 15u) | 0x4b000000u) + minus_zero;
}

/// The steps of one lane's 16 bytes that share a scale: words [first, first + count).
template <GemvConfig C, bool kHalf2>
Q4_DEVICE void multiply_unit(float (&acc)[2][C.rows], const u32* words, const StepX<C>* x, const Meta& meta,
                             int count) {
  float sum[2][C.rows] = {};
  if constexpr (kHalf2) {
    const u32 minus_zero[2] = {0xe400e400u | meta.zero[0] * 0x00010001u, 0xd400d400u | meta.zero[1] * 0x00100010u};
#pragma unroll
    for (int i = 0; i < count; ++i) {
      u32 w[2][2];
      dequantize_half2(w, words[i], minus_zero);
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int r = 0; r < C.rows; ++r) {
          const u32 pair = half2_fma(w[c][1], x[i].pair[r][1], half2_mul(w[c][0], x[i].pair[r][0]));
          const Float2 v = to_float2<false>(pair);
          sum[c][r] += v.x + v.y;
        }
    }
  } else {
    const float minus_zero[2] = {-8388608.f - static_cast<float>(meta.zero[0]),
                                 -8388608.f - static_cast<float>(meta.zero[1])};
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float w[2][4];  // rows 2t, 2t + 1, 2t + 8, 2t + 9
      w[0][0] = dequantize_float<0>(words[i], minus_zero[0]);
      w[1][0] = dequantize_float<1>(words[i], minus_zero[1]);
      w[0][1] = dequantize_float<4>(words[i], minus_zero[0]);
      w[1][1] = dequantize_float<5>(words[i], minus_zero[1]);
      w[0][2] = dequantize_float<2>(words[i], minus_zero[0]);
      w[1][2] = dequantize_float<3>(words[i], minus_zero[1]);
      w[0][3] = dequantize_float<6>(words[i], minus_zero[0]);
      w[1][3] = dequantize_float<7>(words[i], minus_zero[1]);
#pragma unroll
      for (int r = 0; r < C.rows; ++r) {
        const Float2 low = to_float2<C.p.bf16 != 0>(x[i].pair[r][0]), high = to_float2<C.p.bf16 != 0>(x[i].pair[r][1]);
#pragma unroll
        for (int c = 0; c < 2; ++c)
          sum[c][r] += w[c][0] * low.x + w[c][1] * low.y + (w[c][2] * high.x + w[c][3] * high.y);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int r = 0; r < C.rows; ++r) acc[c][r] += meta.scale[c] * sum[c][r];
}

/// This lane's part of the products of its tiles, over the slabs of its warp.
template <GemvConfig C, bool kHalf2>
Q4_DEVICE void dot(float (&acc)[C.tiles][2][C.rows], const MatmulArgs& a, int first_tile, i64 row, int warp, int lane) {
  constexpr int kUnitSteps = (C.p.unit < 64 ? C.p.unit : 64) / kStepRows;  // steps of a half slab that share a scale
  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < C.tiles; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int r = 0; r < C.rows; ++r) acc[i][c][r] = 0.f;
  [[maybe_unused]] constexpr int kUnroll =
      C.rows * C.tiles > 2 ? 1 : 4;  // more would take the registers that hide latency
#pragma unroll kUnroll
  for (int part = warp; part < 2 * slabs(C.p.k); part += C.warps) {  // half slabs, 64 rows
    const int slab = part >> 1, half = part & 1;
    Words4 words[C.tiles];
#pragma unroll
    for (int i = 0; i < C.tiles; ++i) {
      const int tile = first_tile + i;
      words[i] = load_stream(a.codes + codes_offset(C.p.k, tile / kStripTiles, slab, tile % kStripTiles, half, lane));
    }
    StepX<C> x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) load_step<C>(x[j], a, row, part * 64 + j * kStepRows + 2 * t);
#pragma unroll
    for (int i = 0; i < C.tiles; ++i) {
      const int tile = first_tile + i;
      const u32 w[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
      for (int j = 0; j < 4; j += kUnitSteps) {
        const Meta meta = load_meta<C>(a, tile / kStripTiles, tile % kStripTiles, g, part * 64 + j * kStepRows);
        multiply_unit<C, kHalf2>(acc[i], w + j, x + j, meta, kUnitSteps);
      }
    }
  }
}

}  // namespace gemv_detail

namespace gemv_detail {

/// Columns `column_block` of `C.rows` rows from `row` on.
template <GemvConfig C>
Q4_DEVICE void multiply(const MatmulArgs& a, int column_block, i64 row) {
  constexpr int kColumns = C.tiles * kTileColumns;
  const int warp = thread_index() >> 5, lane = thread_index() & 31;
  float acc[C.tiles][2][C.rows];
  dot<C, C.half2 != 0>(acc, a, column_block * C.tiles, row, warp, lane);
  if constexpr (C.half2) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < C.tiles; ++i)
#pragma unroll
      for (int r = 0; r < C.rows; ++r) sum += acc[i][0][r] * 0.f + acc[i][1][r] * 0.f;
    if (!(sum == 0.f)) dot<C, false>(acc, a, column_block * C.tiles, row, warp, lane);  // inf or NaN met
  }

  float* partial = reinterpret_cast<float*>(shared_memory());  // [warp][row][column]
#pragma unroll
  for (int i = 0; i < C.tiles; ++i)
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int r = 0; r < C.rows; ++r) {
        float v = acc[i][c][r];
        v += shuffle_xor(v, 1);
        v += shuffle_xor(v, 2);
        if ((lane & 3) == 0) partial[(warp * C.rows + r) * kColumns + i * kTileColumns + c * 8 + (lane >> 2)] = v;
      }
  sync_block();
  constexpr int kOuts = out_columns(C.p, kColumns);
  const auto sum = [&]([[maybe_unused]] i64 r, int place, int col) {
    float v = 0.f;
#pragma unroll
    for (int w = 0; w < C.warps; ++w) v += partial[w * C.rows * kColumns + place];
    if constexpr (C.p.lora) v += lora_sum<C.p>(a, r, col);
    if constexpr (C.p.bias) v += bias_of<C.p>(a, col);
    return v;
  };
  for (int i = thread_index(); i < C.rows * kOuts; i += threads(C)) {
    const i64 r = row + i / kOuts;
    const int out = column_block * kOuts + i % kOuts;
    if (r >= a.m || out >= out_columns(C.p, C.p.n)) continue;
    float v;
    if constexpr (C.p.gated) {
      const int gate = i / 8 * kTileColumns + i % 8, col = column_block * kColumns + gate % kColumns;
      v = finish_pair<C.p>(sum(r, gate, col), sum(r, gate + 8, col + 8));
    } else {
      v = finish_one<C.p>(sum(r, i, out));
    }
    if constexpr (C.p.residual) v += residual_of<C.p>(a, r, out);
    a.out[r * a.out_stride + out] = from_float<C.p.bf16 != 0>(v);
  }
}

}  // namespace gemv_detail

template <GemvConfig C>
inline constexpr int kGemvColumnBlocks = strips(C.p.n) * kStripTiles / C.tiles;

template <GemvConfig C>
Q4_DEVICE void gemv(const MatmulArgs& a) {
  gemv_detail::multiply<C>(a, block_index() % kGemvColumnBlocks<C>,
                           static_cast<i64>(block_index() / kGemvColumnBlocks<C>) * C.rows);
}

/// Grouped: a block has one item, or none.
template <GemvConfig C>
Q4_DEVICE void gemv(const GroupedArgs& g) {
  wait_previous_kernel();
  allow_next_kernel();
  if (block_index() >= group_items<kGemvColumnBlocks<C>>(g)) return;
  const GroupItem item = group_item<C.rows, kGemvColumnBlocks<C>>(g, block_index());
  gemv_detail::multiply<C>(item_args(g, item, C.p), item.block, 0);
}

}  // namespace q4
