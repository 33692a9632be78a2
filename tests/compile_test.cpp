// Every kernel of the kernel table through the real NVRTC, no GPU needed: it compiles, warns of nothing, keeps
// everything in registers (configs that are only searched may spill: they lose by their times), and a block fits its
// SM. $Q4_COMPILE_ALL=1 compiles the whole search spaces instead of a sample.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <q4/error.hpp>
#include <regex>
#include <set>

#include "kernels/remap.h"
#include "report.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/moe.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/jit/cubin_info.hpp"

namespace q4::test {
namespace {

const std::vector<std::string> kOptions = {"-std=c++20", "--ptxas-options=-v"};

/// Null, and the test shown as skipped, where there is no NVRTC or it does not know `arch`.
const cuda::Nvrtc* compiler(const std::string& arch) {
  static const cuda::Nvrtc nvrtc;
  if (!nvrtc.available()) skip("no NVRTC: " + nvrtc.problem());
  if ((arch == "sm_100" || arch == "sm_120") && nvrtc.available() && nvrtc.version() < "12.8") {
    skip("NVRTC " + nvrtc.version() + " does not know " + arch);
    return nullptr;
  }
  if (!nvrtc.available()) return nullptr;
  if (const auto known = nvrtc.knows(arch); !known) {
    skip(known.reason());
    return nullptr;
  }
  return &nvrtc;
}

struct Compiled {
  jit::CubinInfo info;
  std::string log;
};
Compiled compile(const cuda::Nvrtc& nvrtc, const jit::Source& source, const std::string& arch) {
  Compiled result;
  const auto cubin = nvrtc.compile(source, arch, kOptions, &result.log);
  result.info = jit::cubin_info(cubin, jit::entry(source.name));
  return result;
}

/// A default that spills this little was measured on an H200 to lose nothing (kernels/README.md).
constexpr int kHarmlessStack = 32;

void check(const cuda::Nvrtc& nvrtc, const jit::Source& source, const std::string& arch, int threads,
           bool is_default = true) {
  CAPTURE(source.name);
  CAPTURE(arch);
  Compiled compiled = compile(nvrtc, source, arch);
  compiled.log = std::regex_replace(compiled.log, std::regex("nvrtc: warning: Architectures prior [^\n]*"), "");
  CAPTURE(compiled.log);
  CHECK(compiled.log.find("warning") == std::string::npos);
  if (is_default) CHECK(compiled.info.stack_bytes <= kHarmlessStack);
  CHECK(compiled.log.find("serialized") == std::string::npos);  // C7510 and others: ptxas waits for each wgmma
  const int granted = (compiled.info.registers + 7) / 8 * 8;    // the hardware hands them out by 8 a thread
  CHECK(granted * threads <= 65536);
  CHECK(compiled.info.shared_bytes <= 1024);  // all of ours is dynamic
}

Limits limits_of(const std::string& arch) {
  Limits limits;
  limits.arch = std::atoi(arch.c_str() + 3);
  limits.units = limits.arch >= 90 ? 132 : 80;
  const bool large = limits.arch >= 90 && limits.arch < 120;  // sm_120 has what sm_86 has
  limits.shared_bytes = large ? 232448 : limits.arch == 80 ? 166912 : limits.arch > 80 ? 101376 : 65536;
  return limits;
}

/// The i-th variant of a problem: configs take them in turn, so that all kinds meet all kernels.
Problem problem(std::size_t i) {
  static const Problem problems[] = {
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096},
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096, .bias = 1},
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096, .bf16 = 1},
      {.k = 4224, .n = 4096, .unit = 64, .x_k = 4096, .gather = 1},
      {.k = 1152, .n = 5000, .unit = 32, .x_k = 1088},
      {.k = 29568, .n = 8192, .unit = 16, .x_k = 29568},
      {.k = 4096, .n = 1024, .unit = 4096, .x_k = 4096, .bf16 = 1, .bias = 1},
      {.k = 4096, .n = 4096, .unit = 256, .x_k = 4096, .gather = 1, .bf16 = 1},
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096, .apart = 1},
      {.k = 4096, .n = 14336, .unit = 32, .x_k = 4096, .gather = 1, .apart = 1},
  };
  return problems[i % std::size(problems)];
}

