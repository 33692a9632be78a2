// The kernels in portable vectors: what every processor runs when nothing better is there.
#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_portable.hpp"

namespace q4::cpu {

namespace {
struct Plain;
}

bool portable_kernels(Kernels& kernels) {
  Fp32Kernels<Portable<Plain>>::fill(kernels);
  Int8Kernels<Portable<Plain>>::fill(kernels);
  return true;
}

}  // namespace q4::cpu
