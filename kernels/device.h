// The one file that asks which compiler this is: NVRTC, hipRTC / clang -x hip, or a C++ compiler (host emulation).
// Everything above it is written in these words. No standard header is needed by the run-time compilers.
#pragma once

#if defined(__CUDACC_RTC__) || (defined(__CUDACC__) && !defined(__HIP__))
#define Q4_CUDA 1
#elif defined(__HIPCC_RTC__) || defined(__HIP__)
#define Q4_HIP 1
#else
#define Q4_EMULATED 1
#endif

#if Q4_EMULATED
// A C++ compiler sees declarations only: host code that reads configs and layouts needs no more, and tests/emulation/
// defines them for tests that run kernels. Headers of instructions (mma.h, ...) do the same under Q4_EMULATED.
#define Q4_DEVICE inline
#define Q4_BOTH
#elif Q4_CUDA
#define Q4_DEVICE __device__ __forceinline__
#define Q4_BOTH __host__ __device__
/// Heads the one entry point of a generated source: block size, and how many blocks a multiprocessor should hold.
#define Q4_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#if __CUDA_ARCH__ >= 700
#define Q4_PARAMETER(type) const __grid_constant__ type
#else
#define Q4_PARAMETER(type) const type
#endif
#else
// Attributes and builtins of the compiler instead of HIP's headers and device libraries: clang alone compiles this too.
#define Q4_DEVICE __attribute__((device, always_inline)) inline
#define Q4_BOTH __attribute__((host, device))
#define Q4_KERNEL(threads, blocks) \
  extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads))) void
#define Q4_PARAMETER(type) const type
#endif

namespace q4 {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

struct alignas(16) Words4 {
  u32 x, y, z, w;
};
struct alignas(8) Words2 {
  u32 x, y;
};
struct alignas(16) Floats4 {
  float x, y, z, w;
};
struct Float2 {
  float x, y;
};

Q4_BOTH constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
Q4_BOTH constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }
Q4_BOTH constexpr int smaller(int a, int b) { return a < b ? a : b; }
Q4_BOTH constexpr int larger(int a, int b) { return a > b ? a : b; }

template <class To, class From>
Q4_DEVICE To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  return __builtin_bit_cast(To, v);
}

#if Q4_EMULATED
int thread_index();
int block_index();
int block_count();
void sync_block();
void sync_warp();
u8* shared_memory();
u32 shuffle_bits(u32 v, int lane);
u32 shuffle_xor_bits(u32 v, int mask);
template <class T>
T shuffle(T v, int lane) {
  return bit_cast<T>(shuffle_bits(bit_cast<u32>(v), lane));
}
template <class T>
T shuffle_xor(T v, int mask) {
  return bit_cast<T>(shuffle_xor_bits(bit_cast<u32>(v), mask));
}
float half_to_float(u16 h);
u16 float_to_half(float f);
u32 half2_add(u32 a, u32 b);
u32 half2_mul(u32 a, u32 b);
u32 half2_fma(u32 a, u32 b, u32 c);
template <u32 kMask, u32 kBits>
u32 and_or(u32 w) {
  return (w & kMask) | kBits;
}
Words4 load_stream(const void* p);
inline void prefetch_l2(const void*) {}
void wait_previous_kernel();
void allow_next_kernel();
inline float exp2_fast(float v) { return __builtin_exp2f(v); }
inline float divide_fast(float a, float b) { return a / b; }
inline float rsqrt_fast(float v) { return 1.f / __builtin_sqrtf(v); }
#else
// ---- where am I --------------------------------------------------------------------------------------------------
#if Q4_CUDA
Q4_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
Q4_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
Q4_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
Q4_DEVICE void sync_block() { __syncthreads(); }
#else
Q4_DEVICE int thread_index() { return static_cast<int>(__builtin_amdgcn_workitem_id_x()); }
Q4_DEVICE int block_index() { return static_cast<int>(__builtin_amdgcn_workgroup_id_x()); }
Q4_DEVICE int block_count() {
  return static_cast<int>(__builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x());
}
Q4_DEVICE void sync_block() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
#endif

