// The C ABI's plan options and versions, which mean the same as those of C++.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <q4/version.hpp>

#include "capi_support.hpp"
#include "report.hpp"

namespace q4::test {
namespace {

TEST_CASE_FIXTURE(Fixture, "the C ABI: a plan without a workspace of its own runs with the caller's alone") {
  q4_plan_options options = {};
  options.size = sizeof options;
  options.max_m = 4, options.caller_workspace = 1;
  q4_plan bare = 0;
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &bare));
  std::size_t bytes = 0;
  Q4_REQUIRE_OK(q4_plan_workspace_bytes(runtime, bare, &bytes));
  REQUIRE(bytes > 0);
  rejects({"q4_plan_run", "own_workspace = false", std::to_string(bytes)}, run(bare));
  std::vector<std::byte> workspace(bytes + 256);
  void* start = workspace.data();
  std::size_t space = workspace.size();
  std::align(256, bytes, start, space);
  Q4_REQUIRE_OK(q4_plan_run_workspace(runtime, bare, nullptr, x.data(), 0, out.data(), 0, 4, start));
  CHECK(relative_error(out, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
  options.size = offsetof(q4_plan_options, caller_workspace);  // an older q4.h does not know the field
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &bare));
  Q4_REQUIRE_OK(run(bare));
}

TEST_CASE("reconstruct_from: 0 chooses, -1 never does, in C as in C++") {
  // Portable kernels, whose default at m = 64 is the BLAS; and a record that says so from m = 4 on.
  q4_runtime_options options = {};
  options.size = sizeof options;
  options.cpu_isa = "portable";
  q4_runtime* runtime = nullptr;
  Q4_REQUIRE_OK(q4_runtime_create(&options, &runtime));
  const Runtime same(RuntimeOptions{.cpu_isa = "portable"});
  const GptqMatrix source = make_gptq({.k = 256, .n = 64});
  const auto weights = QuantizedMatrix::from_gptq(same, {}, source.tensors());
  CTensors tensors;
  to_c(source.tensors(), tensors);
  q4_matrix matrix = 0;
  Q4_REQUIRE_OK(q4_matrix_from_gptq(runtime, kHere, &tensors.all, &matrix));
  const auto tactics = MatmulPlan(same, weights, {.max_m = 64}).tactics(64);
  const bool blas = std::find(tactics.begin(), tactics.end(), "reconstruct+blas") != tactics.end();
  if (!blas) skip("reconstruct_from: no BLAS here");
  for (const std::int64_t from : {-1, 0, 1, 40}) {
    q4_plan_options plan_options = {};
    plan_options.size = sizeof plan_options;
    plan_options.max_m = 64, plan_options.reconstruct_from = from;
    q4_plan plan = 0;
    Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &plan_options, &plan));
    const MatmulPlan twin(same, weights, {.max_m = 64, .reconstruct_from = from});
    for (const std::int64_t m : {1, 39, 40, 64}) {
      char text[200];
      Q4_REQUIRE_OK(q4_plan_tactic(runtime, plan, m, text, sizeof text, nullptr));
      CAPTURE(from);
      CAPTURE(m);
      CHECK(twin.tactic(m) == text);
      const bool reconstructs = from == -1 ? false : from == 0 ? m >= 32 : m >= from;
      CHECK((std::string(text) == "reconstruct+blas") == (blas && reconstructs));
    }
  }
  CHECK(PlanOptions().reconstruct_from == 0);
  q4_runtime_destroy(runtime);
}

TEST_CASE("versions: of the headers and of the library, in C and in C++") {
  CHECK(std::string(q4_version()) == Q4_VERSION);
  CHECK(std::string(version()) == Q4_VERSION);
  CHECK(std::to_string(Q4_VERSION_MAJOR) + "." + std::to_string(Q4_VERSION_MINOR) + "." +
            std::to_string(Q4_VERSION_PATCH) ==
        Q4_VERSION);
  CHECK((kVersionMajor == Q4_VERSION_MAJOR && kVersionMinor == Q4_VERSION_MINOR && kVersionPatch == Q4_VERSION_PATCH));
}

}  // namespace
}  // namespace q4::test
