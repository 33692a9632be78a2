// What runs for a shape, as a table: (shape, m, GPU) -> tactic, grid, threads, shared memory, workspace. No device is
// needed.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

#include "runtime/base/check.hpp"
#include "runtime/choose/sources.hpp"

namespace q4::test {
namespace {

using choose::Choice;
using choose::Gpu;

const Gpu kB200{"cuda:0", "sm_100a", {100, 148, 232448, 65536}}, kH200{"cuda:0", "sm_90a", {90, 132, 232448, 65536}},
    kA100{"cuda:0", "sm_80", {80, 108, 166912, 65536}}, kT4{"cuda:0", "sm_75", {75, 40, 65536, 65536}},
    kMi250{"hip:0", "gfx90a", {0, 104, 65536, 65536}};

MatrixShape square(bool act_order = false) { return matrix_shape(4096, 4096, 128, act_order, false, false); }

const Choice& at(const std::vector<Choice>& choices, std::int64_t m) {
  return *std::find_if(choices.begin(), choices.end(), [&](const Choice& c) { return m <= c.up_to; });
}

TEST_CASE("choose: what runs for 4096 x 4096 on each kind of GPU") {
  struct Row {
    const Gpu& gpu;
    bool act_order;
    std::int64_t m;
    const char* tactic;
    std::int64_t grid;
    int threads, shared_bytes, cluster;
  };
  const Row rows[] = {
      {kB200, false, 16,
       "decode batch=2 tiles=4 side=2 brick=2 teams=8 depth=2 x_slots=2 cluster=2 stagger=1 early=0 staged=0 share=0",
       128, 512, 109584, 2},
      {kB200, false, 64, "batch rows=32 strips=2 teams=4 stages=4 split=2", 128, 256, 136192, 1},
      {kB200, false, 300, "reconstruct+blas", 2048, 256, 16896, 1},
      {kH200, false, 16, "prefill rows=16 strips=1 teams=2 split=2 share=1 cut=0 fold=1", 128, 384, 0, 2},
      {kH200, false, 4096, "prefill rows=256 strips=2 teams=1 split=1 share=2 cut=0 fold=0", 132, 384, 0, 2},
      {kH200, true, 1,
       "decode batch=1 tiles=2 side=1 brick=2 teams=16 depth=2 x_slots=2 cluster=1 stagger=1 early=0 staged=2 share=0",
       128, 512, 0, 1},
      {kH200, true, 300, "remap+prefill rows=128 strips=2 teams=1 split=1 share=1 cut=0 fold=0", 96, 384, 0, 1},
      {kA100, false, 64, "batch rows=32 strips=2 teams=2 stages=4 split=3", 192, 128, 68096, 1},
      {kA100, false, 300, "batch rows=64 strips=2 teams=1 stages=3 split=2", 320, 64, 38016, 1},
      {kA100, true, 4096, "reconstruct+blas", 2048, 256, 16896, 1},
      {kT4, false, 16, "gemv half2=1 rows=8 tiles=2 warps=8", 256, 256, 8192, 1},
      {kT4, false, 64, "reconstruct+blas", 2048, 256, 16896, 1},
      {kMi250, false, 64, "tile half2=1 rows=32", 128, 256, 26112, 1},
      {kMi250, false, 4096, "tile half2=1 rows=128", 2048, 256, 52224, 1},
  };
  for (const Row& row : rows) {
    CAPTURE(row.gpu.arch);
    CAPTURE(row.m);
    PlanOptions options;
    options.max_m = 4096;
    const auto choices = choose::choose(square(row.act_order), options, row.gpu, nullptr);
    CHECK(choices.back().up_to == 4096);
    const Choice& choice = at(choices, row.m);
    CHECK(choice.tactic.str() == row.tactic);
    CHECK(choice.kernel->grid(choice.blas() ? 4096 : row.m) == row.grid);
    CHECK(choice.shape.threads == row.threads);
    if (row.shared_bytes) CHECK(choice.shape.shared_bytes == row.shared_bytes);
    CHECK(choice.shape.cluster == row.cluster);
    CHECK(choice.shape.overlap_previous == (choice.tactic.remap && row.gpu.limits.arch >= 90));
  }
}

TEST_CASE("choose: workspaces, as plans allocated them") {
  const auto bytes = [](const Gpu& gpu, bool act_order, std::size_t blas, bool lora = false) {
    const MatrixShape shape = square(act_order);
    PlanOptions options;
    options.max_m = 4096;
    const auto choices = choose::choose(shape, options, gpu, nullptr);
    const auto places = choose::layout(shape, options.max_m, choices, blas > 0 || lora);
    CHECK(places.x <= places.w);
    return places.blas + blas;
  };
  constexpr std::size_t kBlas = 32u << 20;
  CHECK(bytes(kB200, false, kBlas) == 75513856);
  CHECK(bytes(kH200, false, 0) == 0);
  CHECK(bytes(kH200, true, 0) == 33570816);              // x of 4096 rows, and the counters that nothing may overwrite
  CHECK(bytes(kH200, false, 0, true) == kCounterBytes);  // the same, before low of LoRA
  CHECK(bytes(kA100, true, kBlas) == 117456896);
  CHECK(bytes(kT4, false, kBlas) == 67125248);
  CHECK(bytes(kMi250, false, 0) == 0);
}

TEST_CASE("choose: ranges follow the record, and a tactic that is not known leaves the default in its place") {
  TuningRecord record;
  record.buckets = {
      {4, "gemv half2=0 rows=4 tiles=1 warps=8"}, {16, "from-the-future speed=9"}, {32, "gemv rows=4 x=1"}};
  record.reconstruct_from = 1000;
  PlanOptions options;
  options.max_m = 2048;
  const auto tuned = choose::choose(square(), options, kA100, &record);
  const auto plain = choose::choose(square(), options, kA100, nullptr);
  CHECK(at(tuned, 3).tactic.str() == "gemv half2=0 rows=4 tiles=1 warps=8");
  CHECK(at(tuned, 2).tactic == at(plain, 2).tactic);  // nearer than half of 4
  CHECK(at(tuned, 16).tactic == at(plain, 16).tactic);
  CHECK(at(tuned, 999).tactic == at(plain, 999).tactic);
  CHECK(at(tuned, 1000).blas());
  const auto reasons = choose::unknown_tactics(record);
  REQUIRE(reasons.size() == 2);
  CHECK(reasons[0].find("m = 16") != std::string::npos);
  CHECK(reasons[0].find("from-the-future") != std::string::npos);
  CHECK(reasons[1].find("'x=1'") != std::string::npos);
}

TEST_CASE("choose: no text of a tactic makes a Config divide by zero") {
  // Each tunable of each kernel as 0, -1 and something large: usable or an error, never a crash.
  std::size_t refused = 0;
  for (const auto* kernel : choose::matmul_kernels())
    for (const auto& [field, value] : kernel->fields())
      for (const int bad : {0, -1, 1 << 20}) {
        PlanOptions options;
        options.tactic = std::string(kernel->name) + " " + field + "=" + std::to_string(bad);
        CAPTURE(options.tactic);
        try {
          const auto choices = choose::choose(square(), options, kA100, nullptr);
          CHECK(choices.size() == 1);
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::kInvalidArgument);
          ++refused;
        }
      }
  CHECK(refused > 50);
}

TEST_CASE("choose: what a plan loads is listed once each, and is what the tactics of its ranges say") {
  PlanOptions options;
  options.max_m = 4096;
  const MatrixShape shape = square(true);
  const auto choices = choose::choose(shape, options, kA100, nullptr);
  const auto sources = choose::sources(shape, choices, kA100.limits);
  std::set<std::string> texts, names;
  for (const auto& source : sources)
    texts.insert(source.text), names.insert(source.name.substr(0, source.name.find(' ')));
  CHECK(texts.size() == sources.size());
  CHECK(names == std::set<std::string>{"pack", "pack_meta", "copy_rows", "decode", "batch", "reconstruct", "remap"});
  for (const auto& choice : choices) CHECK(texts.count(choice.kernel->source().text) == 1);
  CHECK(texts.count(choose::column_remap_source().text) == 1);
}

TEST_CASE("choose: the search space begins with what an untuned plan runs") {
  for (const Gpu* gpu : {&kB200, &kH200, &kA100, &kT4, &kMi250})
    for (const std::int64_t m : {1, 16, 256}) {
      PlanOptions options;
      options.max_m = m;
      const auto all = choose::all_tactics(square(), options, m, gpu->limits);
      CHECK(all.front() == at(choose::choose(square(), options, *gpu, nullptr), m).tactic);
      CHECK(all.size() > 5);
      for (const auto& tactic : all) {
        const auto parsed = choose::Tactic::parse(tactic.str());
        REQUIRE(parsed);
        CHECK(*parsed == tactic);
        CHECK(choose::usable(tactic, square(), false, m, gpu->limits));
      }
    }
}

}  // namespace
}  // namespace q4::test
