// The tensor-core instructions of the decode kernel, one helper each: mma.sync and the ldmatrix that feeds it (sm_80
// on).
#pragma once
#include "async.h"

namespace q4 {

#if Q4_EMULATED
// tests/emulation defines them.
void load_matrix4(u32 (&d)[4], u32 address);
u32 odd_bytes(u32 w);
template <bool kBf16>
void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <bool kBf16>
void mma_16816_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
#else
/// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8; lane 4 g + t receives
/// elements 2 t and 2 t + 1 of row g of each.
Q4_DEVICE void load_matrix4(u32 (&d)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

/// (w >> 8) & 0x00ff00ff, in one instruction where a shift and a mask are two.
Q4_DEVICE u32 odd_bytes(u32 w) {
  u32 d;
  asm("prmt.b32 %0, %1, 0, 0x4341;" : "=r"(d) : "r"(w));
  return d;
}

/// d += a b in fp32. A is 16 x 16: a[0] rows g, k 2t and 2t + 1; a[1] row g + 8; a[2], a[3] the same at k + 8. B is 16
/// x 8: b0 column g, k 2t and 2t + 1; b1 at k + 8. d[0], d[1]: row g, columns 2t and 2t + 1; d[2], d[3]: row g + 8.
template <bool kBf16>
Q4_DEVICE void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// d = a b, without four registers of zeros.
template <bool kBf16>
Q4_DEVICE void mma_16816_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if constexpr (kBf16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}
#endif

}  // namespace q4
