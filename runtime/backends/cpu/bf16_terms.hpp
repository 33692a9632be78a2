// Activations as exact sums of bf16 terms, and codes as pairs of bf16: shared by the dot-product and the AMX kernels.
#pragma once

#include <cstdint>

#include "runtime/backends/cpu/kernels_fp32.hpp"
#include "runtime/backends/cpu/simd_avx512.hpp"

namespace q4::cpu {

/// S names the including file's own copy of the code, which its target flags shape.
template <class S>
struct Bf16Terms {
  /// Splits 128 fp32 values into `terms` runs of 128 bf16, to + term * distance. Each term takes the leading eight bits
  /// of what is left, so the split is exact: 8 bits hold a bf16, 16 an fp16 (11), 24 an fp32.
  static void split(const float* values, int terms, std::uint16_t* to, std::int64_t distance, int count) {
    for (int i = 0; i < count; i += 16) {
      __m512 rest = _mm512_loadu_ps(values + i);
      // Infinity and NaN (class bits 0, 3, 4, 7) go whole into the first term: infinity minus itself would be NaN.
      const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(rest, 0x99));
      for (int term = 0; term < terms; ++term) {
        const __m512i bits = _mm512_and_si512(_mm512_castps_si512(rest), _mm512_set1_epi32(int(0xFFFF0000u)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + term * distance + i),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
        rest = _mm512_maskz_sub_ps(finite, rest, _mm512_castsi512_ps(bits));
      }
    }
  }

  /// Rows 2 I and 2 I + 1 of the octet as bf16 pairs of q - 8. vpermw reads five bits of each half, of which the top
  /// one belongs to the next row: the table holds its 16 values twice.
  template <int I>
  static __m512i pairs(__m512i words) {
    alignas(64) static constexpr std::uint16_t kTable[32] = {
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000,
        0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040,
        0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * I), _mm512_load_si512(kTable));
  }
};

}  // namespace q4::cpu
