// The C ABI: a product, handles that are dead or foreign, structures of other sizes, and every bad input.
#include <q4/q4.h>

#include <doctest/doctest.h>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <q4/checkpoint.hpp>
#include <thread>

#include "capi_support.hpp"
#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

TEST_CASE_FIXTURE(Fixture, "the C ABI multiplies") {
  const auto reference = product(x, unpack(source.tensors()));
  Q4_REQUIRE_OK(run(plan));
  CHECK(relative_error(out, reference) <= tolerance(DType::kF16));

  // A workspace of the caller, and a plan that outlives its matrix's handle.
  Q4_REQUIRE_OK(q4_matrix_destroy(runtime, matrix));
  std::size_t bytes = 1;
  Q4_REQUIRE_OK(q4_plan_workspace_bytes(runtime, plan, &bytes));
  std::vector<std::byte> workspace(bytes + 256);
  void* start = workspace.data();
  std::size_t space = workspace.size();
  std::align(256, bytes, start, space);
  out.poison();
  Q4_REQUIRE_OK(q4_plan_run_workspace(runtime, plan, nullptr, x.data(), 0, out.data(), 0, 4, start));
  CHECK(relative_error(out, reference) <= tolerance(DType::kF16));
  out.poison();
  Q4_REQUIRE_OK(run(plan, 0));
  CHECK(std::isnan(out.at(0, 0)));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI tells what there is") {
  q4_matrix_info info = {};
  info.size = sizeof info;
  Q4_REQUIRE_OK(q4_matrix_get(runtime, matrix, &info));
  CHECK((info.k == 256 && info.n == 64 && info.group_size == 128 && info.groups == 2));
  CHECK((info.act_order == 1 && info.has_bias == 1 && info.zeros == Q4_ZEROS_V1 && info.device.backend == Q4_CPU));
  CHECK(info.bytes >= 256 * 64 / 2);

  std::size_t count = 0, length = 0;
  Q4_REQUIRE_OK(q4_device_count(runtime, &count));
  REQUIRE(count >= 1);
  q4_device_info device = {};
  device.size = sizeof device;
  Q4_REQUIRE_OK(q4_device_get(runtime, count - 1, &device));
  CHECK(device.device.backend == Q4_CPU);
  CHECK(device.compute_units >= 1);
  CHECK(std::strlen(device.name) > 0);
  rejects({"q4_device_get", "index", std::to_string(count)}, q4_device_get(runtime, count, &device));
  q4_device best = {-1, -1};
  Q4_REQUIRE_OK(q4_best_device(runtime, &best));
  Q4_REQUIRE_OK(q4_device_parse("hip:1", &best));
  CHECK((best.backend == Q4_HIP && best.ordinal == 1));
  rejects({"q4_device_parse", "tpu"}, q4_device_parse("tpu", &best));

  // Text results: the length is asked for, a short buffer gets a prefix with its terminator, nothing is written past
  // it.
  Q4_REQUIRE_OK(q4_plan_tactic(runtime, plan, 1, nullptr, 0, &length));
  REQUIRE(length > 3);
  std::string text(length + 2, '#');
  Q4_REQUIRE_OK(q4_plan_tactic(runtime, plan, 1, text.data(), 4, nullptr));
  CHECK((text[3] == '\0' && text[4] == '#'));
  Q4_REQUIRE_OK(q4_plan_tactic(runtime, plan, 1, text.data(), length + 1, nullptr));
  CHECK((std::strlen(text.c_str()) == length && text[length + 1] == '#'));
  rejects({"q4_plan_tactic", "text", "null", "9"}, q4_plan_tactic(runtime, plan, 1, nullptr, 9, nullptr));
  Q4_REQUIRE_OK(q4_backend_reason(runtime, Q4_CPU, nullptr, 0, &length));
  CHECK(length == 0);
  rejects({"q4_backend_reason", "backend", "7"}, q4_backend_reason(runtime, 7, nullptr, 0, &length));
  CHECK(std::string(q4_version()).find('.') != std::string::npos);
  CHECK(std::string(q4_status_name(Q4_OUT_OF_MEMORY)) == "out_of_memory");
  CHECK(std::string(q4_status_name(77)) == "unknown");
}

