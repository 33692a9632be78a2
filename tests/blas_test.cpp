// Which BLAS the CPU backend multiplies with, and which ones it passes over.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "cpu_device.hpp"
#include "paths.hpp"
#include "runtime/backends/cpu/blas.hpp"
#include "sandbox.hpp"

namespace q4::test {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

std::string stand_in(const std::string& kind) { return binary_dir() + "/lib/libq4-blas-" + kind + ".so"; }

/// "libblas.so.3" of Debian's package libblas3, wherever it is installed.
constexpr const char* kNetlib[] = {"/usr/lib/x86_64-linux-gnu/blas/libblas.so.3",
                                   "/usr/lib/aarch64-linux-gnu/blas/libblas.so.3"};

}  // namespace

TEST_CASE("blas: what is slow, wrong or of 64-bit integers is passed over, with the reason and the remedy") {
  const struct {
    const char *kind, *reason;
  } refused[] = {{"netlib", "is netlib's reference BLAS"},
                 {"slow", "is no faster than a plain loop"},
                 {"wrong", "gives wrong products"},
                 {"ilp64", "has integers of 64 bits"}};
  for (const auto& [kind, reason] : refused) {
    CAPTURE(std::string(kind));
    const cpu::Blas blas = cpu::open_blas({"libq4-none.so", stand_in(kind)});
    CHECK_FALSE(blas.available);
    CHECK_MESSAGE(contains(blas.name, stand_in(kind) + " " + reason), blas.name);
    CHECK(contains(blas.name, "install libopenblas0"));
    CHECK(contains(blas.name, "libq4-none.so"));
  }
}

TEST_CASE("blas: the first good one is used and described") {
  const cpu::Blas blas = cpu::open_blas({stand_in("netlib"), stand_in("openblas")});
  REQUIRE(blas.available);
  CHECK(blas.name == stand_in("openblas") + " (OpenBLAS 0.3.21 NO_AFFINITY Haswell)");
  const float a[] = {1, 2}, b[] = {3, 4};
  float c = 0;
  blas.multiply(1, 1, 2, a, 2, b, 1, &c, 1);
  CHECK(c == 11);
}

TEST_CASE("blas: netlib's, where it is installed") {
  const auto* path =
      std::find_if(std::begin(kNetlib), std::end(kNetlib), [](const char* p) { return std::filesystem::exists(p); });
  if (path == std::end(kNetlib)) return skip("netlib's BLAS is not installed (Debian: libblas3)");
  const cpu::Blas blas = cpu::open_blas({std::string(*path)});
  CHECK_FALSE(blas.available);
  CHECK_MESSAGE(contains(blas.name, "is netlib's reference BLAS"), blas.name);
}

TEST_CASE("blas: q4-info says which one, or why not; without a good one reconstruct+blas is an error that says why") {
  const Sandbox box;
  const auto with = [](const std::string& kind) { return "env Q4_BLAS=" + stand_in(kind) + " "; };
  CHECK(contains(box.run("q4-info", false, with("openblas")).out, stand_in("openblas") + " (OpenBLAS 0.3.21"));
  CHECK(contains(box.run("q4-info", false, with("netlib")).out, stand_in("netlib") + " is netlib's reference BLAS"));
  const Ended bench = box.run("q4-bench --device cpu --shape 64x64 --m 2 --seconds 0.01 --tactic reconstruct+blas",
                              true, with("netlib"));
  CHECK(bench.status == 2);
  CHECK_MESSAGE(contains(bench.out, "is not available on this CPU for this matrix: there is no BLAS to use"),
                bench.out);
}

TEST_CASE("blas: reconstruct + BLAS keeps the fp32 tolerance over a long k") {
  if (!cpu::blas().available) return skip(cpu::blas().name);
  CpuDevice cpu;
  MatrixSpec spec;
  spec.k = 29568, spec.n = 24;
  const Packed packed = pack(*cpu.device, spec);
  const HostRows x = random_rows(DType::kF32, 3, spec.k, 7);
  HostRows out(DType::kF32, 3, spec.n);
  run(*cpu.device, packed, options_for(3, DType::kF32, "reconstruct+blas"), x, out);
  CHECK(relative_error(out, product(x, packed.plain)) <= tolerance(DType::kF32));
}

}  // namespace q4::test
