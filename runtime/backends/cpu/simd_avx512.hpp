// The vector operations of the fp32 kernels with AVX-512 (F, BW, DQ, VL).
#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

struct Avx512 {
  using F = __m512;
  using W = __m512i;
  static constexpr int kLanes = 16;
  // Columns (in vectors) and rows of a register tile: 32 registers hold 12 x 2 sums, the weights and a broadcast.
  static constexpr int kWideRows = 4, kWideVectors = 4, kRows = 12, kVectors = 2;
  static constexpr int kPanelRows = 6, kPanelVectors = 4;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b

  static W load_words(const std::uint32_t* from) { return _mm512_loadu_si512(from); }
  /// q - 8 of row I of the octet. vpermps reads the low four bits of each lane only: no mask is needed.
  template <int I>
  static F code(W words) {
    const F table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, nibble_shift(I)), table);
  }
  // Of 8-bit activations (simd_portable.hpp says what).
  using I = __m512i;
  static I zero_int() { return _mm512_setzero_si512(); }
  template <int kHalf>
  static W bytes(W words) {
    return _mm512_and_si512(_mm512_srli_epi32(words, 4 * kHalf), _mm512_set1_epi8(15));
  }
  static I dot(I sum, W codes, const std::int8_t* x) {  // pairs are at most 2 * 15 * 127: no 16-bit saturation
    const __m512i pairs = _mm512_maddubs_epi16(codes, broadcast4(x));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  static F correct(I sum, I zero, std::int32_t x) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x))));
  }
  static I load_u8_int(const std::uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static I broadcast4(const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
  }

  // Of digits (kernels_digits.hpp): kDotOctets * 2 sums of two products fit into 16 bits.
  using Dots = __m512i;
  static constexpr int kDotOctets = 4, kDigitSums = 12, kDigitPass = 2, kDigitRows = 2;
  static void clear(Dots& dots) { dots = _mm512_setzero_si512(); }
  static void add_dot(I&, Dots& dots, W codes, const std::int8_t* x) {
    dots = _mm512_add_epi16(dots, _mm512_maddubs_epi16(codes, broadcast4(x)));
  }
  static void widen(I& sum, Dots dots) { sum = _mm512_add_epi32(sum, _mm512_madd_epi16(dots, _mm512_set1_epi16(1))); }
  static I dot_pair(I pairs, const std::int8_t* x) { return _mm512_madd_epi16(pairs, broadcast4(x)); }
  static I to_int(F value) { return _mm512_cvtps_epi32(value); }  // to nearest even; infinity and NaN to anything
  /// The low three bytes of each lane, in the order of DigitKernels: 48 bytes, and 16 of no meaning after them.
  static void store_digits(std::int8_t* to, I numbers) {
    const __m512i rows = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m512i digits = _mm512_set4_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400);
    const __m512i used = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(rows, numbers), digits);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(used, bytes));
  }
  static F to_float(I value) { return _mm512_cvtepi32_ps(value); }
  static F low_digits(I second, I first) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(second, 8), first));
  }

  static F load_u8(const std::uint8_t* from) { return _mm512_cvtepi32_ps(load_u8_int(from)); }
  static F load_f16(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static F load_bf16(const std::uint16_t* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_f16(std::uint16_t* to, F value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_bf16(std::uint16_t* to, F value) {  // to nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
  /// Not _mm_prefetch: GCC 12 takes a function of nothing else for one without effect and drops its calls.
  static void prefetch(const void* at) { asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(at))); }
};

}  // namespace q4::cpu