constexpr std::int64_t kRows[] = {1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096};

/// Defaults for every bucket of m, and `most` of the search space, evenly spread.
std::vector<jit::Values> configs(const choose::Kernel& kernel, const Problem& p, const Limits& limits,
                                 std::size_t most) {
  std::set<jit::Values> chosen;
  for (const auto m : kRows) {
    if (const auto values = kernel.defaults(p, m, limits)) chosen.insert(*values);
    const auto space = kernel.space(p, m, limits);
    const std::size_t step = std::max<std::size_t>(1, space.size() / std::max<std::size_t>(1, most));
    for (std::size_t i = step / 2; i < space.size() && most > 0; i += step) chosen.insert(space[i]);
  }
  return {chosen.begin(), chosen.end()};
}

/// What loads, updates and unpack() launch.
std::vector<jit::Source> loading() {
  std::vector<jit::Source> all = {choose::pack_source(false, true), choose::unpack_source(false, true),
                                  choose::transpose_source(false), choose::transpose_source(true),
                                  choose::copy_rows_source()};
  for (const bool awq : {false, true})
    for (const auto& source :
         {choose::pack_source(awq), choose::unpack_source(awq), choose::meta_source(awq, true),
          choose::meta_source(awq, false), choose::meta_source(true, awq, true), choose::unmeta_source(awq)})
      all.push_back(source);
  return all;
}

/// Kernels of the table for one architecture: `sample` of each search space, and of the defaults for the problems but the first
/// one in `each`, all kinds of problem in turn. Architectures that share their kernels with another are looked at more rarely.
void check_table(const std::string& arch, std::size_t sample, std::size_t each = 3) {
  const cuda::Nvrtc* nvrtc = compiler(arch);
  if (nvrtc == nullptr) return;
  const char* all = std::getenv("Q4_COMPILE_ALL");
  if (all != nullptr && *all == '1') sample = 1u << 30;
  const Limits limits = limits_of(arch);
  std::size_t variant = 0;
  for (const auto* kernel : choose::matmul_kernels())
    for (std::size_t v = 0; v < 8; ++v) {
      const Problem p = problem(v);
      for (const auto& values : configs(*kernel, p, limits, v == 0 ? sample : 0)) {
        if (v > 0 && variant++ % each != 0 && sample < (1u << 30)) continue;
        const bool is_default = std::any_of(std::begin(kRows), std::end(kRows),
                                            [&](std::int64_t m) { return kernel->defaults(p, m, limits) == values; });
        const auto bound = kernel->bind(p, values, limits);
        REQUIRE(bound != nullptr);
        check(*nvrtc, bound->source(), arch, bound->threads(), is_default);
      }
    }
  for (const auto& source : loading()) check(*nvrtc, source, arch, 256);
  check(*nvrtc, choose::remap_source(true), arch, choose::remap_threads(true));
  for (const bool bf16 : {false, true}) check(*nvrtc, choose::norm_source(bf16), arch, 512);
  for (const std::size_t v : {0, 3, 7}) check(*nvrtc, choose::reconstruct_source(problem(v)), arch, 256);
}

// A set of 64 rows ends within a slab, where a loop that is badly cut makes ptxas wait for each wgmma (C7514).
TEST_CASE("sm_90a: products of groups of 64 do not wait for each wgmma") {
  const cuda::Nvrtc* nvrtc = compiler("sm_90a");
  if (nvrtc == nullptr) return;
  const Limits limits = limits_of("sm_90a");
  const choose::Kernel& prefill = *choose::find_matmul_kernel("prefill");
  const Problem p{.k = 8192, .n = 8192, .unit = 64, .x_k = 8192};
  for (const std::int64_t m : {16, 32, 64}) {
    const auto values = prefill.defaults(p, m, limits);
    REQUIRE(values);
    const auto bound = prefill.bind(p, *values, limits);
    REQUIRE(bound != nullptr);
    check(*nvrtc, bound->source(), "sm_90a", bound->threads());
  }
}

