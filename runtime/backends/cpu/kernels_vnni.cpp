// The int8 kernels with VPDPBUSD on 512 bits; built with AVX-512 VNNI's flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "runtime/backends/cpu/kernels_digits.hpp"
#include "runtime/backends/cpu/simd_avx512.hpp"

namespace q4::cpu {
namespace {
struct Avx512Vnni : Avx512 {
  static I dot(I sum, W codes, const std::int8_t* x) { return _mm512_dpbusd_epi32(sum, codes, broadcast4(x)); }
  struct Dots {};  // products are added in 32 bits at once
  static constexpr int kDotOctets = kBlock / 8, kDigitSums = 24, kDigitPass = 4, kDigitRows = 64;
  static void clear(Dots) {}
  static void add_dot(I& sum, Dots, W codes, const std::int8_t* x) { sum = dot(sum, codes, x); }
  static void widen(I&, Dots) {}
};
}  // namespace

bool avx512_vnni_kernels(Kernels& kernels) {
  Int8Kernels<Avx512Vnni>::fill(kernels);
  DigitKernels<Avx512Vnni>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx512_vnni_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