#if Q4_HIP
extern __attribute__((shared, aligned(128))) u8 q4_shared[];
#endif
/// Dynamic shared memory of the block; its size is the launch's.
Q4_DEVICE u8* shared_memory() {
#if Q4_CUDA
  extern __shared__ __align__(128) u8 q4_shared[];
#endif
  return q4_shared;
}

// ---- lanes: groups of 32, also on 64-wide waves ---------------------------------------------------------------------
#if Q4_CUDA
Q4_DEVICE void sync_warp() { __syncwarp(); }
template <class T>
Q4_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask, 32);
}
template <class T>
Q4_DEVICE T shuffle(T v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane, 32);
}
#else
Q4_DEVICE void sync_warp() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}
Q4_DEVICE u32 wave_lane() { return __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0u)); }
Q4_DEVICE u32 from_lane(u32 v, u32 lane) {
  return static_cast<u32>(__builtin_amdgcn_ds_bpermute(static_cast<int>(4 * lane), static_cast<int>(v)));
}
template <class T>
Q4_DEVICE T shuffle_xor(T v, int mask) {
  return bit_cast<T>(from_lane(bit_cast<u32>(v), wave_lane() ^ static_cast<u32>(mask)));
}
template <class T>
Q4_DEVICE T shuffle(T v, int lane) {
  return bit_cast<T>(from_lane(bit_cast<u32>(v), (wave_lane() & ~31u) | static_cast<u32>(lane)));
}
#endif

// ---- which lanes are alike ------------------------------------------------------------------------------------------
#if Q4_CUDA
/// The lanes of a group of 32 that have the same value, of which only the low `bits` bits differ. (match.any takes a turn
/// for each value that there is: 2000 clocks for 32 warps.)
Q4_DEVICE u32 equal_lanes(u32 v, int bits) {
  u32 mask = 0xffffffffu;
  for (int i = 0; i < bits; ++i) {
    const u32 set = __ballot_sync(0xffffffffu, v >> i & 1u);
    mask &= v >> i & 1u ? set : ~set;
  }
  return mask;
}
Q4_DEVICE int bit_count(u32 v) { return __popc(v); }
constexpr int kLanesUnroll = 32;  ///< turns of a loop over the lanes that are worth unrolling
#endif

