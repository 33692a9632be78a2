// The fp32 and int8 kernels for AVX2; built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "runtime/backends/cpu/kernels_digits.hpp"
#include "runtime/backends/cpu/simd_avx2.hpp"

namespace q4::cpu {
bool avx2_kernels(Kernels& kernels) {
  Fp32Kernels<Avx2>::fill(kernels);
  Int8Kernels<Avx2>::fill(kernels);
  DigitKernels<Avx2>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx2_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