TEST_CASE("sm_75: every kernel compiles, no default spills") { check_table("sm_75", 0); }
TEST_CASE("sm_80: every kernel compiles, no default spills") { check_table("sm_80", 3, 5); }
TEST_CASE("sm_86: every kernel compiles, no default spills") { check_table("sm_86", 0, 11); }
TEST_CASE("sm_89: every kernel compiles, no default spills") { check_table("sm_89", 0, 11); }
TEST_CASE("sm_90a: every kernel compiles, no default spills") { check_table("sm_90a", 4, 5); }
TEST_CASE("sm_100: every kernel compiles, no default spills") { check_table("sm_100", 0, 11); }
TEST_CASE("sm_120: every kernel compiles, no default spills") { check_table("sm_120", 0, 11); }

/// What plans over experts load for few and for many rows: plain; in bf16 with small groups, a bias and a clamped
/// activation; in act-order; batch-invariant.
void check_grouped(const std::string& arch, std::initializer_list<int> variants) {
  const cuda::Nvrtc* nvrtc = compiler(arch);
  if (nvrtc == nullptr) return;
  const choose::Gpu gpu{"cuda:0", arch, limits_of(arch)};
  std::set<std::string> seen;  // ranges of rows share kernels
  const auto once = [&](const jit::Source& source, int threads) {
    if (seen.insert(source.text).second) check(*nvrtc, source, arch, threads);
  };
  for (const int variant : variants) {
    choose::MoeShape shape;
    const std::int64_t group = variant == 1 ? 32 : 128;
    shape.products = {matrix_shape(2048, 1536, group, variant == 2, variant == 1, false),
                      matrix_shape(768, 2048, group, variant == 2, variant == 1, false)};
    shape.products[0].gate_up = true;
    shape.experts = 128, shape.topk = 8, shape.bf16 = variant == 1, shape.batch_invariant = variant == 3;
    shape.activation = variant == 1 ? MoeActivation::kSwigluClamp : MoeActivation::kSiluMul;
    shape.alpha = 1.702f, shape.limit = 7.f;
    const auto choices = choose::choose_moe(shape, 4096, {}, gpu);
    for (const auto& choice : choices)
      for (const auto& product : choice.products) once(product.kernel->source(), product.kernel->threads());
    for (const auto& source : choose::moe_sources(shape, 4096, choices, gpu.limits))
      if (source.name.starts_with("route") || source.name.starts_with("combine") || source.name.starts_with("remap"))
        once(source, 512);
  }
}
TEST_CASE("sm_75: the kernels of experts compile, no default spills") { check_grouped("sm_75", {1}); }
TEST_CASE("sm_80: the kernels of experts compile, no default spills") { check_grouped("sm_80", {0, 2}); }
TEST_CASE("sm_90a: the kernels of experts compile, no default spills") { check_grouped("sm_90a", {0, 1, 2, 3}); }
TEST_CASE("sm_120: the kernels of experts compile, no default spills") { check_grouped("sm_120", {1}); }

