// The fp32 kernels for AVX-512; built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "runtime/backends/cpu/kernels_fp32.hpp"
#include "runtime/backends/cpu/simd_avx512.hpp"

namespace q4::cpu {
bool avx512_kernels(Kernels& kernels) {
  Fp32Kernels<Avx512>::fill(kernels, "avx512");
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx512_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
