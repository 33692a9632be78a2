// The vector operations of the fp32 kernels with AVX2, FMA and F16C.
#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

struct Avx2 {
  using F = __m256;
  using W = __m256i;
  static constexpr int kLanes = 8;
  // 16 registers: 6 x 2 sums, two weights and a broadcast.
  static constexpr int kWideRows = 1, kWideVectors = 4, kRows = 5, kVectors = 2;
  static constexpr int kPanelRows = 6, kPanelVectors = 2;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b

  static W load_words(const std::uint32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  /// q - 8 of row I of the octet.
  template <int I>
  static F code(W words) {
    const W nibble = _mm256_and_si256(_mm256_srli_epi32(words, nibble_shift(I)), _mm256_set1_epi32(15));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(nibble), _mm256_set1_ps(8));
  }
  // Of 8-bit activations (simd_portable.hpp says what).
  using I = __m256i;
  static I zero_int() { return _mm256_setzero_si256(); }
  template <int kHalf>
  static W bytes(W words) {
    return _mm256_and_si256(_mm256_srli_epi32(words, 4 * kHalf), _mm256_set1_epi8(15));
  }
  static I dot(I sum, W codes, const std::int8_t* x) {  // pairs are at most 2 * 15 * 127: no 16-bit saturation
    const __m256i pairs = _mm256_maddubs_epi16(codes, broadcast4(x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static F correct(I sum, I zero, std::int32_t x) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(zero, _mm256_set1_epi32(x))));
  }
  static I load_u8_int(const std::uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static I broadcast4(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
  }

  // Of digits (kernels_digits.hpp): kDotOctets * 2 sums of two products fit into 16 bits.
  using Dots = __m256i;
  static constexpr int kDotOctets = 4, kDigitSums = 6, kDigitPass = 2, kDigitRows = 3;
  static void clear(Dots& dots) { dots = _mm256_setzero_si256(); }
  static void add_dot(I&, Dots& dots, W codes, const std::int8_t* x) {
    dots = _mm256_add_epi16(dots, _mm256_maddubs_epi16(codes, broadcast4(x)));
  }
  static void widen(I& sum, Dots dots) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(dots, _mm256_set1_epi16(1))); }
  static I dot_pair(I pairs, const std::int8_t* x) { return _mm256_madd_epi16(pairs, broadcast4(x)); }
  static I to_int(F value) { return _mm256_cvtps_epi32(value); }  // to nearest even; infinity and NaN to anything
  /// The low three bytes of each lane, in the order of DigitKernels: 24 bytes, and 8 of no meaning after them.
  static void store_digits(std::int8_t* to, I numbers) {
    const __m256i rows = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i digits = _mm256_broadcastsi128_si256(_mm_setr_epi32(0x0C080400, 0x0D090501, 0x0E0A0602, 0x0F0B0703));
    const __m256i used = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(numbers, rows), digits);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, used));
  }
  static F to_float(I value) { return _mm256_cvtepi32_ps(value); }
  static F low_digits(I second, I first) {
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(second, 8), first));
  }

  static F load_u8(const std::uint8_t* from) { return _mm256_cvtepi32_ps(load_u8_int(from)); }
  static F load_f16(const std::uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static F load_bf16(const std::uint16_t* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store_f16(std::uint16_t* to, F value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_bf16(std::uint16_t* to, F value) {  // to nearest even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(words));
  }
  /// Not _mm_prefetch: GCC 12 takes a function of nothing else for one without effect and drops its calls.
  static void prefetch(const void* at) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(at))); }
};

}  // namespace q4::cpu
