// The unmodified HIP backend on interpreted AMD GPUs: real hipRTC (or clang) compiles, the code objects are executed by
// tests/amdgpu, products are compared with fp64. The stand-in for the HIP runtime is opened as a real one would be.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>

#include "autotune/stopwatch.hpp"
#include "checkpoint_maker.hpp"
#include "interpreted.hpp"
#include "paths.hpp"

namespace q4::test {
namespace {

void check_products(const DeviceInfo& info, const MatrixSpec& spec, const PlanOptions& given,
                    const std::vector<std::int64_t>& rows, double x_size = 1) {
  const Environment here = stand_in();  // rocBLAS is opened when it is first needed
  const GptqMatrix source = make_gptq(spec);
  const PlainMatrix plain = unpack(source.tensors());
  const auto matrix = QuantizedMatrix::from_gptq(interpreted(), info.device, source.tensors());
  PlanOptions options = given;
  for (const auto m : rows) options.max_m = std::max(options.max_m, m);
  const MatmulPlan plan(interpreted(), matrix, options);
  for (const auto m : rows) {
    HostRows x = random_rows(options.activation, m, spec.k, static_cast<std::uint64_t>(m + 3), spec.k + 8);
    for (std::int64_t r = 0; r < m && x_size != 1; ++r)
      for (std::int64_t c = 0; c < spec.k; ++c) x.set(r, c, x_size * x.at(r, c));
    HostRows out(options.activation, m, spec.n, spec.n + 16);
    multiply(interpreted(), info.device, plan, x, out);
    INFO(info.arch, " m=", m, " ", to_string(options.activation), " ", plan.tactic(m));
    CHECK(relative_error(out, product(x, plain)) <= tolerance(options.activation));
    CHECK(out.padding_intact());
  }
}

PlanOptions with(const std::string& tactic, DType activation = DType::kF16) {
  PlanOptions options;
  options.tactic = tactic, options.activation = activation;
  return options;
}

const MatrixSpec kPlain{.k = 384, .n = 136, .group_size = 128};
const MatrixSpec kPermuted{.k = 320, .n = 72, .group_size = 64, .act_order = ActOrder::kPermuted, .bias = true};
const MatrixSpec kSmallGroups{.k = 200, .n = 48, .group_size = 8, .zeros = ZeroFormat::kV2};

/// What plans choose by themselves, for both types.
void check_defaults(const char* target) {
  const auto info = device(target);
  if (!info) return;
  CHECK(info->name == std::string("interpreted ") + target);
  check_products(*info, kPlain, {}, {1, 2, 3, 8, 17, 33});
  PlanOptions bf16;
  bf16.activation = DType::kBF16;
  check_products(*info, kPermuted, bf16, {1, 16});
}

/// One kernel each: half2 and fp32, act-order gathered inside and before, groups of every kind, m below and above a
/// tile.
void check_tactics(const char* target) {
  const auto info = device(target);
  if (!info) return;
  check_products(*info, kPermuted, with("gemv half2=0 rows=4 tiles=1 warps=4"), {3, 9});
  check_products(*info, kSmallGroups, with("gemv half2=1 rows=2 tiles=4 warps=8"), {1, 5});
  check_products(*info, kSmallGroups, with("tile half2=1 rows=64"), {5, 70});
  check_products(*info, kPermuted, with("tile half2=0 rows=32"), {16, 33});
  check_products(*info, kPermuted, with("remap+tile half2=0 rows=128", DType::kBF16), {130});
  check_products(*info, kPermuted, with("reconstruct+blas"), {20});
  check_products(*info, kSmallGroups, with("reconstruct+blas", DType::kBF16), {3});
}

/// Old kernels gave AMD users gibberish with half2. Products far beyond fp16 inside, tiny scales, and a NaN in one
/// column.
void check_half2(const char* target) {
  const auto info = device(target);
  if (!info) return;
  MatrixSpec spec{.k = 256, .n = 64, .group_size = 64};
  spec.scale = 0.001;
  for (const char* tactic : {"gemv half2=1", "gemv half2=0", "tile half2=1"})
    check_products(*info, spec, with(tactic), {1, 17}, 15000);
  spec.scale = 0.00002;  // weights are fp16 subnormals
  check_products(*info, spec, with("gemv half2=1"), {2}, 100);
  GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64});
  source.scales[64 + 5] = 0x7e00;  // group 1, column 5
  const auto matrix = QuantizedMatrix::from_gptq(interpreted(), info->device, source.tensors());
  for (const char* tactic : {"gemv half2=1", "tile half2=1"}) {
    const HostRows x = random_rows(DType::kF16, 1, 256);
    HostRows out(DType::kF16, 1, 64);
    multiply(interpreted(), info->device, MatmulPlan(interpreted(), matrix, with(tactic)), x, out);
    for (std::int64_t c = 0; c < 64; ++c) CHECK(std::isnan(out.at(0, c)) == (c == 5));
  }
}

TEST_CASE("interpreted gfx90a: plans as they come agree with fp64") { check_defaults("gfx90a"); }
TEST_CASE("interpreted gfx1030: plans as they come agree with fp64") { check_defaults("gfx1030"); }
TEST_CASE("interpreted gfx1100: plans as they come agree with fp64") { check_defaults("gfx1100"); }
TEST_CASE("interpreted gfx90a: kernels of every kind agree with fp64") { check_tactics("gfx90a"); }
TEST_CASE("interpreted gfx1030: kernels of every kind agree with fp64") { check_tactics("gfx1030"); }
TEST_CASE("interpreted gfx1100: kernels of every kind agree with fp64") { check_tactics("gfx1100"); }
TEST_CASE("interpreted gfx90a: half2 gives no gibberish") { check_half2("gfx90a"); }
TEST_CASE("interpreted gfx1030: half2 gives no gibberish") { check_half2("gfx1030"); }
TEST_CASE("interpreted gfx1100: half2 gives no gibberish") { check_half2("gfx1100"); }