// NVRTC 13 begins at sm_75: Q4_NVRTC=.../libnvrtc.so.12 (PyPI: nvidia-cuda-nvrtc-cu12) runs this one.
TEST_CASE("sm_61: what a GPU without fast fp16 runs compiles") {
  const cuda::Nvrtc* nvrtc = compiler("sm_61");
  if (nvrtc == nullptr) return;
  const choose::Kernel& gemv = *choose::find_matmul_kernel("gemv");
  const Limits limits{.arch = 61, .units = 20};
  for (std::size_t v = 0; v < 8; ++v) {
    const Problem p = problem(v);
    check(*nvrtc, choose::reconstruct_source(p), "sm_61", 256);
    for (const std::int64_t m : {1, 2, 4, 8}) {
      auto values = gemv.defaults(p, m, limits).value();
      for (auto& [name, value] : values)
        if (name == "half2") value = 0;
      const auto bound = gemv.bind(p, values, limits);
      REQUIRE(bound != nullptr);
      check(*nvrtc, bound->source(), "sm_61", bound->threads());
    }
  }
  for (const auto& source : loading()) check(*nvrtc, source, "sm_61", 256);
  for (const bool other : {false, true}) {
    check(*nvrtc, choose::remap_source(other), "sm_61", choose::remap_threads(other));
  }
}

TEST_CASE("cubin_info agrees with ptxas, and sees a stack") {
  const cuda::Nvrtc* nvrtc = compiler("sm_90");
  if (nvrtc == nullptr) return;
  // 256 sums live at once in at most 64 registers (1024 threads): they must spill.
  const jit::Source spilling{
      "spilling",
      "extern \"C\" __global__ void __launch_bounds__(1024) q4_spilling(float* x) {\n"
      "  __shared__ float fixed[40];\n  float v[256];\n"
      "#pragma unroll\n  for (int i = 0; i < 256; ++i) v[i] = x[i * 1024 + threadIdx.x];\n"
      "  fixed[threadIdx.x % 40] = v[threadIdx.x & 255];\n  __syncthreads();\n"
      "#pragma unroll\n  for (int i = 0; i < 256; ++i) x[i + threadIdx.x * 256] = v[i] * fixed[i % 40];\n}\n"};
  for (const std::string arch : {"sm_75", "sm_90a"}) {
    const Compiled a = compile(*nvrtc, choose::remap_source(true), arch), b = compile(*nvrtc, spilling, arch);
    if (a.log.empty()) return skip("this NVRTC passes no report of ptxas on");
    for (const auto& compiled : {a, b}) {
      std::smatch used;
      REQUIRE(std::regex_search(compiled.log, used, std::regex("Used ([0-9]+) registers")));
      CHECK(compiled.info.registers == std::stoi(used[1]));
      std::smatch stack;
      REQUIRE(std::regex_search(compiled.log, stack, std::regex("([0-9]+) bytes stack frame")));
      CHECK(compiled.info.stack_bytes == std::stoi(stack[1]));
    }
    CHECK(a.info.stack_bytes == 0);
    CHECK(b.info.stack_bytes >= 256);
    CHECK(b.info.shared_bytes >= 160);
    CHECK(a.info.code_bytes > 0);
  }
}

TEST_CASE("cubin_info: what is no cubin is an error, at any length") {
  const cuda::Nvrtc* nvrtc = compiler("sm_90");
  if (nvrtc == nullptr) return;
  const auto cubin = nvrtc->compile(choose::remap_source(true), "sm_80", kOptions, nullptr);
  CHECK_THROWS_AS(jit::cubin_info(cubin, "another"), Error);
  CHECK_THROWS_AS(jit::cubin_info(std::string("PTX text"), jit::entry("remap")), Error);
  // (The program headers, which nobody here reads, may stand last.)
  for (std::size_t size = 0; size + 512 < cubin.size(); size += 97)
    CHECK_THROWS_AS(jit::cubin_info({cubin.data(), size}, jit::entry("remap")), Error);
  auto broken = cubin;
  for (std::size_t i = 16; i < broken.size(); i += 5) {  // any damage: an error or a number, never a crash
    broken[i] = static_cast<char>(broken[i] ^ 0x5a);
    try {
      jit::cubin_info(broken, jit::entry("remap"));
    } catch (const Error& error) { CHECK(error.code() == ErrorCode::kCorrupt); }
    broken[i] = cubin[i];
  }
}

}  // namespace
}  // namespace q4::test
