// The fp32 and int8 kernels for AVX-512; built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "runtime/backends/cpu/kernels_digits.hpp"
#include "runtime/backends/cpu/simd_avx512.hpp"

namespace q4::cpu {
bool avx512_kernels(Kernels& kernels) {
  Fp32Kernels<Avx512>::fill(kernels);
  Int8Kernels<Avx512>::fill(kernels);
  DigitKernels<Avx512>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx512_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
