// Measures the ceilings: loops of one instruction with independent sums, a read of cold memory, a square sgemm.
#include "tools/bench/cpu_ceilings.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "autotune/read_floor.hpp"
#include "runtime/backends/cpu/blas.hpp"
#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/onednn.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace q4::tools {
namespace {

/// `run(count)` executes count * operations arithmetic operations.
struct Loop {
  void (*run)(std::int64_t count);
  double operations;
};

/// Whether the processor has `isa` and the device that is measured, which may be forced to `most`, uses as much.
bool runs(const char* isa, const std::string& most) {
  const auto names = cpu::kernel_names();
  const auto rank = [&](std::string_view name) { return std::find(names.begin(), names.end(), name); };
  if (rank(isa) > rank(most)) return false;
  try {
    cpu::select_kernels(isa);
    return true;
  } catch (const Error&) { return false; }
}

#if defined(__x86_64__)
// In assembly: the compiler neither needs the instructions' flags nor touches the loop. Twelve sums hide the latency.
#define SUMS "0,1,2,3,4,5,6,7,8,9,10,11"
#define LOOP(clear, instruction)                                                                                \
  asm volatile(".irp r," SUMS ",12,13\n\t" clear "\n\t.endr\n1:\n\t.irp r," SUMS "\n\t" instruction             \
               "\n\t.endr\n\tdec %0\n\tjnz 1b"                                                                  \
               : "+r"(count)                                                                                    \
               :                                                                                                \
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                 "xmm11", "xmm12", "xmm13", "xmm14")
constexpr int kSums = 12;

void fma512(std::int64_t count) { LOOP("vpxord %%zmm\\r,%%zmm\\r,%%zmm\\r", "vfmadd231ps %%zmm12,%%zmm13,%%zmm\\r"); }
void fma256(std::int64_t count) { LOOP("vxorps %%ymm\\r,%%ymm\\r,%%ymm\\r", "vfmadd231ps %%ymm12,%%ymm13,%%ymm\\r"); }
void muladd128(std::int64_t count) {
  LOOP("xorps %%xmm\\r,%%xmm\\r", "movaps %%xmm12,%%xmm14\n\tmulps %%xmm13,%%xmm14\n\taddps %%xmm14,%%xmm\\r");
}
void dpbf16(std::int64_t count) { LOOP("vpxord %%zmm\\r,%%zmm\\r,%%zmm\\r", "vdpbf16ps %%zmm12,%%zmm13,%%zmm\\r"); }
void dpbusd512(std::int64_t count) { LOOP("vpxord %%zmm\\r,%%zmm\\r,%%zmm\\r", "vpdpbusd %%zmm12,%%zmm13,%%zmm\\r"); }
void dpbusd256(std::int64_t count) {
  LOOP("vxorps %%ymm\\r,%%ymm\\r,%%ymm\\r", "%{vex%} vpdpbusd %%ymm12,%%ymm13,%%ymm\\r");
}
void maddubs256(std::int64_t count) {
  LOOP("vxorps %%ymm\\r,%%ymm\\r,%%ymm\\r",
       "vpmaddubsw %%ymm12,%%ymm13,%%ymm14\n\tvpmaddwd %%ymm12,%%ymm14,%%ymm14\n\tvpaddd %%ymm14,%%ymm\\r,%%ymm\\r");
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTiles;
#define TILE_LOOP(instruction)                                                                                     \
  asm volatile(                                                                                                    \
      "ldtilecfg %1\n\t.irp r,0,1,2,3,4,5,6,7\n\ttilezero %%tmm\\r\n\t.endr\n1:\n\t.irp r,0,1,2,3\n\t" instruction \
      " %%tmm7,%%tmm6,%%tmm\\r\n\t.endr\n\tdec %0\n\tjnz 1b\n\ttilerelease"                                        \
      : "+r"(count)                                                                                                \
      : "m"(kTiles)                                                                                                \
      : "cc")
void amx_bf16(std::int64_t count) { TILE_LOOP("tdpbf16ps"); }
void amx_loaded(std::int64_t count) {
  alignas(64) static constexpr std::uint8_t kOperands[4][1024] = {};
  const std::int64_t stride = 64;
  asm volatile(
      "ldtilecfg %1\n\t.irp r,0,1,2,3\n\ttilezero %%tmm\\r\n\t.endr\n1:\n\t"
      "tileloadd (%2,%3,1), %%tmm4\n\ttileloadd 1024(%2,%3,1), %%tmm6\n\ttdpbf16ps %%tmm6,%%tmm4,%%tmm0\n\t"
      "tileloadd 2048(%2,%3,1), %%tmm7\n\ttdpbf16ps %%tmm7,%%tmm4,%%tmm1\n\t"
      "tileloadd 3072(%2,%3,1), %%tmm5\n\ttdpbf16ps %%tmm6,%%tmm5,%%tmm2\n\ttdpbf16ps %%tmm7,%%tmm5,%%tmm3\n\t"
      "dec %0\n\tjnz 1b\n\ttilerelease"
      : "+r"(count)
      : "m"(kTiles), "r"(kOperands), "r"(stride), "m"(kOperands)
      : "cc");
}
void amx_int8(std::int64_t count) { TILE_LOOP("tdpbusd"); }
bool has_amx_int8() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 25 & 1);
}
#endif

