// The vector operations of the fp32 and int8 kernels with NEON, as every AArch64 processor has it.
#pragma once

#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

/// Isa names the including file's own copy of the code, which its target flags shape.
template <class Isa>
struct Neon {
  using F = float32x4_t;
  using W = uint32x4_t;
  static constexpr int kLanes = 4;
  // 32 registers: 6 x 4 sums, four weights, a broadcast and constants.
  static constexpr int kWideRows = 1, kWideVectors = 8, kRows = 6, kVectors = 4;
  static constexpr int kPanelRows = 6, kPanelVectors = 4;

  static F zero() { return vdupq_n_f32(0); }
  static F set(float value) { return vdupq_n_f32(value); }
  static F load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, F value) { vst1q_f32(to, value); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }  // c - a b

  static W load_words(const std::uint32_t* from) { return vld1q_u32(from); }
  /// q - 8 of row R of the octet: the nibble under the exponent of 2^23 is 2^23 + q.
  template <int R>
  static F code(W words) {
    W nibble = words;
    if constexpr (nibble_shift(R) > 0) nibble = vshrq_n_u32(words, nibble_shift(R) > 0 ? nibble_shift(R) : 1);
    nibble = vorrq_u32(vandq_u32(nibble, vdupq_n_u32(15)), vdupq_n_u32(0x4B000000u));
    return vsubq_f32(vreinterpretq_f32_u32(nibble), vdupq_n_f32(0x1p23f + 8));
  }

  // Of 8-bit activations (simd_portable.hpp says what).
  using I = int32x4_t;
  static I zero_int() { return vdupq_n_s32(0); }
  template <int kHalf>
  static W bytes(W words) {
    if constexpr (kHalf == 1) words = vshrq_n_u32(words, 4);
    return vandq_u32(words, vdupq_n_u32(0x0F0F0F0Fu));
  }
  static int8x16_t broadcast4(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static I dot(I sum, W codes, const std::int8_t* x) {
    const int8x16_t q = vreinterpretq_s8_u32(codes), four = broadcast4(x);
    const int16x8_t low = vmull_s8(vget_low_s8(q), vget_low_s8(four)), high = vmull_high_s8(q, four);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
  }
  static F correct(I sum, I zero, std::int32_t x) { return vcvtq_f32_s32(vmlsq_n_s32(sum, zero, x)); }
  static I load_u8_int(const std::uint8_t* from) {
    std::uint32_t four;
    std::memcpy(&four, from, sizeof four);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }

  static F load_u8(const std::uint8_t* from) { return vcvtq_f32_s32(load_u8_int(from)); }
  static F load_f16(const std::uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
  static F load_bf16(const std::uint16_t* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
  static void store_f16(std::uint16_t* to, F value) { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(value))); }
  static void store_bf16(std::uint16_t* to, F value) {  // to nearest even; NaN stays NaN
    const W bits = vreinterpretq_u32_f32(value), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const W rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const W quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    vst1_u16(to, vshrn_n_u32(vbslq_u32(vceqq_f32(value, value), rounded, quiet), 16));
  }
  static void prefetch(const void* at) { __builtin_prefetch(at); }
};

}  // namespace q4::cpu
