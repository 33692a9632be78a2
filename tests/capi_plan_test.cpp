// The C ABI's plan options and versions, which mean the same as those of C++.
#include <doctest/doctest.h>

#include <q4/epilogue.h>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <q4/version.hpp>

#include "capi_support.hpp"
#include "epilogue_reference.hpp"
#include "lora_case.hpp"
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

TEST_CASE_FIXTURE(Fixture, "the C ABI: a plan is given x in the matrix's own order") {
  GptqMatrix shuffled = make_gptq({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kPermuted});
  to_c(shuffled.tensors(), tensors);
  q4_matrix ordered = 0;
  Q4_REQUIRE_OK(q4_matrix_from_gptq(runtime, kHere, &tensors.all, &ordered));
  std::vector<std::int32_t> order(256);
  Q4_REQUIRE_OK(q4_matrix_x_order(runtime, ordered, order.data()));
  HostRows permuted(DType::kF16, 4, 256);
  for (std::int64_t r = 0; r < 4; ++r)
    for (std::int64_t c = 0; c < 256; ++c) permuted.set(r, c, x.at(r, order[static_cast<std::size_t>(c)]));
  q4_plan_options options = {};
  options.size = sizeof options;
  options.max_m = 4, options.gather = Q4_GATHER_GIVEN;
  q4_plan given = 0;
  Q4_REQUIRE_OK(q4_plan_create(runtime, ordered, &options, &given));
  Q4_REQUIRE_OK(q4_plan_run(runtime, given, nullptr, permuted.data(), 0, out.data(), 0, 4));
  CHECK(relative_error(out, product(x, unpack(shuffled.tensors()))) <= tolerance(DType::kF16));
  rejects({"q4_matrix_x_order", "order is null"}, q4_matrix_x_order(runtime, ordered, nullptr));
  options.gather = 4;
  rejects({"q4_plan_create", "options.gather", "4", "0 to 3"}, q4_plan_create(runtime, ordered, &options, &given));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI: a plan normalizes x") {
  q4_plan_options options = {};
  options.size = sizeof options;
  options.max_m = 4, options.norm = 1, options.norm_epsilon = 0.5f;
  q4_plan made = 0;
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &made));
  const HostRows weight = random_rows(DType::kF16, 1, 256, 21);
  q4_run_inputs inputs = {};
  inputs.size = sizeof inputs;
  inputs.norm_weight = weight.data();
  Q4_REQUIRE_OK(q4_plan_run_inputs(runtime, made, nullptr, x.data(), 0, out.data(), 0, 4, &inputs));
  HostRows normed(DType::kF32, 4, 256);
  for (std::int64_t r = 0; r < 4; ++r) {
    double sum = 0;
    for (std::int64_t c = 0; c < 256; ++c) sum += x.at(r, c) * x.at(r, c);
    for (std::int64_t c = 0; c < 256; ++c) normed.set(r, c, x.at(r, c) / std::sqrt(sum / 256 + 0.5) * weight.at(0, c));
  }
  CHECK(relative_error(out, product(normed, unpack(source.tensors()))) <= tolerance(DType::kF16));
  rejects({"norm_weight", "norm = true"}, q4_plan_run(runtime, made, nullptr, x.data(), 0, out.data(), 0, 4));
  options.norm_epsilon = NAN;
  rejects({"q4_plan_create", "norm_epsilon"}, q4_plan_create(runtime, matrix, &options, &made));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI: epilogues mean the same as in C++") {
  q4_plan_options options = {};
  options.size = sizeof options;
  options.max_m = 4, options.epilogue = Q4_SILU_MUL, options.residual = 1;
  q4_plan made = 0;
  rejects({"q4_plan_create", "silu_mul", "gate_up"}, q4_plan_create(runtime, matrix, &options, &made));
  tensors.all.gate_up = 1;
  q4_matrix pairs = 0;
  Q4_REQUIRE_OK(q4_matrix_from_gptq(runtime, kHere, &tensors.all, &pairs));
  q4_matrix_info info = {};
  info.size = sizeof info;
  Q4_REQUIRE_OK(q4_matrix_get(runtime, pairs, &info));
  CHECK(info.gate_up == 1);
  rejects({"q4_matrix_update", "gate_up", "pass 0"}, q4_matrix_update(runtime, pairs, &tensors.all, nullptr));
  options.epilogue = 99;
  rejects({"q4_plan_create", "options.epilogue", "99", "0 to 8"}, q4_plan_create(runtime, pairs, &options, &made));
  options.epilogue = Q4_SILU_MUL;
  Q4_REQUIRE_OK(q4_plan_create(runtime, pairs, &options, &made));
  HostRows half(DType::kF16, 4, 32);
  const HostRows residual = random_rows(DType::kF16, 4, 32, 3, 40);
  const auto run_with = [&](const q4_run_inputs* inputs) {
    return q4_plan_run_inputs(runtime, made, nullptr, x.data(), 0, half.data(), 0, 4, inputs);
  };
  rejects({"q4_plan_run_inputs", "residual", "null"}, run_with(nullptr));
  q4_run_inputs inputs = {};
  rejects({"q4_plan_run_inputs", "inputs.size"}, run_with(&inputs));
  inputs.size = sizeof inputs;
  inputs.residual = residual.data(), inputs.residual_stride = residual.row_stride();
  Q4_REQUIRE_OK(run_with(&inputs));
  const auto sums = product(x, unpack(source.tensors()));
  CHECK(relative_error(half, finished(sums, 4, 64, Activation::kSiluMul, &residual)) <= tolerance(DType::kF16));
  options.size = offsetof(q4_plan_options, epilogue);  // an older q4.h does not know the fields
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &made));
  Q4_REQUIRE_OK(run(made));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI: adapters mean the same as in C++") {
  q4_lora_options options = {};
  options.size = sizeof options;
  options.adapters = 2, options.max_rank = 16;
  q4_lora lora = 0;
  Q4_REQUIRE_OK(q4_lora_create(runtime, matrix, &options, &lora));
  const LoraCase adapters(256, 64, DType::kF16, {16, 8});
  const auto tensor = [](const HostRows& rows) {
    return c_tensor({rows.data(), rows.dtype(), rows.rows(), rows.cols(), rows.row_stride()});
  };
  const q4_tensor a = tensor(adapters.a[0]), b = tensor(adapters.b[0]);
  rejects({"q4_lora_set", "index = 2"}, q4_lora_set(runtime, lora, 2, &a, &b, 1));
  rejects({"q4_lora_set", "a is null"}, q4_lora_set(runtime, lora, 0, nullptr, &b, 1));
  rejects({"q4_lora_set", "b has shape"}, q4_lora_set(runtime, lora, 0, &a, &a, 1));
  rejects({"q4_lora_set", "another kind"}, q4_lora_set(runtime, matrix, 0, &a, &b, 1));
  Q4_REQUIRE_OK(q4_lora_set(runtime, lora, 1, &a, &b, adapters.scales[0]));
  q4_plan_options plan_options = {};
  plan_options.size = sizeof plan_options;
  plan_options.max_m = 4, plan_options.lora_rank = 16;
  q4_plan made = 0;
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &plan_options, &made));
  const std::int32_t rows[] = {1, -1, 0, 1};
  q4_run_inputs inputs = {};
  inputs.size = sizeof inputs;
  const auto run_with = [&] {
    return q4_plan_run_inputs(runtime, made, nullptr, x.data(), 0, out.data(), 0, 4, &inputs);
  };
  rejects({"q4_plan_run_inputs", "adapters"}, run_with());
  inputs.adapters = lora, inputs.adapter_of_row = rows;
  const auto sums_with = [&](bool there) {
    auto sums = product(x, unpack(source.tensors()));
    if (there) adapters.add(sums, x, {0, -1, -1, 0});
    return sums;
  };
  Q4_REQUIRE_OK(run_with());
  CHECK(relative_error(out, sums_with(true)) <= tolerance(DType::kF16));
  Q4_REQUIRE_OK(q4_lora_remove(runtime, lora, 1));
  Q4_REQUIRE_OK(run_with());
  CHECK(relative_error(out, sums_with(false)) <= tolerance(DType::kF16));
  Q4_REQUIRE_OK(q4_lora_destroy(runtime, lora));
  rejects({"q4_plan_run_inputs", "inputs.adapters", "destroyed"}, run_with());
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
