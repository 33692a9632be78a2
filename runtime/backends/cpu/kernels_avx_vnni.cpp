// The int8 kernels with VPDPBUSD on 256 bits, for processors without AVX-512; built with AVX-VNNI's flags
// (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVXVNNI__) && defined(__AVX2__)
#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_avx2.hpp"

namespace q4::cpu {
namespace {
struct AvxVnni : Avx2 {
  static I dot(I sum, W codes, const std::int8_t* x) { return _mm256_dpbusd_avx_epi32(sum, codes, broadcast4(x)); }
};
}  // namespace

bool avx_vnni_kernels(Kernels& kernels) {
  Int8Kernels<AvxVnni>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx_vnni_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
