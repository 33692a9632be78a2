// Which kernel an untuned plan takes under act-order, and whether x is permuted before it: by architecture, m and
// PlanOptions::gather. No device is needed.
#include <doctest/doctest.h>

#include <q4/matmul.hpp>

#include "runtime/choose/sources.hpp"

namespace q4::test {
namespace {

struct Asked {
  bool remap = false, gathers = false;
  std::string kernel;  ///< of the largest m
};

Asked asked(int arch, std::int64_t k, std::int64_t m, PlanOptions options, bool act_order = true) {
  const int shared_bytes = arch == 90 ? 232448 : arch == 80 ? 166912 : 65536;
  const choose::Gpu gpu{"cuda:0", "sm", {.arch = arch, .units = 132, .shared_bytes = shared_bytes}};
  const MatrixShape shape = matrix_shape(k, 4096, 128, act_order, false, false);
  options.max_m = m;
  Asked result;
  for (const auto& source : choose::sources(shape, choose::choose(shape, options, gpu, nullptr), gpu.limits)) {
    const std::string name = source.name.substr(0, source.name.find(' '));
    result.remap |= name == "remap" && source.name.find(".staged=1") != std::string::npos;  // 0: column_remap's own
    if (name == "remap" || name == "pack" || name == "reconstruct") continue;
    result.gathers |= source.name.find(".gather=1") != std::string::npos;
    result.kernel = name;
  }
  return result;
}

TEST_CASE("gather: x is permuted before, or gathered inside, as asked for and as measured") {
  for (const int arch : {0, 75, 80, 90})
    for (const std::int64_t m : {1, 2, 3, 8, 16, 64}) {
      CAPTURE(arch);
      CAPTURE(m);
      const Asked separate = asked(arch, 4096, m, {.gather = Gather::kSeparate});
      CHECK(separate.remap);
      CHECK_FALSE(separate.gathers);
      const Asked invariant = asked(arch, 4096, m, {.batch_invariant = true});
      CHECK(invariant.remap);
      CHECK_FALSE(invariant.gathers);
      const Asked fp32 = asked(arch, 4096, m, {.math = Math::kFp32, .gather = Gather::kFused});
      CHECK(fp32.kernel == "gemv");
      CHECK_FALSE(fp32.remap);
    }
  for (const std::int64_t m : {1, 2, 8}) {  // decode and gemv can at these m
    for (const int arch : {0, 75, 80, 90}) {
      CAPTURE(arch);
      CAPTURE(m);
      const Asked fused = asked(arch, 4096, m, {.gather = Gather::kFused});
      CHECK(fused.gathers);
      CHECK_FALSE(fused.remap);
    }
    CHECK(asked(90, 8192, m, {.gather = Gather::kFused}).kernel == "decode");
    CHECK_FALSE(asked(90, 8192, m, {.gather = Gather::kFused}).remap);
  }
  CHECK(asked(90, 4096, 1, {}).gathers);
  CHECK_FALSE(asked(90, 4096, 1, {}).remap);
  CHECK(asked(90, 4096, 8, {}).remap);
  CHECK_FALSE(asked(90, 28672, 1, {}).gathers);  // too many slabs
  CHECK(asked(75, 4096, 1, {}).kernel == "gemv");
  CHECK(asked(75, 4096, 1, {}).gathers);
  CHECK_FALSE(asked(75, 8192, 1, {}).gathers);
}

TEST_CASE("gather: rows of x that straddle lines are copied first where tensor copies mind, and it pays") {
  const auto copied = [](int arch, std::int64_t k, std::int64_t m) {
    const Asked a = asked(arch, k, m, {}, false);
    CHECK_FALSE(a.gathers);
    return a.remap;
  };
  CHECK(copied(90, 4056, 64));
  CHECK(copied(90, 4056, 512));
  CHECK_FALSE(copied(90, 4056, 16));
  CHECK_FALSE(choose::find_matmul_kernel("prefill")->copies({.n = 4096}, 513));
  CHECK_FALSE(copied(90, 4096, 64));
  CHECK_FALSE(copied(80, 4056, 64));
  CHECK_FALSE(copied(0, 4056, 64));
}

}  // namespace
}  // namespace q4::test
