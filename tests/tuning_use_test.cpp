// What a Runtime does with tuning files: layers, stale and nearest records, and noting what is untuned. On the CPU.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <q4/q4.hpp>

#include "reference.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"
#include "temp_folder.hpp"

namespace q4 {
namespace {

struct Setting {
  test::TempFolder temporary;
  std::filesystem::path folder = temporary.path();
  std::vector<std::string> said;
  test::GptqMatrix matrix = test::make_gptq({});  // 256 x 64, group 128

  Setting() {
    for (const char* part : {"cache", "shipped"}) {
      std::filesystem::create_directory(folder / part);
      std::filesystem::permissions(folder / part, std::filesystem::perms::owner_all);
    }
  }

  RuntimeOptions options() {
    RuntimeOptions o;
    o.cache_dir = folder / "cache";
    o.cache_folders = {folder / "shipped"};
    o.log = [this](LogLevel level, const std::string& text) {
      if (level <= LogLevel::kWarning) said.push_back(text);
    };
    return o;
  }

  /// A record of this very CPU, kernels and matrix, in which `tactic` serves m = 1.
  TuningRecord record(const std::string& tactic) {
    const Runtime runtime(options());
    const auto device = runtime.impl().open({});
    TuningRecord r;
    r.key = tuning_key(device->info(), tuning_digest(device->kernels_digest()), 256, 64, 128, false, DType::kF32);
    r.buckets = {{1, tactic, 1, 1, 1, 1, 0}};
    return r;
  }
  void save(const TuningRecord& record, const std::string& part) const {
    TuningDb db;
    db.add(record);
    db.save(folder / part / "tuning.jsonl");
  }
  MatmulPlan plan(const Runtime& runtime, std::int64_t max_m = 1) const {
    PlanOptions plan;
    plan.max_m = max_m;
    plan.activation = DType::kF32;
    return {runtime, QuantizedMatrix::from_gptq(runtime, {}, matrix.tensors()), plan};
  }
  std::string tactic(const RuntimeOptions& o) const { return plan(Runtime(o)).tactic(1); }
  std::string other_than_default() {
    const Runtime runtime(options());
    const auto all = plan(runtime).tactics(1);
    REQUIRE(all.size() >= 2);
    return all[1];
  }
  bool heard(const std::string& text) const {
    return std::ranges::any_of(said, [&](const auto& s) { return s.find(text) != std::string::npos; });
  }
};

TEST_CASE("tuning layers: shipped beside the kernels, the user's over it, named files instead of both") {
  Setting s;
  const std::string standard = s.tactic(s.options()), other = s.other_than_default();
  s.save(s.record(other), "shipped");
  CHECK(s.tactic(s.options()) == other);
  s.save(s.record(standard), "cache");
  CHECK(s.tactic(s.options()) == standard);
  auto named = s.options();
  named.tuning_files = {s.folder / "shipped" / "tuning.jsonl"};
  CHECK(s.tactic(named) == other);
  CHECK(s.said.empty());

  const auto paths = [](const RuntimeOptions& o) {
    std::vector<std::string> all;
    for (const TuningSource& source : Runtime(o).tuning_sources()) {
      all.push_back(source.path + (source.named ? " named" : "") + (source.records ? "" : " not used"));
      CHECK((source.records != nullptr) == source.problem.empty());
      if (source.records) CHECK(source.records->size() == 1);
    }
    return all;
  };
  const std::string shipped = s.folder / "shipped" / "tuning.jsonl", own = s.folder / "cache" / "tuning.jsonl";
  CHECK(paths(s.options()) == std::vector<std::string>{shipped, own});
  CHECK(paths(named) == std::vector<std::string>{shipped + " named"});
  CHECK(s.said.empty());

  std::ofstream(s.folder / "cache" / "tuning.jsonl") << "{\n";  // the user's is damaged: the shipped one serves
  CHECK(s.tactic(s.options()) == other);
  CHECK(s.heard("tuning.jsonl line 1"));
  CHECK(paths(s.options()) == std::vector<std::string>{shipped, own + " not used"});
}

TEST_CASE("a stale record is told once and not used; a shipped fresh one beneath it is") {
  Setting s;
  const std::string standard = s.tactic(s.options()), other = s.other_than_default();
  auto stale = s.record(other);
  stale.key.kernels = "kernels of last year/1";
  s.save(stale, "cache");
  const Runtime runtime(s.options());
  CHECK(s.plan(runtime).tactic(1) == standard);
  s.plan(runtime);
  CHECK(s.heard("stale"));
  CHECK(s.said.size() == 1);
  s.said.clear();
  s.save(s.record(other), "shipped");
  CHECK(s.tactic(s.options()) == other);
  CHECK(s.said.empty());
}

TEST_CASE("the nearest device of the same arch serves, and is named") {
  Setting s;
  const std::string other = s.other_than_default();
  auto near = s.record(other), far = s.record("cpu-none");
  near.key.fingerprint = "a similar machine", near.key.units += 1;
  far.key.fingerprint = "a larger machine", far.key.units += 50;
  TuningDb db;
  db.add(near), db.add(far);
  db.save(s.folder / "cache" / "tuning.jsonl");
  CHECK(s.tactic(s.options()) == other);
  CHECK(s.heard("a similar machine"));
}

TEST_CASE("a record of few rows says nothing about many: the default serves them") {
  Setting s;
  const std::string standard = s.plan(Runtime(s.options()), 64).tactic(64);
  std::string other;
  for (const auto& t : s.plan(Runtime(s.options()), 64).tactics(64))
    if (t != standard && !t.starts_with("reconstruct")) other = t;
  auto record = s.record(other);
  record.buckets = {{16, other, 1, 1, 1, 1, 0}};
  s.save(record, "cache");
  const auto plan = s.plan(Runtime(s.options()), 64);
  CHECK(plan.tactic(16) == other);
  CHECK(plan.tactic(9) == other);
  CHECK(plan.tactic(64) == standard);
}

TEST_CASE("plans without a record of this device are recorded, those with one are not") {
  Setting s;
  auto options = s.options();
  options.record_untuned = s.folder / "untuned.jsonl";
  const auto recorded = [&] {
    std::ifstream in(options.record_untuned);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const Runtime runtime(options);
  s.plan(runtime), s.plan(runtime);
  CHECK(recorded() == "{\"k\":256,\"n\":64,\"group\":128,\"act_order\":false,\"activation\":\"fp32\"}\n");
  std::filesystem::remove(options.record_untuned);
  s.save(s.record(s.tactic(s.options())), "cache");
  s.plan(Runtime(options));
  CHECK(recorded().empty());
}

}  // namespace
}  // namespace q4