/// Best of short bursts, in 1e9 operations a second of all threads: others use the machine too.
double rate(cpu::ThreadPool& pool, const Loop& loop) {
  using Clock = std::chrono::steady_clock;
  constexpr int kBursts = 12;
  constexpr double kBurstSeconds = 3e-3;
  const auto seconds = [&](std::int64_t count) {
    const auto start = Clock::now();
    pool.run(pool.threads(), [&](std::int64_t, int) { loop.run(count); });
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  std::int64_t count = 1000;
  for (double s; (s = seconds(count)) < kBurstSeconds;)
    count = std::int64_t(double(count) * std::max(1.5, 0.5 * kBurstSeconds / s));
  double best = 0;
  for (int burst = 0; burst < kBursts; ++burst)
    best = std::max(best, double(count) * loop.operations * pool.threads() / seconds(count));
  return best / 1e9;
}

/// Microseconds from handing out one empty task a thread to the last one's end: the median of many.
double barrier_us(cpu::ThreadPool& pool) {
  std::vector<double> times(200);
  for (double& us : times) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(pool.threads(), [](std::int64_t, int) {});
    us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  }
  std::nth_element(times.begin(), times.begin() + 100, times.end());
  return times[100];
}

double blas_rate() {
  constexpr std::int64_t kSize = 1024;
  const std::vector<float> a(kSize * kSize, 1.0f), b(kSize * kSize, 1.0f);
  std::vector<float> c(kSize * kSize);
  double best = 0;
  for (int i = 0; i < 6; ++i) {
    const auto start = std::chrono::steady_clock::now();
    cpu::blas().multiply(kSize, kSize, kSize, a.data(), kSize, b.data(), kSize, c.data(), kSize);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / seconds.count());
  }
  return best / 1e9;
}

}  // namespace

