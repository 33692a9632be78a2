// Pairs of 16-bit floats, shared memory by its 32-bit address, and words that blocks hand each other: one helper each
// instruction, for the tensor-core kernels from sm_80 on.
#pragma once
#include "async.h"

namespace q4 {

#if Q4_EMULATED
// tests/emulation defines them.
u32 bf16x2_add(u32 a, u32 b);
u32 bf16x2_mul(u32 a, u32 b);
template <bool kBf16>
u32 pack(float low, float high);
u32 byte_perm(u32 a, u32 b, u32 selector);
float fma_float(float a, float b, float c);
u32 load_shared(u32 address);
u32 load_shared_byte(u32 address);
void load_shared4(u32 (&d)[4], u32 address);
void store_shared(u32 address, u32 v);
void store_shared4(u32 address, const Words4& v);
template <int kCount>
void load_shared_floats(float (&v)[kCount], u32 address);
template <int kCount>
void store_shared_floats(u32 address, const float (&v)[kCount]);
u32 atomic_add(u32* counter, u32 v);
Words4 load_l2(const void* p);
Words4 load_pairs(const void* p);
void store_pairs(void* p, const Words4& v);
u32 load_acquire(const u32* p);
void store_release(u32* p, u32 v);
#else

// ---- arithmetic on pairs of 16-bit floats -------------------------------------------------------------------------
Q4_DEVICE u32 bf16x2_add(u32 a, u32 b) {
  u32 d;
#if __CUDA_ARCH__ >= 900
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3f803f80u), "r"(b));
#endif
  return d;
}
Q4_DEVICE u32 bf16x2_mul(u32 a, u32 b) {
  u32 d;
#if __CUDA_ARCH__ >= 900
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));  // - 0 keeps the sign of a zero
#endif
  return d;
}
template <bool kBf16>
Q4_DEVICE u32 pack(float low, float high) {
  u32 d;
  if constexpr (kBf16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

Q4_DEVICE u32 byte_perm(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }
Q4_DEVICE float fma_float(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// ---- shared memory --------------------------------------------------------------------------------------------------
Q4_DEVICE u32 load_shared(u32 address) {
  u32 d;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(d) : "r"(address));
  return d;
}
Q4_DEVICE u32 load_shared_byte(u32 address) {
  u32 d;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(d) : "r"(address));
  return d;
}
Q4_DEVICE void load_shared4(u32 (&d)[4], u32 address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address));
}
Q4_DEVICE void store_shared(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
Q4_DEVICE void store_shared4(u32 address, const Words4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
/// 2 or 4 floats, aligned to their size.
template <int kCount>
Q4_DEVICE void load_shared_floats(float (&v)[kCount], u32 address) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 2)
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v[0]), "=f"(v[1]) : "r"(address));
  else
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(address));
}
template <int kCount>
Q4_DEVICE void store_shared_floats(u32 address, const float (&v)[kCount]) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 2)
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v[0]), "f"(v[1]) : "memory");
  else
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
}

// ---- between blocks, through global memory --------------------------------------------------------------------------
/// 16 bytes that another block wrote: past the first cache.
Q4_DEVICE Words4 load_l2(const void* p) {
  const uint4 v = __ldcg(static_cast<const uint4*>(p));
  return {v.x, v.y, v.z, v.w};
}
/// Two pairs of words, each of which another block stores, or sees, as a whole.
Q4_DEVICE Words4 load_pairs(const void* p) {
  u64 a, b;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(p) : "memory");
  return {static_cast<u32>(a), static_cast<u32>(a >> 32), static_cast<u32>(b), static_cast<u32>(b >> 32)};
}
Q4_DEVICE void store_pairs(void* p, const Words4& v) {
  const u64 a = v.x | static_cast<u64>(v.y) << 32, b = v.z | static_cast<u64>(v.w) << 32;
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(p), "l"(a), "l"(b) : "memory");
}
/// Acquires what was released before the word was stored, and the like.
Q4_DEVICE u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
Q4_DEVICE void store_release(u32* p, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
/// Releases what this thread knows of to the GPU, and acquires what others released there; returns the value before.
Q4_DEVICE u32 atomic_add(u32* p, u32 v) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(v) : "memory");
  return before;
}
#endif

}  // namespace q4