TEST_CASE_FIXTURE(Fixture, "dead and foreign handles are errors") {
  Fixture other;
  CHECK(other.matrix != matrix);
  const Words foreign = {"q4_plan_run", "plan", "another runtime"};
  rejects(foreign, run(other.plan));
  rejects(foreign, run(matrix));  // another kind
  rejects(foreign, run(plan + 1));
  rejects(foreign, run(plan ^ std::uint64_t{1} << 40));
  rejects(foreign, run(~std::uint64_t{0}));
  rejects({"q4_plan_run", "plan", "0x0", "no handle"}, run(0));
  rejects({"q4_plan_create", "matrix", "another runtime"}, q4_plan_create(runtime, other.matrix, nullptr, &plan));
  Q4_REQUIRE_OK(run(plan));  // a call that failed wrote no result: `plan` is the old one

  const q4_plan dead = plan;
  Q4_REQUIRE_OK(q4_plan_destroy(runtime, plan));
  const Words destroyed = {"plan", "was destroyed"};
  rejects(destroyed, run(dead));
  rejects(destroyed, q4_plan_destroy(runtime, dead));
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, nullptr, &plan));  // takes the same slot
  CHECK(static_cast<std::uint32_t>(plan) == static_cast<std::uint32_t>(dead));
  rejects(destroyed, run(dead));
  Q4_REQUIRE_OK(run(plan, 1));

  Q4_REQUIRE_OK(q4_matrix_destroy(runtime, matrix));
  q4_matrix_info info = {};
  info.size = sizeof info;
  rejects({"q4_plan_create", "matrix", "was destroyed"}, q4_plan_create(runtime, matrix, nullptr, &plan));
  rejects({"q4_matrix_get", "was destroyed"}, q4_matrix_get(runtime, matrix, &info));
  rejects({"q4_matrix_destroy", "was destroyed"}, q4_matrix_destroy(runtime, matrix));
  std::size_t count = 0;
  rejects({"q4_checkpoint_count", "no handle"}, q4_checkpoint_count(runtime, 0, &count));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI rejects null") {
  q4_runtime* const none = nullptr;
  std::size_t size = 0;
  q4_device device = kHere;
  const Words runtime_null = {"runtime is null"};
  rejects({"q4_runtime_create", "runtime is null"}, q4_runtime_create(nullptr, nullptr));
  rejects(runtime_null, q4_device_count(none, &size));
  rejects(runtime_null, q4_best_device(none, &device));
  rejects(runtime_null, q4_matrix_from_gptq(none, kHere, &tensors.all, &matrix));
  rejects(runtime_null, q4_matrix_destroy(none, matrix));
  rejects(runtime_null, q4_plan_create(none, matrix, nullptr, &plan));
  rejects(runtime_null, q4_plan_run(none, plan, nullptr, x.data(), 0, out.data(), 0, 4));
  rejects(runtime_null, q4_plan_destroy(none, plan));
  rejects({"q4_matrix_from_gptq", "tensors is null"}, q4_matrix_from_gptq(runtime, kHere, nullptr, &matrix));
  rejects({"q4_matrix_from_gptq", "matrix is null"}, q4_matrix_from_gptq(runtime, kHere, &tensors.all, nullptr));
  rejects({"q4_plan_create", "plan is null"}, q4_plan_create(runtime, matrix, nullptr, nullptr));
  rejects({"q4_plan_workspace_bytes", "bytes is null"}, q4_plan_workspace_bytes(runtime, plan, nullptr));
  rejects({"q4_matrix_get", "info is null"}, q4_matrix_get(runtime, matrix, nullptr));
  rejects({"q4_checkpoint_open", "path is null"}, q4_checkpoint_open(runtime, nullptr, &matrix));
  rejects({"q4_device_parse", "text is null"}, q4_device_parse(nullptr, &device));
  q4_runtime_destroy(nullptr);
}

