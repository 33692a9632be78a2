// The portable kernels with SSE4.2's instructions; built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__SSE4_2__)
#include <smmintrin.h>

#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_portable.hpp"

namespace q4::cpu {
namespace {

struct Sse4 : Portable<Sse4> {
  static F max(F a, F b) { return F(_mm_max_ps(__m128(a), __m128(b))); }
  static I load_u8_int(const std::uint8_t* from) {
    std::int32_t four;
    std::memcpy(&four, from, sizeof four);
    return I(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
  }
  static F load_u8(const std::uint8_t* from) { return F(_mm_cvtepi32_ps(__m128i(load_u8_int(from)))); }
  static I dot(I sum, W codes, const std::int8_t* x) {  // pairs are at most 2 * 15 * 127: no 16-bit saturation
    std::int32_t four;
    std::memcpy(&four, x, sizeof four);
    const __m128i pairs = _mm_maddubs_epi16(__m128i(codes), _mm_set1_epi32(four));
    return sum + I(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
};

}  // namespace

bool sse4_kernels(Kernels& kernels) {
  Fp32Kernels<Sse4>::fill(kernels);
  Int8Kernels<Sse4>::fill(kernels);
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool sse4_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
