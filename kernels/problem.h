// What every matmul kernel is compiled for, and what every launch of one is given.
#pragma once
#include "device_limits.h"
#include "layout.h"

namespace q4 {

/// Fixed when a kernel is compiled. `fields` names every member: it writes the generated source and the tuning key.
struct Problem {
  int k = 0;       ///< packed rows, a multiple of 128
  int n = 0;       ///< columns, a multiple of 8
  int unit = 128;  ///< packed rows that share a scale: 16, 32, 64 or a multiple of 128
  int x_k = 0;     ///< columns of x; packed rows from x_k on meet no x unless `gather` maps them
  int gather = 0;  ///< 1: packed row p reads column x_map[p] of x, or nothing where that is -1
  int bf16 = 0;    ///< activations are bf16, else fp16
  int bias = 0;    ///< the bias is added
  int apart = 0;   ///< scales and zeros are apart (layout.h): MatmulArgs::meta and zeros
  // The epilogue (epilogue.h). All 0: out is the sum, rounded.
  int activation = 0;        ///< 0: none, else kSilu, ...
  int gated = 0;             ///< 1: columns are pairs (layout.h), and out has n / 2 columns, activation(gate) * up
  int residual = 0;          ///< 1: the residual is added after the activation
  int norm = 0;              ///< 1: x is RMS-normalized first: see MatmulArgs::norm
  int lora = 0;              ///< 1: rows get the products of their adapters before bias and activation (lora.h)
  int alpha = 0, limit = 0;  ///< of kSwigluClamp: the bits of floats
  int grouped = 0;  ///< one of many matrices, which the rows choose (grouped.h): kGroupedSorted or kGroupedIndirect

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("k", k), v("n", n), v("unit", unit), v("x_k", x_k), v("gather", gather), v("bf16", bf16), v("bias", bias);
    v("apart", apart);
    v("activation", activation), v("gated", gated), v("residual", residual), v("norm", norm), v("lora", lora);
    v("alpha", alpha), v("limit", limit), v("grouped", grouped);
  }
};

/// Values of Problem::grouped: x is read in sorted order, or through the list of its rows.
constexpr int kGroupedSorted = 1, kGroupedIndirect = 2;

/// The head of a workspace, in which kernels that split k count arrivals: zero before the first launch, left zero.
constexpr int kCounterBytes = 16384;

/// One adapter of a table; chunks 0: none. a, b: as lora.h draws them. chunks: of 16 ranks.
struct LoraEntry {
  const u16 *a, *b;
  i32 chunks;
  float scale;
};
/// Who makes low = scale x A for a matmul: a launch before it has; the launch right before it, which may still run and
/// lets this one start when x is there; or the first `blocks` blocks of this launch (lora_decode.h, prefill_lora.h), with
/// kLoraFirst while the others hold back at their start, as low is what they will wait for.
enum LoraMaker : int { kLoraBefore = 0, kLoraBeside = 1, kLoraWithin = 2, kLoraFirst = 3 };
struct LoraArgs {
  const LoraEntry* table;  ///< [adapters]
  const i32* adapter;      ///< [m] of each row
  const u16* low;          ///< [m, low_stride]: scale x A; kLoraWithin: the blocks' inboxes
  i32 low_stride, adapters;
  i32 maker;   ///< a LoraMaker
  i32 blocks;  ///< kLoraWithin, kLoraFirst; else 0
};

/// Arguments of every matmul kernel. Pointers are 16-byte aligned, strides in elements and multiples of 8.
struct MatmulArgs {
  const u8* codes;   ///< codes_bytes(k, n)
  const u8* meta;    ///< meta_bytes(k, n, unit); apart: scales alone
  const u16* x;      ///< [m, x_k], row stride x_stride
  const i32* x_map;  ///< [k] when gather
  const u16* bias;   ///< [n] in the activations' type and in packed order when bias
  u16* out;          ///< [m, n], row stride out_stride; n / 2 columns when gated
  u8* workspace;     ///< workspace_bytes(C, m) of the kernel; its first kCounterBytes are zero
  i64 x_stride, out_stride;
  i32 m;
  const u8* zeros;      ///< apart: zeros
  const u16* residual;  ///< as out when residual; may be out itself, with its stride
  i64 residual_stride;
  LoraArgs lora;    ///< when lora
  const u16* norm;  ///< [x_k] when norm: x stands for x / sqrt(mean(x^2) + norm_epsilon) * norm
  float norm_epsilon;
};

/// Where a set's scales and zeros are.
struct SetPlace {
  const u8 *scales, *zeros;
};
/// `a`: arguments of a kernel, with `meta` and `zeros`.
template <class Args>
Q4_BOTH constexpr SetPlace set_place(const Problem& p, const Args& a, int strip, int set) {
  if (p.apart) {
    const i64 piece = static_cast<i64>(set) * strips(p.n) + strip;
    return {a.meta + piece * kScaleBytes, a.zeros + piece * kZeroBytes};
  }
  const u8* at = a.meta + meta_offset(p.k, p.unit, strip, set);
  return {at, at + kMetaZeros};
}
/// From a set's scales to those of the strip's next set; zeros are as far, or apart a quarter of it.
Q4_BOTH constexpr i64 set_stride(const Problem& p) {
  return p.apart ? static_cast<i64>(strips(p.n)) * kScaleBytes : kMetaBytes;
}

}  // namespace q4