TEST_CASE("interpreted gfx942 and gfx906: the tile kernel agrees with fp64") {
  for (const char* target : {"gfx942", "gfx906"})
    if (const auto info = device(target)) {
      check_products(*info, kPlain, with("tile half2=1 rows=32"), {40});
      check_products(*info, kPlain, with("tile half2=0 rows=32", DType::kBF16), {17});
    }
}

TEST_CASE("interpreted: AWQ tensors, a graph, column_remap, and what the backend says of itself") {
  const auto info = device("gfx1030");
  if (!info) return;
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64});
  const AwqMatrix awq = to_awq(source);
  const auto matrix = QuantizedMatrix::from_awq(interpreted(), info->device, awq.tensors());
  const MatmulPlan plan(interpreted(), matrix, with("gemv half2=0"));
  const HostRows x = random_rows(DType::kF16, 1, 256);
  HostRows out(DType::kF16, 1, 64);
  auto backend = interpreted().impl().open(info->device);
  const Buffer device_x(backend, x.bytes()), device_out(backend, out.bytes());
  backend->copy(device_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
  CHECK(autotune::time_runs(
            *backend, [&](void* stream) { plan.run({stream}, {device_x.get()}, {device_out.get()}, 1); }, 2)
            .size() == 2);
  backend->copy(out.data(), device_out.get(), out.bytes(), CopyKind::kToHost);
  CHECK(relative_error(out, product(x, unpack(awq.tensors()))) <= tolerance(DType::kF16));

  const std::vector<std::int32_t> map = {5, 0, 255, 7, 7};
  const Buffer remapped(backend, 16);
  column_remap(interpreted(), info->device, {}, {device_x.get()}, 256, {remapped.get()}, map.data(), 5, 1);
  HostRows gathered(DType::kF16, 1, 5);
  backend->copy(gathered.data(), remapped.get(), 10, CopyKind::kToHost);
  for (std::int64_t c = 0; c < 5; ++c) CHECK(gathered.at(0, c) == x.at(0, map[static_cast<std::size_t>(c)]));

  const auto reached = backend->reachable(x.data());
  REQUIRE_FALSE(reached);
  CHECK(reached.reason() == "ordinary host memory");
  CHECK_THROWS_AS(plan.run({}, {x.data()}, {device_out.get()}, 1), Error);
  for (const auto& status : interpreted().backends())
    if (status.kind == BackendKind::kHip) {
      CHECK(status.available);
      CHECK(status.components.back().second.find("never run on AMD silicon") != std::string::npos);
    }
}

TEST_CASE("interpreted: a pack that q4-cache built without a GPU serves, and nothing is compiled") {
  for (const char* target : {"gfx90a", "gfx1030", "gfx1100"})
    if (!device(target)) return;
  const TempFolder folder;
  const std::string tool = q4::test::binary_dir() + "/bin/q4-cache ", cache = " --cache-dir " + (folder / "cache"),
                    pack = folder / "amd.q4pack";
  REQUIRE(std::system((tool + "build --target gfx90a/4,gfx1030/4,gfx1100/4 --shape 256x64 --group 64 --max-m 17" +
                       cache + " >" + (folder / "out"))
                          .c_str()) == 0);
  REQUIRE(std::system((tool + "pack --out " + pack + cache + " >" + (folder / "out")).c_str()) == 0);
  const Environment here = stand_in();
  RuntimeOptions options;
  options.packs = {pack}, options.cache_mode = CacheMode::kRequirePrebuilt, options.cache_dir = folder / "empty";
  const Runtime runtime(options);
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64});
  for (const auto& info : runtime.devices()) {
    if (info.arch != "gfx90a" && info.arch != "gfx1030" && info.arch != "gfx1100") continue;
    const auto matrix = QuantizedMatrix::from_gptq(runtime, info.device, source.tensors());
    PlanOptions plan;
    plan.max_m = 17;
    const HostRows x = random_rows(DType::kF16, 17, 256);
    HostRows out(DType::kF16, 17, 64);
    multiply(runtime, info.device, MatmulPlan(runtime, matrix, plan), x, out);
    CHECK(relative_error(out, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
    plan.max_m = 17, plan.activation = DType::kBF16;  // not in the pack
    CHECK_THROWS_AS(MatmulPlan(runtime, matrix, plan), Error);
  }
}

TEST_CASE("HIP without an AMD GPU: no device, and a reason") {
  for (const auto& status : shared_runtime().backends())
    if (status.kind == BackendKind::kHip && !status.available) CHECK(status.reason.size() > 20);
  const Environment here(
      std::vector<std::pair<std::string, std::string>>{{"Q4_HIP_RUNTIME", "/nowhere/libamdhip64.so"}});
  const Runtime runtime;
  for (const auto& status : runtime.backends())
    if (status.kind == BackendKind::kHip) {
      CHECK_FALSE(status.available);
      CHECK(status.reason.find("/nowhere/libamdhip64.so") != std::string::npos);
      CHECK(status.reason.find("Q4_HIP_RUNTIME") != std::string::npos);
    }
}

}  // namespace
}  // namespace q4::test
