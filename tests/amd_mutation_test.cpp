// The interpreter must see what is wrong: kernels whose source was changed in one place are compiled for real and
// executed.
#include <doctest/doctest.h>

#include <stdexcept>

#include "kernel_runner.hpp"
#include "report.hpp"
#include "runtime/backends/hip/compiler.hpp"
#include "runtime/choose/sources.hpp"
#include "tests/amdgpu/disassemble.hpp"
#include "tests/amdgpu/execute.hpp"
#include "tests/amdgpu/semantics.hpp"

namespace q4::test {
namespace {

using amdgpu::Range;

/// One place of the flattened source.
struct Change {
  std::string from, to;
};

template <class T>
Range range(const T* data, std::int64_t bytes) {
  const auto begin = reinterpret_cast<std::uint64_t>(data);
  return {begin, begin + static_cast<std::uint64_t>(bytes)};
}

/// Bytes that a launch may touch: exactly the matrices, without the padding after the last row.
std::vector<Range> memory_of(const EmulatedCase& c, const MatmulArgs& a) {
  const Problem p = c.problem();
  const auto rows = [&](std::int64_t stride, std::int64_t columns) { return ((a.m - 1) * stride + columns) * 2; };
  std::vector<Range> all = {range(a.codes, codes_bytes(p.k, p.n)), range(a.meta, meta_bytes(p.k, p.n, p.unit)),
                            range(a.x, rows(a.x_stride, c.k)), range(a.out, rows(a.out_stride, c.n))};
  if (p.bias) all.push_back(range(a.bias, 2 * p.n));
  if (p.gather) all.push_back(range(a.x_map, 4 * std::int64_t{p.k}));
  return all;
}

/// Whether the changed kernel's product is right; the interpreter's complaint is thrown. `shared`: of the shared memory
/// that it needs, in hundredths.
bool is_right(const char* target, const EmulatedCase& c, const std::string& tactic, int m, const Change& change,
              int shared = 100) {
  static hip::Compiler compiler;
  const auto space = tactic.find(' ');
  const auto* kernel = choose::find_matmul_kernel(tactic.substr(0, space));
  REQUIRE(kernel != nullptr);
  const auto values = choose::parse_values(*kernel, std::string_view(tactic).substr(space));
  REQUIRE(values);
  const Problem problem = c.problem();
  const auto bound = kernel->bind(problem, *values, {.shared_bytes = 65536});
  REQUIRE(bound != nullptr);
  std::string text = jit::flatten(bound->source());
  if (!change.from.empty()) {
    const auto at = text.find(change.from);
    REQUIRE_MESSAGE(at != text.npos, "the source has no longer: " << change.from);
    text.replace(at, change.from.size(), change.to);
  }
  const auto code = compiler.compile({tactic, text}, target);
  const auto loaded = amdgpu::load_kernel(code, target, jit::entry(tactic));
  const double error = largest_error(c, {m}, 0, [&](const MatmulArgs& args) {
    const amdgpu::Launch launch{static_cast<std::uint32_t>(bound->grid(m)),
                                static_cast<std::uint32_t>(bound->threads()),
                                static_cast<std::uint32_t>(bound->shared_bytes() * shared / 100)};
    amdgpu::execute(*loaded, launch, {reinterpret_cast<const char*>(&args), sizeof args}, memory_of(c, args));
  });
  return error <= tolerance(c.bf16 ? DType::kBF16 : DType::kF16);
}

bool ready(const std::string& target) {
  const auto listing = amdgpu::disassemble({}, target);
  const bool has_objdump = listing || !listing.reason().starts_with("no llvm-objdump");
  const auto known = hip::Compiler().knows(target);
  if (has_objdump && known) return true;
  skip(target + ": " + (has_objdump ? known.reason() : listing.reason()));
  return false;
}

constexpr EmulatedCase kCase{.k = 256, .n = 72, .bias = true};
const std::string kTile = "tile half2=1 rows=32", kGemv = "gemv half2=1 rows=4 tiles=1 warps=4";

TEST_CASE("mutations: kernels as they are pass") {
  for (const char* target : {"gfx90a", "gfx1030", "gfx1100"}) {
    if (!ready(target)) continue;
    CHECK(is_right(target, kCase, kTile, 17, {}));
    CHECK(is_right(target, kCase, kGemv, 3, {}));
  }
}

TEST_CASE("mutations: a removed bounds guard is an access outside") {
  if (ready("gfx90a")) {
    CHECK_THROWS_WITH_AS(is_right("gfx90a", kCase, kTile, 17, {"if (row < a.m) a.out", "a.out"}),
                         doctest::Contains("outside every allocation"), std::runtime_error);
    CHECK_THROWS_WITH_AS(is_right("gfx90a", kCase, kTile, 17, {"(row < a.m ? row : a.m - 1)", "row"}),
                         doctest::Contains("outside every allocation"), std::runtime_error);
  }
  if (ready("gfx1030"))
    CHECK_THROWS_WITH_AS(is_right("gfx1030", kCase, kGemv, 3, {"r >= a.m || out >=", "out >="}),
                         doctest::Contains("outside every allocation"), std::runtime_error);
  if (ready("gfx1100"))
    CHECK_THROWS_WITH_AS(
        is_right("gfx1100", kCase, kGemv, 4, {"r >= a.m || out >= out_columns(C.p, C.p.n)", "r >= a.m"}),
        doctest::Contains("outside every allocation"), std::runtime_error);
}

TEST_CASE("mutations: a removed barrier is a race") {
  const Change first{"sync_block();\n    if (slab + 1", "if (slab + 1"};
  const Change last{"    sync_block();\n  }\n  const int column = strip", "  }\n  const int column = strip"};
  const Change sums{"sync_block();\n  constexpr int kOuts", "constexpr int kOuts"};
  for (const char* target : {"gfx90a", "gfx1100"}) {
    if (!ready(target)) continue;
    for (const Change& change : {first, last})
      CHECK_THROWS_WITH_AS(is_right(target, kCase, kTile, 17, change), doctest::Contains("race"), std::runtime_error);
    CHECK_THROWS_WITH_AS(is_right(target, kCase, kGemv, 3, sums), doctest::Contains("race"), std::runtime_error);
  }
}

TEST_CASE("mutations: a wrong fragment layout is a wrong product") {
  if (ready("gfx90a")) {
    CHECK_FALSE(is_right("gfx90a", kCase, kTile, 17, {"lane / kSide * 4 + i", "lane / kSide + 4 * i"}));
    CHECK_FALSE(is_right("gfx90a", kCase, kTile, 17, {"? lane / kSide * kElements : 0", "? 0 : 0"}));
  }
  if (ready("gfx1100"))  // the sums as RDNA 4 has them
    CHECK_FALSE(
        is_right("gfx1100", kCase, kTile, 17, {": lane / kSide + i * (kWave / kSide)", ": lane / kSide * 8 + i"}));
  if (ready("gfx1030"))
    CHECK_FALSE(is_right("gfx1030", kCase, kGemv, 3, {"v += shuffle_xor(v, 2)", "v += shuffle_xor(v, 4)"}));
}

TEST_CASE("mutations: too little shared memory, code of another target, instructions that nobody knows") {
  if (!ready("gfx90a")) return;
  CHECK_THROWS_WITH_AS(is_right("gfx90a", kCase, kTile, 17, {}, 99), doctest::Contains("bytes of shared memory"),
                       std::runtime_error);
  const auto code = hip::Compiler().compile(choose::read_source(256, 4), "gfx90a");
  CHECK_THROWS_AS(amdgpu::load_kernel(code, "gfx1030", jit::entry("read")), std::runtime_error);
  auto unknown = amdgpu::parse_instruction("v_sin_f32_e32 v0, v1", false);
  CHECK_THROWS_WITH_AS(amdgpu::resolve(unknown), doctest::Contains("unknown instruction v_sin_f32"),
                       std::runtime_error);
  CHECK_THROWS_AS(amdgpu::parse_instruction("v_mov_b32_dpp v0, v1 quad_perm:[1,0,3,2]", false), std::runtime_error);
  CHECK_THROWS_AS(amdgpu::parse_instruction("v_mov_b32_e32 v0, src_shared_base", false), std::runtime_error);
}

}  // namespace
}  // namespace q4::test
