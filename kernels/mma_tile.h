// One 16 x 16 tile of a product, multiplied by whatever a GPU has for it: D[m][n] += sum over 16 k of A[m][k] B[n][k],
// fp16 or bf16 in, fp32 sums. Kernels say load, multiply, sum_row and sum_col; which lane holds what stays here.
//
//   MFMA (CDNA, 64 lanes)      lane = 16 g + r: A[r] and B[r] at k = 4 g .. 4 g + 3, D[4 g + i][r]
//   WMMA (RDNA 3, 32 lanes)    lane = 16 g + r: A[r] and B[r] at every k,            D[2 i + g][r]
//   WMMA (RDNA 4, 32 lanes)    lane = 16 g + r: A[r] and B[r] at k = 8 g .. 8 g + 7, D[8 g + i][r]
//   plain FMAs (all others)    lane = 16 g + r: rows from shared memory,             D[g + i kWave / 16][r]
//
// Lanes as in AMD's matrix instruction calculator and the ISA documents of CDNA and RDNA 3 and 4.
#pragma once
#include "device.h"

// clang 17 (ROCm 5.7) ends in an error of its own over these kernels' MFMA on gfx908: V_ACCVGPR_READ of a wrong
// register.
#if (defined(__gfx908__) && __clang_major__ < 17) || defined(__gfx90a__) || defined(__gfx942__)
#define Q4_MMA 1
#elif defined(__GFX11__)
#define Q4_MMA 2
#elif defined(__GFX12__)
#define Q4_MMA 3
#else
#define Q4_MMA 0
#endif

namespace q4::mma_tile {

constexpr int kSide = 16;
/// Lanes that run together; a block's waves are thread_index() / kWave.
#if defined(__GFX9__)
constexpr int kWave = 64;
#else
constexpr int kWave = 32;
#endif
constexpr int kSums = kSide * kSide / kWave;
constexpr int kUnroll = Q4_MMA ? 2 : 1;  ///< steps of k worth unrolling

struct Sums {
  float v[kSums];
};

#if Q4_MMA
template <class T, int kCount>
using Vector = T __attribute__((ext_vector_type(kCount)));
constexpr int kElements = Q4_MMA == 1 ? 4 : Q4_MMA == 2 ? 16 : 8;  ///< of one row that a lane holds

template <bool kBf16>
struct Fragment {
  Vector<u32, kElements / 2> words;
};

/// `rows`: 16 rows in shared memory, `pitch` elements apart, of which 16 are read; 16-byte aligned.
template <bool kBf16>
Q4_DEVICE Fragment<kBf16> load(const u16* rows, int pitch, int lane) {
  const u16* from = rows + lane % kSide * pitch + (kElements < kSide ? lane / kSide * kElements : 0);
  return {*reinterpret_cast<const Vector<u32, kElements / 2>*>(from)};
}

template <bool kBf16>
Q4_DEVICE void multiply(Sums& sums, const Fragment<kBf16>& a, const Fragment<kBf16>& b) {
  using Halves [[maybe_unused]] = Vector<_Float16, kElements>;
  using Shorts [[maybe_unused]] = Vector<short, kElements>;
  auto d = bit_cast<Vector<float, kSums>>(sums);
#if Q4_MMA == 1
  if constexpr (!kBf16) {
    d = __builtin_amdgcn_mfma_f32_16x16x16f16(bit_cast<Halves>(a.words), bit_cast<Halves>(b.words), d, 0, 0, 0);
  } else {
#if defined(__gfx908__)  // eight k an instruction: any order of k serves, as long as it is the same in A and B
#pragma unroll
    for (int half = 0; half < 2; ++half)
      d = __builtin_amdgcn_mfma_f32_16x16x8bf16(bit_cast<Vector<short, 2>>(static_cast<u32>(a.words[half])),
                                                bit_cast<Vector<short, 2>>(static_cast<u32>(b.words[half])), d, 0, 0,
                                                0);
#else
    d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(bit_cast<Shorts>(a.words), bit_cast<Shorts>(b.words), d, 0, 0, 0);
#endif
  }
#elif Q4_MMA == 2
  if constexpr (kBf16)
    d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(bit_cast<Shorts>(a.words), bit_cast<Shorts>(b.words), d);
  else
    d = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(bit_cast<Halves>(a.words), bit_cast<Halves>(b.words), d);
#else
  if constexpr (kBf16)
    d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(bit_cast<Shorts>(a.words), bit_cast<Shorts>(b.words), d);
  else
    d = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(bit_cast<Halves>(a.words), bit_cast<Halves>(b.words), d);
#endif
  sums = bit_cast<Sums>(d);
}

#else  // plain FMAs
template <bool kBf16>
struct Fragment {
  const u16* rows;
  int pitch, lane;
};

template <bool kBf16>
Q4_DEVICE Fragment<kBf16> load(const u16* rows, int pitch, int lane) {
  return {rows, pitch, lane};
}

/// sum + a0 b0 + a1 b1 of two pairs.
template <bool kBf16>
Q4_DEVICE float dot2(u32 a, u32 b, float sum) {
#if defined(__gfx906__) || defined(__gfx908__) || defined(__gfx1030__)
  if constexpr (!kBf16) return __builtin_amdgcn_fdot2(bit_cast<Half2>(a), bit_cast<Half2>(b), sum, false);
#endif
  const Float2 x = to_float2<kBf16>(a), y = to_float2<kBf16>(b);
  return sum + x.x * y.x + x.y * y.y;
}

template <bool kBf16>
Q4_DEVICE void multiply(Sums& sums, const Fragment<kBf16>& a, const Fragment<kBf16>& b) {
  const Words4* column = reinterpret_cast<const Words4*>(b.rows + a.lane % kSide * b.pitch);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Words4 y = column[half];
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#if !Q4_EMULATED
      if (i % 4 == 0) asm volatile("" ::: "memory");  // else the loads of all tiles are moved up here, and spill
#endif
      const Words4 x = reinterpret_cast<const Words4*>(a.rows + (a.lane / kSide + i * (kWave / kSide)) * a.pitch)[half];
      float v = dot2<kBf16>(x.x, y.x, sums.v[i]);
      v = dot2<kBf16>(x.y, y.y, v);
      v = dot2<kBf16>(x.z, y.z, v);
      sums.v[i] = dot2<kBf16>(x.w, y.w, v);
    }
  }
}
#endif

/// Where sum i of a lane belongs in the tile.
Q4_BOTH constexpr int sum_row(int i, int lane) {
  return Q4_MMA == 1 ? lane / kSide * 4 + i : Q4_MMA == 3 ? lane / kSide * 8 + i : lane / kSide + i * (kWave / kSide);
}
Q4_BOTH constexpr int sum_col(int lane) { return lane % kSide; }

}  // namespace q4::mma_tile

#undef Q4_MMA
