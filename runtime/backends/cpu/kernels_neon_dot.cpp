// The int8 kernels with SDOT (Armv8.2's dot products); built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__ARM_FEATURE_DOTPROD)
#include "runtime/backends/cpu/kernels_int8.hpp"
#include "runtime/backends/cpu/simd_neon.hpp"

namespace q4::cpu {
namespace {
struct NeonDot : Neon<NeonDot> {
  static I dot(I sum, W codes, const std::int8_t* x) {
    return vdotq_s32(sum, vreinterpretq_s8_u32(codes), broadcast4(x));
  }
};
}  // namespace

bool neon_dot_kernels(Kernels& kernels) {
  Int8Kernels<NeonDot>::fill(kernels);
  return true;
}
}  // namespace q4::cpu
#else
namespace q4::cpu {
bool neon_dot_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