TEST_CASE_FIXTURE(Fixture, "structures of other sizes") {
  q4_plan_options options = {};
  q4_plan made = 0;
  rejects({"options.size", "0", std::to_string(sizeof options)}, q4_plan_create(runtime, matrix, &options, &made));
  options.size = offsetof(q4_plan_options, activation);  // an older q4.h: only max_m
  options.max_m = 2;
  options.activation = 99;
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &made));
  Q4_REQUIRE_OK(run(made, 2));
  rejects({"max_m"}, run(made, 3));
  struct {
    q4_plan_options known;
    std::int64_t more;
  } newer = {};
  newer.known.size = sizeof newer;
  Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &newer.known, &made));
  newer.more = 5;
  rejects({"options.size", "newer"}, q4_plan_create(runtime, matrix, &newer.known, &made));

  q4_matrix_info info = {};
  info.size = offsetof(q4_matrix_info, group_size);
  info.groups = -7;
  Q4_REQUIRE_OK(q4_matrix_get(runtime, matrix, &info));
  CHECK((info.n == 64 && info.groups == -7 && info.size == offsetof(q4_matrix_info, group_size)));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI rejects bad tensors") {
  for (auto& bad : bad_tensors()) {
    GptqTensors spoiled = source.tensors();
    bad.spoil(spoiled);
    to_c(spoiled, tensors);
    bad.words.push_back("q4_matrix_from_gptq");
    q4_matrix made = 0;
    rejects(bad.what, static_cast<q4_status>(bad.code), bad.words,
            q4_matrix_from_gptq(runtime, kHere, &tensors.all, &made));
    CHECK(made == 0);
  }
  to_c(source.tensors(), tensors);
  tensors.all.zeros = 3;
  rejects({"tensors.zeros", "3"}, q4_matrix_from_gptq(runtime, kHere, &tensors.all, &matrix));
  tensors.all.zeros = Q4_ZEROS_V1;
  tensors.all.scales.dtype = -1;
  rejects({"tensors.scales.dtype", "-1"}, q4_matrix_from_gptq(runtime, kHere, &tensors.all, &matrix));
  tensors.all.scales.dtype = Q4_F16;
  rejects({"device.backend", "5"}, q4_matrix_from_gptq(runtime, {5, 0}, &tensors.all, &matrix));
  rejects("device", Q4_NOT_FOUND, {"cuda:99"}, q4_matrix_from_gptq(runtime, {Q4_CUDA, 99}, &tensors.all, &matrix));
  rejects({"q4_matrix_from_awq", "g_idx"}, q4_matrix_from_awq(runtime, kHere, &tensors.all, &matrix));

  const AwqMatrix awq = to_awq(make_gptq({.k = 256, .n = 64}));
  to_c(awq.tensors(), tensors);
  Q4_REQUIRE_OK(q4_matrix_from_awq(runtime, kHere, &tensors.all, &matrix));
  tensors.all.qweight.rows = 252;
  rejects({"q4_matrix_from_awq", "252"}, q4_matrix_from_awq(runtime, kHere, &tensors.all, &matrix));
}

TEST_CASE_FIXTURE(Fixture, "the C ABI rejects bad plans and runs") {
  const auto with = [&](auto&& spoil) {
    q4_plan_options options = {};
    options.size = sizeof options;
    spoil(options);
    q4_plan made = 0;
    return q4_plan_create(runtime, matrix, &options, &made);
  };
  rejects({"max_m", "-1"}, with([](q4_plan_options& o) { o.max_m = -1; }));
  rejects({"activation", "int32"}, with([](q4_plan_options& o) { o.activation = Q4_I32; }));
  rejects({"options.activation", "17"}, with([](q4_plan_options& o) { o.activation = 17; }));
  rejects({"options.math", "9"}, with([](q4_plan_options& o) { o.math = 9; }));
  rejects({"options.gather", "-1"}, with([](q4_plan_options& o) { o.gather = -1; }));
  rejects({"reconstruct_from", "-2"}, with([](q4_plan_options& o) { o.reconstruct_from = -2; }));
  rejects({"tactic", "nonsense"}, with([](q4_plan_options& o) { o.tactic = "nonsense"; }));

  for (auto& bad : bad_runs(false)) {
    RunCall c{x.data(), 0, out.data(), 0, 4};
    bad.spoil(c);
    bad.words.push_back("q4_plan_run");
    rejects(bad.what, static_cast<q4_status>(bad.code), bad.words,
            q4_plan_run(runtime, plan, nullptr, c.x, c.x_stride, c.out, c.out_stride, c.m));
  }
  rejects({"q4_plan_run_workspace", "workspace", "null"},
          q4_plan_run_workspace(runtime, plan, nullptr, x.data(), 0, out.data(), 0, 4, nullptr));
  CHECK(std::isnan(out.at(0, 0)));
  const std::int32_t map[] = {1, 256};
  rejects({"q4_column_remap", "x_map[1]", "256"},
          q4_column_remap(runtime, kHere, nullptr, x.data(), 0, 256, out.data(), 0, map, 2, 4));
  Q4_REQUIRE_OK(q4_column_remap(runtime, kHere, nullptr, x.data(), 0, 256, out.data(), 0, map, 1, 4));
  CHECK(out.at(0, 0) == x.at(0, 1));
}

