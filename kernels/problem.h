// What every matmul kernel is compiled for, and what every launch of one is given.
#pragma once
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

  template <class V>
  Q4_BOTH constexpr void fields(V&& v) {
    v("k", k), v("n", n), v("unit", unit), v("x_k", x_k), v("gather", gather), v("bf16", bf16), v("bias", bias);
  }
};

/// What one device offers a config.
struct Limits {
  int arch = 0;              ///< CUDA: 75, 80, 90, ...; HIP: 0
  int units = 1;             ///< SMs or CUs
  int shared_bytes = 49152;  ///< of one block
  int registers = 65536;     ///< of one SM
};

/// The head of a workspace, in which kernels that split k count arrivals: zero before the first launch, left zero.
constexpr int kCounterBytes = 16384;

/// Arguments of every matmul kernel. Pointers are 16-byte aligned, strides in elements and multiples of 8.
struct MatmulArgs {
  const u8* codes;   ///< codes_bytes(k, n)
  const u8* meta;    ///< meta_bytes(k, n, unit)
  const u16* x;      ///< [m, x_k], row stride x_stride
  const i32* x_map;  ///< [k] when gather
  const u16* bias;   ///< [n] in the activations' type when bias
  u16* out;          ///< [m, n], row stride out_stride
  u8* workspace;     ///< workspace_bytes(C, m) of the kernel; its first kCounterBytes are zero
  i64 x_stride, out_stride;
  i32 m;
};

}  // namespace q4
