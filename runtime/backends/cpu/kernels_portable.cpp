// The fp32 kernels in portable vectors: what every processor runs when nothing better is there.
#include "runtime/backends/cpu/kernels_fp32.hpp"
#include "runtime/backends/cpu/simd_portable.hpp"

namespace q4::cpu {

bool portable_kernels(Kernels& kernels) {
  Fp32Kernels<Portable>::fill(kernels, "portable");
  return true;
}

}  // namespace q4::cpu
