// Tuning files on their way: ten thousand records, stale ones, merge and diff, layers, and what a service recorded.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <q4/q4.hpp>
#include <thread>

#include "autotune/merge.hpp"
#include "on_device.hpp"
#include "report.hpp"
#include "runtime/untuned.hpp"
#include "temp_folder.hpp"
#include "tools/common/shapes.hpp"
#include "tools/common/slices.hpp"

namespace q4::tools {
namespace {

using autotune::Conflict, autotune::differences, autotune::merged, autotune::united;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TuningRecord record(std::int64_t k, double us, const std::string& tactic = "a") {
  TuningRecord r;
  r.key = {"H200", "sm_90a", 132, k, 512, 128, false, DType::kF16, "cold", "digest"};
  r.buckets = {{1, tactic, us, us * 0.99, us * 1.01, us, 0}, {16, tactic, 2 * us, 1.98 * us, 2.02 * us, 2 * us, 0}};
  return r;
}

TEST_CASE("ten thousand records load in milliseconds, and each is found") {
  const test::TempFolder folder;
  TuningDb db;
  for (int i = 1; i <= 10000; ++i) {
    auto r = record(8 * i, i, "gemv half2=1 rows=1 tiles=2 warps=8");
    for (std::int64_t m = 32; m <= 4096; m *= 2) r.buckets.push_back({m, r.buckets[0].tactic, 1, 1, 1, 1, 0});
    db.add(r);
  }
  db.save(folder / "big.jsonl");
  double best = 1e9;
  for (int attempt = 0; attempt < 5; ++attempt) {
    TuningDb loaded;
    const auto start = std::chrono::steady_clock::now();
    loaded.load(folder / "big.jsonl");
    const TuningRecord* const found = loaded.find(record(8 * 7777, 1).key);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    REQUIRE(found);
    CHECK(found->buckets[0].us == 7777);
    CHECK(loaded.size() == 10000);
  }
  MESSAGE("10,000 records in " << std::filesystem::file_size(folder / "big.jsonl") / 1000 << " kB: " << best
                               << " ms with one look-up");
  CHECK(best < 100 * test::kSlower);  // a few; parsing them all takes hundreds
}

TEST_CASE("what load() did not read is told by the look-up, with file and line") {
  const test::TempFolder folder;
  TuningDb db;
  db.add(record(8, 1)), db.add(record(16, 1));
  std::string text = db.str();
  const auto at = text.rfind("\"m\":16");
  text.replace(at, 6, "\"m\":0 ");
  std::ofstream(folder / "bad.jsonl") << text;
  TuningDb loaded;
  loaded.load(folder / "bad.jsonl");
  CHECK(loaded.find(record(8, 1).key) != nullptr);
  try {
    loaded.find(record(16, 1).key);
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kCorrupt);
    CHECK(contains(e.what(), "bad.jsonl line 2"));
    CHECK(contains(e.what(), "ascend"));
  }
}

TEST_CASE("policies and kernels are part of the key") {
  TuningDb db;
  auto cold = record(8, 5), warm = record(8, 3), old = record(8, 1);
  warm.key.policy = "warm", old.key.kernels = "older";
  db.add(cold), db.add(warm), db.add(old);
  CHECK(db.size() == 3);
  CHECK(db.find(cold.key)->buckets[0].us == 5);
  CHECK(db.find(warm.key)->buckets[0].us == 3);
  TuningDb only_warm;
  only_warm.add(warm);
  CHECK(only_warm.find(cold.key)->key.policy == "warm");
  auto newer = cold.key;
  newer.kernels = "newer";
  TuningMatch match = TuningMatch::kNone;
  CHECK(db.find(newer, &match) == nullptr);
  CHECK(match == TuningMatch::kStale);
}

TEST_CASE("merge: the lower median wins only outside noise, incomplete records lose, conflicts are listed") {
  Conflict c;
  CHECK(united(record(8, 100), record(8, 90, "b"), c).buckets[0].tactic == "b");
  CHECK(c.second);
  CHECK(c.points.size() == 2);
  CHECK(united(record(8, 100), record(8, 99.5, "b"), c).buckets[0].tactic == "a");  // the intervals overlap
  CHECK(united(record(8, 100), record(8, 110, "b"), c).buckets[0].tactic == "a");
  auto partial = record(8, 50, "b");
  partial.provenance["not measured"] = "m = 64";
  CHECK(united(record(8, 100), partial, c).buckets[0].tactic == "a");
  CHECK(united(partial, record(8, 100), c).buckets[0].tactic == "a");
  auto one = record(8, 100), two = record(8, 50, "b");
  one.quarantined = {{"x", 1, "hung"}}, two.quarantined = {{"y", 1, "crashed"}};
  CHECK(united(one, two, c).quarantined.size() == 2);

  const test::TempFolder folder;
  TuningDb a, b;
  a.add(record(8, 100)), a.add(record(16, 100));
  b.add(record(16, 90, "b")), b.add(record(24, 100));
  a.save(folder / "a"), b.save(folder / "b");
  std::vector<Conflict> conflicts;
  const TuningDb all = merged({folder / "a", folder / "b"}, conflicts);
  CHECK(all.size() == 3);
  REQUIRE(conflicts.size() == 1);
  CHECK(conflicts[0].key.k == 16);
  CHECK(all.find(record(16, 1).key)->buckets[0].tactic == "b");
  conflicts.clear();
  CHECK(merged({folder / "a", folder / "a"}, conflicts).size() == 2);
  CHECK(conflicts.empty());

  const auto lines = differences(a, b);
  REQUIRE(lines.size() == 4);  // two buckets of k = 16, and one record on each side
  CHECK(differences(a, a).empty());
}

TEST_CASE("tensor-parallel slices divide columns or rows, and say what does not divide") {
  const autotune::Problem qkv{"llama qkv", 4096, 6144, 128, false}, down{"mlp.down_proj", 14336, 4096, 128, true};
  CHECK(tensor_parallel(qkv, 4).n == 1536);
  CHECK(tensor_parallel(qkv, 4).k == 4096);
  CHECK(tensor_parallel(down, 2).k == 7168);
  CHECK(tensor_parallel(down, 2).n == 4096);
  CHECK(tensor_parallel(qkv, 1).label == "llama qkv");
  CHECK_THROWS_AS(tensor_parallel({"conv", 64, 64, 64, false}, 2), Error);
  CHECK_THROWS_AS(tensor_parallel({"down", 14336, 4096, 128, false}, 5), Error);
  CHECK_THROWS_AS(tensor_parallel({"down", 384, 4096, 128, false}, 2), Error);  // a group would be cut
  CHECK(tensor_parallel({"down", 384, 4096, 384, false}, 2).group == 192);      // one group stays one group
}

TEST_CASE("shards: every shape in exactly one, the same on every machine") {
  for (const int count : {1, 2, 3, 8}) {
    std::vector<int> sizes(static_cast<std::size_t>(count));
    for (std::int64_t k = 8; k <= 8 * 400; k += 8) {
      int holders = 0;
      for (int i = 0; i < count; ++i)
        if (Shard{i, count}.holds({"", k, 4096, 128, false}, DType::kF16))
          ++holders, ++sizes[static_cast<std::size_t>(i)];
      CHECK(holders == 1);
    }
    for (const int size : sizes) CHECK(size > 400 / count / 2);
  }
  CHECK(Shard{0, 2}.holds({"any", 4096, 6144, 128, false}, DType::kF16) ==
        Shard{0, 2}.holds({"name", 4096, 6144, 128, false}, DType::kF16));
  CHECK(Shard::parse("3/8").index == 3);
  for (const char* bad : {"8/8", "1", "-1/2", "a/b", "1/", "/2", "1/2x"}) CHECK_THROWS_AS(Shard::parse(bad), Error);
}

TEST_CASE("a service records what is untuned, once, and q4-autotune reads it") {
  const test::TempFolder folder;
  const std::string path = folder / "untuned.jsonl";
  const TuningKey key = record(4096, 1).key;
  auto other = key;
  other.activation = DType::kBF16, other.act_order = true;
  {
    UntunedLog log;
    log.open(path);
    std::atomic<int> failures{0};
    std::vector<std::jthread> threads;
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([&] {
        for (int i = 0; i < 50; ++i) failures += !log.note(key), failures += !log.note(other);
      });
    threads.clear();
    CHECK(failures == 0);
    UntunedLog restarted;
    restarted.open(path);
    CHECK(restarted.note(key));
  }
  std::ifstream in(path);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  CHECK(std::count(text.begin(), text.end(), '\n') == 2);
  const auto shapes = recorded_shapes(text + R"({"k":80)", path);  // a line that is being written
  REQUIRE(shapes.size() == 2);
  CHECK(shapes[0].problem.k == 4096);
  CHECK(shapes[0].problem.n == 512);
  CHECK_FALSE(shapes[0].problem.act_order);
  CHECK(shapes[1].activation == DType::kBF16);
  CHECK(shapes[1].problem.act_order);

  UntunedLog endless;
  endless.open("/dev/full");
  CHECK_FALSE(endless.note(key));

  UntunedLog nowhere;
  nowhere.open(folder / "missing/untuned.jsonl");
  const auto noted = nowhere.note(key);
  REQUIRE_FALSE(noted);
  CHECK(contains(noted.reason(), "missing/untuned.jsonl"));
  CHECK(nowhere.note(other));  // reported once
}

}  // namespace
}  // namespace q4::tools
