// The fp32 and int8 kernels for NEON, which is part of AArch64.
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__aarch64__)
#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_neon.hpp"

namespace q4::cpu {

namespace {
struct Plain;
}

bool neon_kernels(Kernels& kernels) {
  Fp32Kernels<Neon<Plain>>::fill(kernels);
  Int8Kernels<Neon<Plain>>::fill(kernels);
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool neon_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
