// Numerics ids: equal where results have the same bits, different where they may not.
#include <doctest/doctest.h>

#include <q4/q4.hpp>

#include "cache_support.hpp"
#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

TEST_CASE("numerics ids: what decides results changes them, and nothing else") {
  const Runtime runtime, portable({.cpu_isa = "portable"});
  const std::vector<WarmupShape> shapes = {{256, 64}, {64, 256}};
  const auto id = [&](const Runtime& of, const PlanOptions& options) { return of.numerics_id({}, shapes, options); };
  const std::string first = id(runtime, {});
  CHECK(first.size() == 16);
  CHECK(first == id(Runtime(), {}));
  CHECK(first == runtime.numerics_id({}, std::vector<WarmupShape>{{64, 256}, {256, 64}}, {}));
  CHECK(first != runtime.numerics_id({}, std::vector<WarmupShape>{{64, 256}}, {}));
  CHECK(first != id(portable, {}));
  CHECK(first != id(runtime, {.activation = DType::kBF16}));
  CHECK(first != id(runtime, {.math = Math::kInt8}));
  CHECK(first != id(runtime, {.max_m = 64}));
  CHECK(first != id(runtime, {.reconstruct_from = -1}));
  CHECK(error_of([&] { id(runtime, {.max_m = -1}); }).find("max_m") != std::string::npos);
}

TEST_CASE("numerics ids: of a checkpoint, whatever order its files are in") {
  const TempFolder one, other;
  make_checkpoint(one.path(), {.matrix = {.k = 256, .n = 512}, .layers = 2});
  make_checkpoint(other.path(), {.matrix = {.k = 256, .n = 512, .seed = 5}, .shards = 3});
  const Runtime runtime;
  const std::string id = runtime.numerics_id({}, Checkpoint::open(one.path()), {});
  CHECK(id == runtime.numerics_id({}, Checkpoint::open(other.path()), {}));
  CHECK(id == runtime.numerics_id({}, std::vector<WarmupShape>{{256, 512}, {256, 256}, {512, 256}}, {}));
}

TEST_CASE("numerics ids: q4-info --same-as finds a machine that computes otherwise") {
  const TempFolder folder;
  make_checkpoint(folder.path(), {.matrix = {.k = 256, .n = 512}});
  const std::string no_gpu = "Q4_CUDA_DRIVER=none Q4_HIP_RUNTIME=none ", model = "q4-info " + folder.path();
  const auto written = cache::run_tool(model + " --json", no_gpu);
  REQUIRE(written.status == 0);
  write_file(folder / "here.json", written.out);
  const std::string compare = model + " --same-as " + (folder / "here.json");
  CHECK(cache::run_tool(compare, no_gpu).status == 0);
  const auto other = cache::run_tool(compare, no_gpu + "Q4_CPU_ISA=portable");
  CHECK(other.status == 1);
  CHECK(other.out.find("results have other bits") != std::string::npos);
  write_file(folder / "none.json", "{\"numerics_ids\": {}}");
  CHECK(cache::run_tool(model + " --same-as " + (folder / "none.json"), no_gpu).status == 2);
  CHECK(cache::run_tool("q4-info --same-as " + (folder / "here.json"), no_gpu).status == 2);
}

}  // namespace
}  // namespace q4::test
