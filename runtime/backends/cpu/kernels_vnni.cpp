// The int8 kernels with VPDPBUSD on 512 bits; built with AVX-512 VNNI's flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_avx512.hpp"

namespace q4::cpu {
namespace {
struct Avx512Vnni : Avx512 {
  static I dot(I sum, W codes, const std::int8_t* x) { return _mm512_dpbusd_epi32(sum, codes, broadcast4(x)); }
};
}  // namespace

bool avx512_vnni_kernels(Kernels& kernels) {
  Int8Kernels<Avx512Vnni>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx512_vnni_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