CpuCeilings measure_cpu_ceilings(const std::shared_ptr<DeviceBackend>& backend) {
  CpuCeilings result;
  constexpr std::size_t kBytes = std::size_t(48) << 20;
  result.read_gbps = double(kBytes) / autotune::read_floor_us(backend, kBytes) / 1e3;
  cpu::ThreadPool pool(backend->info().compute_units);
  result.barrier_us = barrier_us(pool);
#if defined(__x86_64__)
  const auto runs = [most = backend->info().arch](const char* isa) { return tools::runs(isa, most); };
  result.fp32 = rate(pool, runs("avx512") ? Loop{fma512, 32.0 * kSums}
                           : runs("avx2") ? Loop{fma256, 16.0 * kSums}
                                          : Loop{muladd128, 8.0 * kSums});
  if (runs("avx512_bf16")) result.bf16 = rate(pool, {dpbf16, 64.0 * kSums});
  if (runs("avx512_vnni"))
    result.int8 = rate(pool, {dpbusd512, 128.0 * kSums});
  else if (runs("avx_vnni"))
    result.int8 = rate(pool, {dpbusd256, 64.0 * kSums});
  else if (runs("avx2"))
    result.int8 = rate(pool, {maddubs256, 64.0 * kSums});
  if (runs("amx_bf16")) result.amx_bf16 = rate(pool, {amx_bf16, 4 * 2.0 * 16 * 16 * 32});
  if (runs("amx_bf16")) result.amx_loaded = rate(pool, {amx_loaded, 4 * 2.0 * 16 * 16 * 32});
  if (runs("amx_bf16") && has_amx_int8()) result.amx_int8 = rate(pool, {amx_int8, 4 * 2.0 * 16 * 16 * 64});
#endif
  result.blas_name = cpu::blas().name;
  if (cpu::blas().available) result.blas = blas_rate();
  return result;
}

void CpuCeilings::merge(const CpuCeilings& other) {
  for (const auto member :
       {&CpuCeilings::read_gbps, &CpuCeilings::fp32, &CpuCeilings::bf16, &CpuCeilings::int8, &CpuCeilings::amx_bf16,
        &CpuCeilings::amx_loaded, &CpuCeilings::amx_int8, &CpuCeilings::blas})
    this->*member = std::max(this->*member, other.*member);
  blas_name = other.blas_name;
  barrier_us = barrier_us > 0 ? std::min(barrier_us, other.barrier_us) : other.barrier_us;
}

double CpuCeilings::vector_peak(DType activation, Math math) const {
  if (math == Math::kInt8) return int8;
  return activation == DType::kBF16 ? std::max(bf16, fp32) : fp32;
}

double CpuCeilings::peak(DType activation, Math math) const {
  const double tiles = math == Math::kInt8
                           ? amx_int8
                           : amx_bf16 / cpu::bf16_terms(activation == DType::kBF16  ? cpu::Element::kBF16
                                                        : activation == DType::kF16 ? cpu::Element::kF16
                                                                                    : cpu::Element::kF32);
  return std::max(tiles, vector_peak(activation, math));
}

double CpuCeilings::floor_us(double bytes, double flops, DType activation, Math math) const {
  const double best = peak(activation, math);
  return std::max(bytes / read_gbps, best > 0 ? flops / best : 0) / 1e3;
}

std::string CpuCeilings::str() const {
  const auto or_none = [](double value) { return value > 0 ? fmt::format("{:.0f}", value) : std::string("none"); };
  return fmt::format(
      "ceilings of this run, all threads: read {:.1f} GB/s (huge pages); 1e9 operations/s: fp32 FMA {}, VDPBF16PS {}, "
      "int8 "
      "dot {}, AMX bf16 {} ({} with a load a product), AMX int8 {}, sgemm {} ({}); a job of empty tasks {:.1f} us; "
      "oneDNN: {}",
      read_gbps, or_none(fp32), or_none(bf16), or_none(int8), or_none(amx_bf16), or_none(amx_loaded), or_none(amx_int8),
      or_none(blas), blas_name, barrier_us, onednn_name());
}

Json CpuCeilings::json() const {
  return {{"read_gbps", read_gbps}, {"fp32_fma", fp32},         {"bf16_dot", bf16},       {"int8_dot", int8},
          {"amx_bf16", amx_bf16},   {"amx_loaded", amx_loaded}, {"amx_int8", amx_int8},   {"sgemm", blas},
          {"blas", blas_name},      {"barrier_us", barrier_us}, {"onednn", onednn_name()}};
}

}  // namespace q4::tools
