// The fp32 and int8 kernels for SVE with vectors of 256 bits; built with its flags (flags.cmake). With 128 bits SVE has
// nothing for these kernels that NEON lacks.
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__ARM_FEATURE_SVE) && __ARM_FEATURE_SVE_BITS == 256
#include <arm_sve.h>

#include "runtime/backends/cpu/kernels_int8.hpp"

namespace q4::cpu {
namespace {

/// Values of a fixed size, so that arrays of them exist; the length is checked before this table is chosen (isa.cpp).
struct Sve256 {
  typedef svfloat32_t F __attribute__((arm_sve_vector_bits(256)));
  typedef svuint32_t W __attribute__((arm_sve_vector_bits(256)));
  typedef svint32_t I __attribute__((arm_sve_vector_bits(256)));
  static constexpr int kLanes = 8;
  static constexpr int kWideRows = 1, kWideVectors = 4, kRows = 10, kVectors = 2;
  static constexpr int kPanelRows = 10, kPanelVectors = 2;
  static svbool_t all() { return svptrue_b32(); }

  static F zero() { return svdup_n_f32(0); }
  static F set(float value) { return svdup_n_f32(value); }
  static F load(const float* from) { return svld1_f32(all(), from); }
  static void store(float* to, F value) { svst1_f32(all(), to, value); }
  static F add(F a, F b) { return svadd_f32_x(all(), a, b); }
  static F sub(F a, F b) { return svsub_f32_x(all(), a, b); }
  static F mul(F a, F b) { return svmul_f32_x(all(), a, b); }
  static F max(F a, F b) { return svmax_f32_x(all(), a, b); }
  static F fma(F a, F b, F c) { return svmla_f32_x(all(), c, a, b); }
  static F fnma(F a, F b, F c) { return svmls_f32_x(all(), c, a, b); }  // c - a b

  static W load_words(const std::uint32_t* from) { return svld1_u32(all(), from); }
  /// q - 8 of row R of the octet: the nibble under the exponent of 2^23 is 2^23 + q.
  template <int R>
  static F code(W words) {
    W nibble = words;
    if constexpr (nibble_shift(R) > 0) nibble = svlsr_n_u32_x(all(), words, nibble_shift(R));
    nibble = svorr_n_u32_x(all(), svand_n_u32_x(all(), nibble, 15), 0x4B000000u);
    return svsub_n_f32_x(all(), svreinterpret_f32_u32(nibble), 0x1p23f + 8);
  }

  static I zero_int() { return svdup_n_s32(0); }
  template <int kHalf>
  static W bytes(W words) {
    if constexpr (kHalf == 1) words = svlsr_n_u32_x(all(), words, 4);
    return svand_n_u32_x(all(), words, 0x0F0F0F0Fu);
  }
  static I dot(I sum, W codes, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return svdot_s32(sum, svreinterpret_s8_u32(codes), svreinterpret_s8_s32(svdup_n_s32(four)));
  }
  static F correct(I sum, I zero, std::int32_t x) { return svcvt_f32_s32_x(all(), svmls_n_s32_x(all(), sum, zero, x)); }
  static I load_u8_int(const std::uint8_t* from) { return svld1ub_s32(all(), from); }
  static F load_u8(const std::uint8_t* from) { return svcvt_f32_s32_x(all(), load_u8_int(from)); }
  static F load_f16(const std::uint16_t* from) {
    return svcvt_f32_f16_x(all(), svreinterpret_f16_u32(svld1uh_u32(all(), from)));
  }
  static F load_bf16(const std::uint16_t* from) {
    return svreinterpret_f32_u32(svlsl_n_u32_x(all(), svld1uh_u32(all(), from), 16));
  }
  static void store_f16(std::uint16_t* to, F value) {
    svst1h_u32(all(), to, svreinterpret_u32_f16(svcvt_f16_f32_x(all(), value)));
  }
  static void store_bf16(std::uint16_t* to, F value) {  // to nearest even; NaN stays NaN
    const W bits = svreinterpret_u32_f32(value);
    const W odd = svand_n_u32_x(all(), svlsr_n_u32_x(all(), bits, 16), 1);
    const W rounded = svadd_u32_x(all(), bits, svadd_n_u32_x(all(), odd, 0x7FFF));
    const W quiet = svorr_n_u32_x(all(), bits, 0x00400000);
    const W chosen = svsel_u32(svcmpeq_f32(all(), value, value), rounded, quiet);
    svst1h_u32(all(), to, svlsr_n_u32_x(all(), chosen, 16));
  }
  static void prefetch(const void* at) { __builtin_prefetch(at); }
};

}  // namespace

bool sve256_kernels(Kernels& kernels) {
  Fp32Kernels<Sve256>::fill(kernels);
  Int8Kernels<Sve256>::fill(kernels);
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool sve256_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
