// The int8 kernels with VPDPBUSD on 256 bits, for processors without AVX-512; built with AVX-VNNI's flags
// (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVXVNNI__) && defined(__AVX2__)
#include "runtime/backends/cpu/kernels_digits.hpp"
#include "runtime/backends/cpu/simd_avx2.hpp"

namespace q4::cpu {
namespace {
struct AvxVnni : Avx2 {
  static I dot(I sum, W codes, const std::int8_t* x) { return _mm256_dpbusd_avx_epi32(sum, codes, broadcast4(x)); }
  struct Dots {};  // products are added in 32 bits at once
  static constexpr int kDotOctets = kBlock / 8, kDigitSums = 12, kDigitPass = 4, kDigitRows = 64;
  static void clear(Dots) {}
  static void add_dot(I& sum, Dots, W codes, const std::int8_t* x) { sum = dot(sum, codes, x); }
  static void widen(I&, Dots) {}
};
}  // namespace

bool avx_vnni_kernels(Kernels& kernels) {
  Int8Kernels<AvxVnni>::fill(kernels);
  DigitKernels<AvxVnni>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx_vnni_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
