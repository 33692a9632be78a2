// Bad input through the C++ API: each is an error that names call, argument, value and limit.
#include "bad_input.hpp"

#include <doctest/doctest.h>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <q4/q4.hpp>

#include "rejects.hpp"
#include "report.hpp"

namespace q4::test {
namespace {

const Device kHere;  // the CPU

struct Fixture {
  Runtime runtime;
  GptqMatrix source = make_gptq(bad_input_spec());
  QuantizedMatrix matrix = QuantizedMatrix::from_gptq(runtime, kHere, source.tensors());
  MatmulPlan plan{runtime, matrix, {.max_m = 4}};
  HostRows x = random_rows(DType::kF16, 4, 256), out{DType::kF16, 4, 64};
};

TEST_CASE_FIXTURE(Fixture, "from_gptq rejects bad tensors") {
  for (auto& bad : bad_tensors()) {
    GptqTensors tensors = source.tensors();
    bad.spoil(tensors);
    bad.words.push_back("from_gptq");
    rejects(bad.what, bad.code, bad.words, [&] { QuantizedMatrix::from_gptq(runtime, kHere, tensors); });
  }
  for (const Device device :
       {Device{BackendKind::kCpu, 1}, Device{BackendKind::kCuda, 99}, Device{BackendKind::kCpu, -1}})
    rejects("device", ErrorCode::kNotFound, {device.str(), "cpu"},
            [&] { QuantizedMatrix::from_gptq(runtime, device, source.tensors()); });
}

TEST_CASE_FIXTURE(Fixture, "from_awq rejects bad tensors") {
  const auto awq = to_awq(make_gptq({.k = 256, .n = 64}));
  const auto with = [&](auto&& spoil) {
    return [&, spoil] {
      AwqTensors tensors = awq.tensors();
      spoil(tensors);
      QuantizedMatrix::from_awq(runtime, kHere, tensors);
    };
  };
  CHECK_NOTHROW(with([](AwqTensors&) {})());
  rejects("k", {"from_awq", "k = 252", "8"}, with([](AwqTensors& t) { t.qweight.rows = 252; }));
  rejects("dtype", {"from_awq", "qweight", "fp32", "int32"},
          with([](AwqTensors& t) { t.qweight.dtype = DType::kF32; }));
  rejects("groups", {"from_awq", "qzeros", "1", "2"}, with([](AwqTensors& t) { t.qzeros.rows = 1; }));
  rejects("columns", {"from_awq", "scales", "32", "64"}, with([](AwqTensors& t) { t.scales.cols = 32; }));
  rejects("null", {"from_awq", "scales", "null"}, with([](AwqTensors& t) { t.scales.data = nullptr; }));
}

TEST_CASE_FIXTURE(Fixture, "MatmulPlan rejects bad options") {
  const auto with = [&](auto&& spoil) {
    return [&, spoil] {
      PlanOptions options;
      spoil(options);
      MatmulPlan(runtime, matrix, options);
    };
  };
  CHECK_NOTHROW(with([](PlanOptions&) {})());
  rejects("max_m", {"MatmulPlan", "max_m", "0"}, with([](PlanOptions& o) { o.max_m = 0; }));
  rejects("max_m", {"MatmulPlan", "max_m", "-3"}, with([](PlanOptions& o) { o.max_m = -3; }));
  rejects("max_m", {"MatmulPlan", "max_m", "4611686018427387904"},
          with([](PlanOptions& o) { o.max_m = std::int64_t{1} << 62; }));
  rejects("activation", {"MatmulPlan", "activation", "int32", "fp16"},
          with([](PlanOptions& o) { o.activation = DType::kI32; }));
  rejects("reconstruct_from", {"MatmulPlan", "reconstruct_from", "-2"},
          with([](PlanOptions& o) { o.reconstruct_from = -2; }));
  rejects("int8 for the BLAS", {"MatmulPlan", "int8", "cpu", "reconstruct_from", "8"},
          with([](PlanOptions& o) { o.math = Math::kInt8, o.reconstruct_from = 8; }));
  rejects("tactic", {"MatmulPlan", "tactic", "no such"}, with([](PlanOptions& o) { o.tactic = "no such"; }));
  rejects("empty matrix", {"MatmulPlan", "matrix", "empty"}, [&] { MatmulPlan(runtime, QuantizedMatrix(), {}); });
  rejects("empty matrix", {"QuantizedMatrix", "empty"}, [] { (void)QuantizedMatrix().k(); });
  rejects("empty plan", {"MatmulPlan::run", "empty"}, [&] { MatmulPlan().run({}, {x.data()}, {out.data()}, 1); });
}

TEST_CASE_FIXTURE(Fixture, "MatmulPlan::run rejects bad calls and writes nothing") {
  std::vector<std::byte> workspace(plan.workspace_bytes() + 512);
  void* start = workspace.data();
  std::size_t space = workspace.size();
  void* aligned = std::align(256, plan.workspace_bytes() + 128, start, space);
  const RunCall good{x.data(), 0, out.data(), 0, 4};
  const HostRows x_before = x;
  for (auto& bad : bad_runs(false)) {
    RunCall c = good;
    bad.spoil(c);
    bad.words.push_back("MatmulPlan::run");
    rejects(bad.what, bad.code, bad.words, [&] { plan.run({}, {c.x, c.x_stride}, {c.out, c.out_stride}, c.m); });
    rejects(bad.what, bad.code, bad.words, [&] {
      plan.run({}, {c.x, c.x_stride}, {c.out, c.out_stride}, c.m, aligned);
    });
  }
  rejects("workspace", {"MatmulPlan::run", "workspace", "null"},
          [&] { plan.run({}, {good.x}, {good.out}, 4, nullptr); });
  rejects("workspace", {"MatmulPlan::run", "workspace", "align", "256"},
          [&] { plan.run({}, {good.x}, {good.out}, 4, static_cast<char*>(aligned) + 128); });
  for (std::int64_t r = 0; r < 4; ++r) CHECK(std::isnan(out.at(r, 63)));
  plan.run({}, {nullptr}, {nullptr}, 0);  // m = 0 does nothing, whatever the pointers
  plan.run({}, {good.x}, {good.out}, 0);
  CHECK(std::isnan(out.at(0, 0)));
  plan.run({}, {good.x}, {good.out}, 4, aligned);
  CHECK(relative_error(out, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
  CHECK(x.at(3, 255) == x_before.at(3, 255));
}

TEST_CASE_FIXTURE(Fixture, "MatmulPlan::run rejects bad calls on a GPU") {
  const Device gpu = runtime.best_device();
  if (gpu.kind == BackendKind::kCpu) return skip("bad calls of MatmulPlan::run on a GPU: there is none");
  const MatmulPlan on_gpu(runtime, QuantizedMatrix::from_gptq(runtime, gpu, source.tensors()), {.max_m = 4});
  for (auto& bad : bad_runs(true)) {
    RunCall c{x.data(), 0, out.data(), 0, 4};  // host memory: nothing may reach a kernel
    bad.spoil(c);
    rejects(bad.what, bad.code, bad.words, [&] { on_gpu.run({}, {c.x, c.x_stride}, {c.out, c.out_stride}, c.m); });
  }
  on_gpu.run({}, {nullptr}, {nullptr}, 0);
  rejects("int8", {"MatmulPlan", "int8", gpu.str(), "CPU"}, [&] {
    MatmulPlan(runtime, QuantizedMatrix::from_gptq(runtime, gpu, source.tensors()), {.math = Math::kInt8});
  });
}

TEST_CASE_FIXTURE(Fixture, "column_remap rejects bad calls") {
  std::vector<std::int32_t> map(64);
  for (int c = 0; c < 64; ++c) map[c] = 255 - c;
  const auto remap = [&](auto&&... args) { return [&, args...] { column_remap(runtime, kHere, {}, args...); }; };
  const void* from = x.data();
  void* to = out.data();
  column_remap(runtime, kHere, {}, {from}, 256, {to}, map.data(), 64, 4);
  CHECK(out.at(3, 1) == x.at(3, 254));
  const auto reject = [&](const Words& words, ConstRows x_rows, std::int64_t x_cols, Rows new_rows,
                          const std::int32_t* x_map, std::int64_t cols, std::int64_t rows) {
    Words all = words;
    all.push_back("column_remap");
    rejects(words[0], all, remap(x_rows, x_cols, new_rows, x_map, cols, rows));
  };
  reject({"x is null"}, {}, 256, {to}, map.data(), 64, 4);
  reject({"x_new is null"}, {from}, 256, {}, map.data(), 64, 4);
  reject({"x_map is null"}, {from}, 256, {to}, nullptr, 64, 4);
  reject({"rows", "-1"}, {from}, 256, {to}, map.data(), 64, -1);
  reject({"cols", "-8"}, {from}, 256, {to}, map.data(), -8, 4);
  reject({"x_cols", "-256"}, {from}, -256, {to}, map.data(), 64, 4);
  reject({"x", "stride", "255", "256"}, {from, 255}, 256, {to}, map.data(), 64, 4);
  reject({"x_new", "stride", "63", "64"}, {from}, 256, {to, 63}, map.data(), 64, 4);
  reject({"x", "align", "2"}, {shifted(from, 1)}, 255, {to}, map.data(), 64, 4);
  reject({"overlap"}, {from}, 256, {const_cast<void*>(from)}, map.data(), 64, 4);
  constexpr std::int64_t kFar = std::int64_t{1} << 40, kMany = std::int64_t{1} << 62;
  reject({"x has", "stride", "1099511627776", "16777216 rows"}, {from, kFar}, 256, {to}, map.data(), 64, 1 << 24);
  reject({"x_new has", "stride", "64", "4611686018427387904 rows"}, {from}, 0, {to}, map.data(), 64, kMany);
  map[5] = 256;
  reject({"x_map[5]", "256"}, {from}, 256, {to}, map.data(), 64, 4);
  map[5] = -1;
  reject({"x_map[5]", "-1"}, {from}, 256, {to}, map.data(), 64, 4);
}

TEST_CASE_FIXTURE(Fixture, "NaN and infinite scales are allowed and propagate") {
  GptqMatrix spoiled = make_gptq({.k = 256, .n = 64, .group_size = 128});
  spoiled.scales[5] = half_bits(std::numeric_limits<double>::quiet_NaN());
  spoiled.scales[64 + 9] = half_bits(std::numeric_limits<double>::infinity());
  for (const std::int64_t threshold : {-1, 1}) {
    const MatmulPlan p(runtime, QuantizedMatrix::from_gptq(runtime, kHere, spoiled.tensors()),
                       {.max_m = 4, .reconstruct_from = threshold});
    out.poison();
    p.run({}, {x.data()}, {out.data()}, 4);
    for (std::int64_t r = 0; r < 4; ++r)
      for (std::int64_t c = 0; c < 64; ++c) CHECK_MESSAGE(std::isfinite(out.at(r, c)) == (c != 5 && c != 9), r, " ", c);
    CHECK(std::isnan(out.at(0, 5)));
  }
}

TEST_CASE("devices and text forms") {
  const Runtime runtime;
  CHECK(Device::parse("cuda").str() == "cuda:0");
  CHECK(Device::parse("hip:3") == Device{BackendKind::kHip, 3});
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99999999999", "cpu:1x", "cuda:0 "})
    rejects(text, {std::string("'") + text + "'", "cuda:N"}, [&] { Device::parse(text); });
  rejects("info", ErrorCode::kNotFound, {"cuda:77", "cpu"}, [&] { (void)runtime.info({BackendKind::kCuda, 77}); });
  rejects("threads", {"cpu_threads", "-2"}, [] { Runtime({.cpu_threads = -2}); });
}

TEST_CASE("without any device best_device is an error") {
  if (Runtime().best_device().kind != BackendKind::kCpu) return skip("no device at all: there is a GPU");
  const char* const before = std::getenv("Q4_CPU_ISA");
  const std::string kept = before ? before : "";
  ::setenv("Q4_CPU_ISA", "no-such", 1);
  const Runtime runtime;
  CHECK(runtime.devices().empty());
  rejects("none", ErrorCode::kNotFound, {"best_device", "q4-info"}, [&] { (void)runtime.best_device(); });
  before ? ::setenv("Q4_CPU_ISA", kept.c_str(), 1) : ::unsetenv("Q4_CPU_ISA");
}

}  // namespace
}  // namespace q4::test
