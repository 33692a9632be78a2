// Which kernels this processor can run.
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/check.hpp"

namespace q4::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);  // clang 14 does not know its name
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return __builtin_cpu_supports("avx512bf16"); }
/// The kernel hands out AMX on request, once for the whole process (Documentation/x86/xstate.rst).
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx() { return false; }
#endif

}  // namespace

Kernels select_kernels(const char* forced) {
  struct Level {
    const char* name;
    bool (*here)();
    bool (*add)(Kernels&);
  };
  static constexpr Level kLevels[] = {{"avx2", has_avx2, avx2_kernels},
                                      {"avx512", has_avx512, avx512_kernels},
                                      {"avx512_bf16", has_avx512_bf16, avx512_bf16_kernels},
                                      {"amx_bf16", has_amx, amx_kernels}};
  Kernels kernels{};
  portable_kernels(kernels);
  const bool any = forced == nullptr || *forced == 0;
  for (const Level& level : kLevels) {
    if (!any && std::strcmp(forced, kernels.isa) == 0) return kernels;
    if (!level.here() || !level.add(kernels)) break;
  }
  if (!any && std::strcmp(forced, kernels.isa) != 0)
    fail(ErrorCode::kUnsupported,
         "cpu: Q4_CPU_ISA={} cannot be run here; the best is {}: use that, or one of portable, avx2, avx512, "
         "avx512_bf16, "
         "amx_bf16 before it",
         forced, kernels.isa);
  return kernels;
}

}  // namespace q4::cpu