TEST_CASE("runtime options of the C ABI") {
  static int messages = 0;
  q4_runtime_options options = {};
  options.size = sizeof options;
  options.cache_mode = 4;
  q4_runtime* runtime = nullptr;
  rejects({"q4_runtime_create", "options.cache_mode", "4"}, q4_runtime_create(&options, &runtime));
  CHECK(runtime == nullptr);
  options.cache_mode = Q4_CACHE_OFF;
  options.tuning_file_count = 1;
  rejects({"tuning_files is null", "1"}, q4_runtime_create(&options, &runtime));
  const char* missing[] = {"/nonexistent/tuning.jsonl"};
  options.tuning_files = missing;
  options.log = [](void* user, q4_log_level, const char*) { ++*static_cast<int*>(user); };
  options.log_user = &messages;
  Q4_REQUIRE_OK(q4_runtime_create(&options, &runtime));
  const GptqMatrix source = make_gptq({});
  CTensors tensors;
  to_c(source.tensors(), tensors);
  q4_matrix matrix = 0;
  q4_plan plan = 0;
  Q4_REQUIRE_OK(q4_matrix_from_gptq(runtime, kHere, &tensors.all, &matrix));
  // Tuning files are read at the first plan; one that is named must be there.
  rejects("tuning file", Q4_NOT_FOUND, {"q4_plan_create", missing[0]}, q4_plan_create(runtime, matrix, nullptr, &plan));
  q4_runtime_destroy(runtime);
}

TEST_CASE_FIXTURE(Fixture, "the C ABI multiplies on an embedder's threads, on a named instruction set, with int8") {
  static int calls = 0;
  q4_runtime_options options = {};
  options.size = sizeof options;
  options.cpu_threads = 3;
  options.cpu_isa = "portable";
  options.parallel_for_user = &calls;
  options.parallel_for = [](void* user, int32_t tasks, void (*task)(void*, int32_t), void* state) {
    ++*static_cast<int*>(user);
    for (int32_t i = 0; i < tasks; ++i) task(state, i);
  };
  q4_runtime* other = nullptr;
  Q4_REQUIRE_OK(q4_runtime_create(&options, &other));
  q4_device_info info = {};
  info.size = sizeof info;
  size_t count = 0;
  Q4_REQUIRE_OK(q4_device_count(other, &count));
  Q4_REQUIRE_OK(q4_device_get(other, count - 1, &info));
  CHECK(std::string(info.arch) == "portable");
  CHECK(info.compute_units == 3);
  const GptqMatrix wide = make_gptq({.n = 256});  // several tiles
  HostRows wide_out(DType::kF16, 4, 256);
  to_c(wide.tensors(), tensors);
  q4_matrix weights = 0;
  q4_plan quantized = 0;
  Q4_REQUIRE_OK(q4_matrix_from_gptq(other, kHere, &tensors.all, &weights));
  q4_plan_options plan_options = {};
  plan_options.size = sizeof plan_options;
  plan_options.max_m = 4;
  plan_options.math = Q4_MATH_INT8;
  Q4_REQUIRE_OK(q4_plan_create(other, weights, &plan_options, &quantized));
  Q4_REQUIRE_OK(q4_plan_run(other, quantized, nullptr, x.data(), 0, wide_out.data(), 0, 4));
  CHECK(calls > 0);
  const double error = relative_error(wide_out, product(x, unpack(wide.tensors())));
  CHECK(error > 1e-3);
  CHECK(error < 1e-2);
  q4_runtime_destroy(other);
}