// ---- halves as bits -------------------------------------------------------------------------------------------------
#if Q4_CUDA
Q4_DEVICE float half_to_float(u16 h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
Q4_DEVICE u16 float_to_half(float f) {
  u16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
Q4_DEVICE u32 half2_add(u32 a, u32 b) {
  u32 d;
  asm("add.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
Q4_DEVICE u32 half2_mul(u32 a, u32 b) {
  u32 d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
Q4_DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
/// (w & mask) | bits in one instruction.
template <u32 kMask, u32 kBits>
Q4_DEVICE u32 and_or(u32 w) {
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(w), "n"(kMask), "r"(kBits));
  return d;
}
#else
using Half2 = _Float16 __attribute__((ext_vector_type(2)));
Q4_DEVICE float half_to_float(u16 h) { return static_cast<float>(bit_cast<_Float16>(h)); }
Q4_DEVICE u16 float_to_half(float f) { return bit_cast<u16>(static_cast<_Float16>(f)); }
Q4_DEVICE u32 half2_add(u32 a, u32 b) { return bit_cast<u32>(bit_cast<Half2>(a) + bit_cast<Half2>(b)); }
Q4_DEVICE u32 half2_mul(u32 a, u32 b) { return bit_cast<u32>(bit_cast<Half2>(a) * bit_cast<Half2>(b)); }
Q4_DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
#pragma clang fp contract(fast)
  return bit_cast<u32>(bit_cast<Half2>(a) * bit_cast<Half2>(b) + bit_cast<Half2>(c));  // v_pk_fma_f16
}
template <u32 kMask, u32 kBits>
Q4_DEVICE u32 and_or(u32 w) {
  return (w & kMask) | kBits;
}
#endif

// ---- functions of one float, a few units of the last place from exact ------------------------------------------------
Q4_DEVICE float exp2_fast(float v) {
#if Q4_CUDA
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(v));
  return d;
#else
  return __builtin_exp2f(v);
#endif
}
/// 1 / sqrt(v)
Q4_DEVICE float rsqrt_fast(float v) {
#if Q4_CUDA
  return rsqrtf(v);
#else
  return __builtin_amdgcn_rsqf(v);
#endif
}
/// a / b; a / infinity is 0 for a finite a.
Q4_DEVICE float divide_fast(float a, float b) {
#if Q4_CUDA
  return __fdividef(a, b);
#else
  return a * __builtin_amdgcn_rcpf(b);
#endif
}

// ---- global memory --------------------------------------------------------------------------------------------------
/// 16 bytes that are read once: past the first cache.
Q4_DEVICE Words4 load_stream(const void* p) {
#if Q4_CUDA
  Words4 v;
#if __CUDA_ARCH__ >= 700
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
#else
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
#endif
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#else
  return *static_cast<const Words4*>(p);
#endif
}

/// Asks for the line at `p`, to be read soon.
Q4_DEVICE void prefetch_l2([[maybe_unused]] const void* p) {
#if Q4_CUDA
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- programmatic dependent launch: nothing in an ordinary launch, before sm_90, and on AMD -------------------------
/// Until the kernel before it in the stream has ended, and what it wrote can be read.
Q4_DEVICE void wait_previous_kernel() {
#if Q4_CUDA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Once all blocks have said so, the next kernel may start: it must wait for this one before it reads or writes.
Q4_DEVICE void allow_next_kernel() {
#if Q4_CUDA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif  // Q4_EMULATED

#if !Q4_CUDA
constexpr int kLanesUnroll = 1;  // more, and their masks are more than the scalar registers hold
Q4_DEVICE u32 equal_lanes(u32 v, int) {
  u32 mask = 0;
#pragma unroll kLanesUnroll
  for (int lane = 0; lane < 32; ++lane) mask |= static_cast<u32>(shuffle(v, lane) == v) << lane;
  return mask;
}
Q4_DEVICE int bit_count(u32 v) { return __builtin_popcount(v); }
#endif

// ---- what follows is the same everywhere ----------------------------------------------------------------------------
Q4_DEVICE float bits_to_float(u32 v) { return bit_cast<float>(v); }
Q4_DEVICE u32 float_to_bits(float v) { return bit_cast<u32>(v); }
Q4_DEVICE float bf16_to_float(u16 v) { return bits_to_float(static_cast<u32>(v) << 16); }
/// Round to nearest even; a NaN stays a NaN.
Q4_DEVICE u16 float_to_bf16(float f) {
  const u32 v = float_to_bits(f);
  if ((v & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<u16>((v + 0x7fffu + ((v >> 16) & 1u)) >> 16);
}

/// 16-bit activations: fp16 or bf16, chosen at compile time.
template <bool kBf16>
Q4_DEVICE float to_float(u16 v) {
  if constexpr (kBf16)
    return bf16_to_float(v);
  else
    return half_to_float(v);
}
template <bool kBf16>
Q4_DEVICE u16 from_float(float v) {
  if constexpr (kBf16)
    return float_to_bf16(v);
  else
    return float_to_half(v);
}
template <bool kBf16>
Q4_DEVICE Float2 to_float2(u32 pair) {
  return {to_float<kBf16>(static_cast<u16>(pair)), to_float<kBf16>(static_cast<u16>(pair >> 16))};
}
template <bool kBf16>
Q4_DEVICE u32 from_float2(float low, float high) {
  return from_float<kBf16>(low) | static_cast<u32>(from_float<kBf16>(high)) << 16;
}

}  // namespace q4
