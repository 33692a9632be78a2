// Which kernels this processor can run.
#include <array>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/base/check.hpp"

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
bool has_sse4() { return __builtin_cpu_supports("sse4.2"); }
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);  // GCC 12 does not know its name
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool is_amd() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) && b == 0x68747541;  // "Auth"enticAMD
}
/// The kernel hands out AMX on request, once for the whole process (Documentation/x86/xstate.rst).
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d >> 22 & 1) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;  // AMX-BF16, AMX-TILE, AMX-INT8
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__aarch64__) && defined(__linux__)
constexpr unsigned long kHasDot = 1ul << 20, kHasSve = 1ul << 22;  // HWCAP_ASIMDDP, HWCAP_SVE of asm/hwcap.h
bool has_neon() { return true; }
bool has_neon_dot() { return getauxval(AT_HWCAP) & kHasDot; }
/// The vector length of this process (PR_SVE_GET_VL: bytes in the low 16 bits).
bool has_sve256() {
  constexpr int kGetLength = 51;
  return (getauxval(AT_HWCAP) & kHasSve) && (prctl(kGetLength) & 0xFFFF) == 32;
}
#endif

struct Level {
  const char* name;
  bool (*here)();
  bool (*add)(Kernels&);
};
bool always() { return true; }

constexpr Level kLevels[] = {
    {"portable", always, portable_kernels},
#if defined(__x86_64__)
    {"sse4", has_sse4, sse4_kernels},
    {"avx2", has_avx2, avx2_kernels},
    {"avx_vnni", has_avx_vnni, avx_vnni_kernels},
    {"avx512", has_avx512, avx512_kernels},
    {"avx512_vnni", has_avx512_vnni, avx512_vnni_kernels},
    {"avx512_bf16", has_avx512_bf16, avx512_bf16_kernels},
    {"amx_bf16", has_amx, amx_kernels},
#elif defined(__aarch64__) && defined(__linux__)
    {"neon", has_neon, neon_kernels},
    {"neon_dot", has_neon_dot, neon_dot_kernels},
    {"sve256", has_sve256, sve256_kernels},
#endif
};

}  // namespace

std::span<const char* const> kernel_names() {
  static const auto kNames = [] {
    std::array<const char*, std::size(kLevels)> names{};
    for (std::size_t i = 0; i < names.size(); ++i) names[i] = kLevels[i].name;
    return names;
  }();
  return kNames;
}

Kernels select_kernels(const char* forced) {
  const bool any = forced == nullptr || *forced == 0;
  Kernels kernels{};
#if defined(__x86_64__)
  kernels.fast_bf16 = is_amd();
#endif
  std::string here;
  for (const Level& level : kLevels) {
    if (!level.here() || !level.add(kernels)) continue;
    kernels.isa = level.name;
    if (!any && std::strcmp(forced, level.name) == 0) return kernels;
    here += (here.empty() ? "" : ", ") + std::string(level.name);
  }
  if (!any)
    fail(
        ErrorCode::kUnsupported,
        "cpu: instruction set \"{}\" (cpu_isa or Q4_CPU_ISA) cannot be run by this processor and build; use one of: {}",
        forced, here);
  return kernels;
}

}  // namespace q4::cpu