TEST_CASE_FIXTURE(Fixture, "the C ABI loads checkpoints") {
  const TempFolder folder;
  const auto made =
      make_checkpoint(folder.path(), {.format = CheckpointSpec::Format::kAwq, .matrix = {.k = 256, .n = 64}});
  q4_checkpoint checkpoint = 0;
  Q4_REQUIRE_OK(q4_checkpoint_open(runtime, folder.path().c_str(), &checkpoint));
  std::size_t count = 0;
  Q4_REQUIRE_OK(q4_checkpoint_count(runtime, checkpoint, &count));
  REQUIRE(count == made.size());
  for (std::size_t i = 0; i < count; ++i) {
    char name[64];
    Q4_REQUIRE_OK(q4_checkpoint_name(runtime, checkpoint, i, name, sizeof name, nullptr));
    CHECK(name == made[i].name);
    q4_checkpoint_matrix entry = {};
    entry.size = sizeof entry;
    Q4_REQUIRE_OK(q4_checkpoint_entry(runtime, checkpoint, i, &entry));
    const MatrixSpec& spec = made[i].gptq.spec;
    CHECK(entry.name == made[i].name);
    const Checkpoint same = Checkpoint::open(folder.path());
    const MatrixEntry& listed = same.find(entry.name);
    CHECK((entry.k == spec.k && entry.n == spec.n));
    CHECK((entry.group_size == listed.group_size && entry.groups == listed.groups && entry.groups > 0));
    CHECK((entry.has_g_idx == 0 && entry.has_bias == 0 && entry.awq == 1 && entry.supported == 1));
    std::size_t length = 9;
    Q4_REQUIRE_OK(q4_checkpoint_reason(runtime, checkpoint, i, nullptr, 0, &length));
    CHECK(length == 0);
    if (made[i].gptq.spec.k != 256 || made[i].gptq.spec.n != 64) continue;
    Q4_REQUIRE_OK(q4_matrix_from_checkpoint(runtime, kHere, checkpoint, name, Q4_ZEROS_AUTO, &matrix));
    Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, nullptr, &plan));
    Q4_REQUIRE_OK(run(plan, 1));
    const auto reference = product(x, unpack(made[i].gptq.tensors()));
    CHECK(out.at(0, 63) == doctest::Approx(reference[63]).epsilon(0.01));
  }
  q4_checkpoint_info said = {};
  said.size = sizeof said;
  Q4_REQUIRE_OK(q4_checkpoint_get(runtime, checkpoint, &said));
  CHECK((said.awq == 1 && said.group_size == 128 && said.zeros == Q4_ZEROS_V2 && said.matrices == count));
  q4_checkpoint_matrix entry = {};
  rejects({"q4_checkpoint_entry", "entry.size", "0"}, q4_checkpoint_entry(runtime, checkpoint, 0, &entry));
  rejects({"q4_checkpoint_entry", "entry is null"}, q4_checkpoint_entry(runtime, checkpoint, 0, nullptr));
  rejects({"q4_checkpoint_entry", "index", std::to_string(count)},
          q4_checkpoint_entry(runtime, checkpoint, count, &entry));
  rejects({"q4_checkpoint_get", "no handle"}, q4_checkpoint_get(runtime, 0, &said));
  rejects({"q4_checkpoint_name", "index", std::to_string(count)},
          q4_checkpoint_name(runtime, checkpoint, count, nullptr, 0, nullptr));
  rejects("name", Q4_NOT_FOUND, {"q4_matrix_from_checkpoint", "model.layers.0.mlp.gate"},
          q4_matrix_from_checkpoint(runtime, kHere, checkpoint, "model.layers.0.mlp.gate", 0, &matrix));
  rejects({"zeros", "8"}, q4_matrix_from_checkpoint(runtime, kHere, checkpoint, made[0].name.c_str(), 8, &matrix));
  Q4_REQUIRE_OK(q4_checkpoint_destroy(runtime, checkpoint));
  rejects({"q4_checkpoint_count", "was destroyed"}, q4_checkpoint_count(runtime, checkpoint, &count));
  rejects("path", Q4_NOT_FOUND, {"q4_checkpoint_open", "/nonexistent"},
          q4_checkpoint_open(runtime, "/nonexistent", &checkpoint));
  write_file(folder / "broken.safetensors", "not a safetensors file");
  rejects("file", Q4_CORRUPT, {"q4_checkpoint_open", "broken.safetensors"},
          q4_checkpoint_open(runtime, (folder / "broken.safetensors").c_str(), &checkpoint));
}

TEST_CASE("errors are a thread's own") {
  q4_device device;
  rejects({"tpu"}, q4_device_parse("tpu", &device));
  std::thread([&] {
    CHECK(std::string(q4_last_error()).empty());
    rejects({"npu"}, q4_device_parse("npu", &device));
  }).join();
  CHECK(std::string(q4_last_error()).find("tpu") != std::string::npos);
}

}  // namespace
}  // namespace q4::test
