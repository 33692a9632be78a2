// Every kernel that AMD GPUs run, through real compilers and for every row of the table of targets, with no GPU: hipRTC
// where it knows the target, clang elsewhere. Nothing spills, blocks fit, and the instructions that the design counts
// on are there. $Q4_COMPILE_ALL=1: every default of every kind of problem instead of a sample.
#include <doctest/doctest.h>

#include <cstdlib>
#include <q4/error.hpp>
#include <regex>
#include <set>

#include "kernels/remap.h"
#include "report.hpp"
#include "runtime/backends/hip/compiler.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/sources.hpp"
#include "sandbox.hpp"
#include "tests/amdgpu/code_object_info.hpp"
#include "tests/amdgpu/disassemble.hpp"

namespace q4::test {
namespace {

hip::Compiler& compiler() {
  static hip::Compiler one;
  return one;
}

Limits limits_of(const hip::Target& target) { return {0, target.units, target.lds_bytes, 65536}; }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

/// Another kind of problem each time.
Problem problem(std::size_t i) {
  static const Problem problems[] = {
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096},
      {.k = 4096, .n = 4096, .unit = 128, .x_k = 4096, .bf16 = 1, .bias = 1},
      {.k = 4224, .n = 4096, .unit = 64, .x_k = 4096, .gather = 1, .bias = 1},
      {.k = 1152, .n = 5000, .unit = 32, .x_k = 1088},
      {.k = 29568, .n = 8192, .unit = 16, .x_k = 29568},
      {.k = 4096, .n = 4096, .unit = 256, .x_k = 4096, .gather = 1, .bf16 = 1},
  };
  return problems[i % std::size(problems)];
}

jit::Source source_of(const choose::Kernel& kernel, const Problem& problem, const char* values,
                      const hip::Target& target) {
  const auto parsed = choose::parse_values(kernel, values);
  REQUIRE(parsed);
  const auto bound = kernel.bind(problem, *parsed, limits_of(target));
  REQUIRE(bound != nullptr);
  return bound->source();
}

struct Wanted {
  jit::Source source;
  int threads = 256;
};

/// gemv and tile as plans choose them, and the kernels around them.
std::vector<Wanted> wanted(const hip::Target& target, std::size_t turn) {
  const bool all = std::getenv("Q4_COMPILE_ALL") != nullptr;
  const Limits limits = limits_of(target);
  std::set<std::string> seen;
  std::vector<Wanted> list;
  const auto add = [&](jit::Source source, int threads = 256) {
    if (seen.insert(source.text).second) list.push_back({std::move(source), threads});
  };
  const std::size_t first = turn % 2;  // every other number of rows, for the next target the others
  constexpr std::int64_t kRows[] = {1, 2, 4, 8, 32, 256, 4096};
  for (std::size_t p = 0; p < (all ? 6 : 1); ++p)
    for (std::size_t row = all ? 0 : first; row < std::size(kRows); row += all ? 1 : 2)
      for (const auto* kernel : choose::matmul_kernels()) {
        const Problem chosen = problem(all ? p : turn++);
        if (const auto values = kernel->defaults(chosen, kRows[row], limits)) {
          const auto bound = kernel->bind(chosen, *values, limits);
          REQUIRE(bound != nullptr);
          add(bound->source(), bound->threads());
        }
      }
  add(choose::pack_source(turn % 2 == 0)), add(choose::unpack_source(turn % 2 == 0));
  add(choose::meta_source(true, false)), add(choose::transpose_source(false)), add(choose::copy_rows_source());
  add(choose::meta_source(true, turn % 2 == 0, true)), add(choose::unmeta_source(turn % 2 == 0));
  add(choose::remap_source(true), choose::remap_threads(true));
  add(choose::read_source(256, 8));
  add(choose::norm_source(turn % 2 == 0), 512);
  add(choose::reconstruct_source(problem(turn))), add(choose::reconstruct_source(problem(turn + 3)));
  return list;
}

void check_target(const char* name, std::size_t turn) {
  const hip::Target* target = hip::find_target(name);
  REQUIRE(target != nullptr);
  INFO(std::string(name));
  if (const auto known = compiler().knows(name); !known) return skip(known.reason());
  for (const auto& [source, threads] : wanted(*target, turn)) {
    CAPTURE(source.name);
    std::string log;
    const auto code = compiler().compile(source, name, &log);
    CHECK(log == "");
    const auto info = amdgpu::code_object_info(code, jit::entry(source.name));
    CHECK(info.target == std::string("amdgcn-amd-amdhsa--") + name);
    CHECK(info.wave == target->wave);
    CHECK(info.threads == threads);
    if (info.agprs == 0) CHECK(info.vgpr_spills == 0);  // into AGPRs, where there are any, is no harm
    CHECK(info.sgpr_spills <= 4);
    CHECK(info.scratch_bytes == 0);
    CHECK(info.lds_bytes == 0);  // all of ours is the launch's
    CHECK(info.vgprs <= (target->wave == 32 ? 256 : 512));
    CHECK(info.arguments.size() == 1);
  }
}

/// Every third row of the table, so that CTest runs them side by side.
void check_targets(std::size_t first) {
  for (std::size_t i = first; i < hip::targets().size(); i += 3) check_target(hip::targets()[i].name, i);
}
TEST_CASE("AMD targets 1, 4, 7, ...: every kernel compiles, nothing spills") { check_targets(0); }
TEST_CASE("AMD targets 2, 5, 8, ...: every kernel compiles, nothing spills") { check_targets(1); }
TEST_CASE("AMD targets 3, 6, 9, ...: every kernel compiles, nothing spills") { check_targets(2); }

TEST_CASE("AMD targets: the table") {
  for (const std::string name :
       {"gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1151", "gfx1200", "gfx1201"})
    CHECK(hip::find_target(name) != nullptr);
  CHECK(hip::find_target("gfx90a:sramecc+:xnack-") == hip::find_target("gfx90a"));
  CHECK(hip::find_target("gfx9") == nullptr);
}

TEST_CASE("AMD instructions: the ones that the design counts on") {
  const Problem fp16{.k = 512, .n = 64, .unit = 128, .x_k = 512},
      bf16{.k = 512, .n = 64, .unit = 128, .x_k = 512, .bf16 = 1};
  const auto* gemv = choose::find_matmul_kernel("gemv");
  const auto* tile = choose::find_matmul_kernel("tile");
  for (const auto& target : hip::targets()) {
    if (const auto known = compiler().knows(target.name); !known) {
      skip(known.reason());
      continue;
    }
    const auto expect = [&](const jit::Source& source, const std::vector<std::string>& patterns) {
      const auto code = compiler().compile(source, target.name);
      const auto listing = amdgpu::disassemble(code, target.name);
      if (!listing) return skip(listing.reason());
      INFO(std::string(target.name));
      CAPTURE(source.name);
      for (const auto& pattern : patterns) CHECK_MESSAGE(std::regex_search(*listing, std::regex(pattern)), pattern);
    };
    const std::string loads = "global_load_(dwordx4|b128)";
    expect(source_of(*gemv, fp16, "half2=1", target),
           {"v_pk_fma_f16", "v_pk_mul_f16", "v_and_or_b32", loads, "ds_bpermute_b32", "s_barrier"});
    expect(source_of(*gemv, fp16, "half2=0", target), {"v_(pk_)?fma(c|_mix)?_f32|v_mad_mix_f32|v_dual_fmac", loads});
    const bool either = target.name == std::string("gfx908");  // by the compiler: mma_tile.h
    const std::string core = either                                    ? "v_mfma_f32_16x16x|v_dot2c?_f32_f16"
                             : target.matrix == hip::MatrixCore::kMfma ? "v_mfma_f32_16x16x"
                             : target.matrix == hip::MatrixCore::kWmma ? "v_wmma_f32_16x16x16_"
                                                                       : "v_dot2c?_f32_f16";
    expect(source_of(*tile, fp16, "rows=64", target), {core, loads, "ds_(read|load)", "s_barrier"});
    if (target.matrix != hip::MatrixCore::kNone && !either)
      expect(source_of(*tile, bf16, "half2=0", target), {core + "\\d*_?bf16"});
  }
}

/// A script that answers as clang++ does when it is asked for its version and for its linker.
void write_clang(const Sandbox& box, const std::string& version, const std::string& lld) {
  std::ofstream(box.file("clang++")) << "#!/bin/sh\ncase $1 in --version) echo \"" << version << "\" ;; *) echo " << lld
                                     << " ;; esac\n";
  std::filesystem::permissions(box.file("clang++"), std::filesystem::perms::owner_all);
}

/// The environment in which it is the only AMD compiler, and the GPU's libraries are not there.
std::string only_clang(const Sandbox& box) {
  return "env Q4_HIPRTC=/nonexistent Q4_HIP_CLANG=" + box.file("clang++") + " ";
}

TEST_CASE("AMD compilers: a clang without its linker or older than 17 is passed over, and said to be") {
  const struct {
    const char *version, *lld, *reason;
  } useless[] = {
      {"clang version 19.1.7", "lld", " has no lld"},
      {"Debian clang version 14.0.6", "/usr/bin/lld", " is clang 14.0.6, which is too old"},
      {"AMD clang version 16.0.0 (https://github.com x)", "/usr/bin/lld", " is clang 16.0.0, which is too old"}};
  for (const auto& [version, lld, reason] : useless) {
    CAPTURE(std::string(version));
    const Sandbox box;
    write_clang(box, version, lld);
    const Ended info = box.run("q4-info", false, only_clang(box));
    CHECK(contains(info.out, "no clang++ of 17 or later"));
    CHECK_MESSAGE(contains(info.out, box.file("clang++") + reason), info.out);
    const Ended build =
        box.run("q4-cache build --target gfx90a,gfx1100 --shape 512x64 --max-m 1", true, only_clang(box));
    CHECK(build.status == 1);  // a reason, and none of the compiler's own errors
    CHECK_MESSAGE(contains(build.out, "gfx90a needs hipRTC of ROCm 5.2 or newer, or clang 17"), build.out);
    CHECK(contains(build.out, box.file("clang++") + reason));
    CHECK_FALSE(contains(build.out, "source:"));
  }
  const Sandbox box;
  write_clang(box, "clang version 17.0.6", "/usr/bin/lld");
  CHECK(contains(box.run("q4-info", false, only_clang(box)).out, "clang 17.0.6 (" + box.file("clang++") + ")"));
}

TEST_CASE("AMD targets: none is given to a clang older than the oldest that is looked for") {
  for (const auto& target : hip::targets()) CHECK(target.clang_since >= hip::kOldestClang);
}

TEST_CASE("AMD compilers: errors are errors, and an abort takes only its own process") {
  const auto old = compiler().knows("gfx803");
  REQUIRE_FALSE(old);
  CHECK(old.reason().find("gfx90a") != std::string::npos);
  CHECK_THROWS_AS(compiler().compile(choose::read_source(256, 4), "gfx803"), Error);
  if (!compiler().hiprtc().available()) return skip(compiler().hiprtc().problem());
  for (const char* target : {"gfx90a", "gfx906"})  // HIP over CUDA compiles for NVIDIA alone
    if (const auto known = compiler().knows(target); !known) return skip(known.reason());
  try {
    compiler().compile({"broken", "this is no kernel\n"}, "gfx90a");
    FAIL("it compiled");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kCompile);
    CHECK(std::string(error.what()).find("error: ") != std::string::npos);
  }
  // Without the program hipRTC runs here; a program that is not there is an error.
  const auto outside = compiler().compile(choose::read_source(256, 4), "gfx906");
  ::setenv("Q4_HIP_COMPILE", "", 1);
  CHECK(compiler().compile(choose::read_source(256, 4), "gfx906") == outside);
  ::setenv("Q4_HIP_COMPILE", "/nowhere/q4-hip-compile", 1);
  CHECK_THROWS_WITH_AS(compiler().compile(choose::read_source(256, 4), "gfx906"),
                       doctest::Contains("/nowhere/q4-hip-compile"), Error);
  ::unsetenv("Q4_HIP_COMPILE");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return skip("the sanitizer reports the abort in its own way");
#endif
  if (hip::helper_program().empty() || compiler().hiprtc().release() >= 505) return skip("no hipRTC that aborts");
  CHECK_THROWS_WITH_AS(hip::compile_in_process("extern \"C\" __attribute__((global)) void k() {}\n", "gfx1100"),
                       doctest::Contains("signal 6"), Error);
}

TEST_CASE("code_object_info: what is no code object is an error, at any length") {
  if (const auto known = compiler().knows("gfx90a"); !known) return skip(known.reason());
  const auto code = compiler().compile(choose::remap_source(true), "gfx90a");
  CHECK_THROWS_AS(amdgpu::code_object_info(code, "another"), Error);
  CHECK_THROWS_AS(amdgpu::code_object_info(std::string("text"), jit::entry("remap")), Error);
  for (std::size_t size = 0; size < code.size(); size += 61) {
    try {
      amdgpu::code_object_info({code.data(), size}, jit::entry("remap"));
    } catch (const Error& error) { CHECK(error.code() == ErrorCode::kCorrupt); }
  }
  auto broken = code;
  for (std::size_t i = 16; i < broken.size(); i += 3) {
    broken[i] = static_cast<char>(broken[i] ^ 0x5a);
    try {
      amdgpu::code_object_info(broken, jit::entry("remap"));
    } catch (const Error& error) { CHECK(error.code() == ErrorCode::kCorrupt); }
    broken[i] = code[i];
  }
}

}  // namespace
}  // namespace q4::test
