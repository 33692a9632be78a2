// TuningDb: the file format to the byte, look-up with the nearest device, and what damaged files say.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <q4/tuning.hpp>

#include "temp_folder.hpp"

namespace q4 {
namespace {

std::string read(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

TuningRecord record(const std::string& fingerprint = "H200/sm_90a", int units = 132) {
  TuningRecord r;
  r.key = {fingerprint, "sm_90a", units, 4096, 28672, 128, true, DType::kBF16};
  r.reconstruct_from = 513;
  r.math = Math::kHalf2;
  r.buckets = {{1, "decode tiles=2 \"quoted\"", 4.25, 4.125, 4.5, 5.0}, {512, "reconstruct+blas", 100, 99, 101.5, 100}};
  r.key.policy = "cold", r.key.kernels = "abc123";
  r.provenance = {{"driver", "13.0"}, {"date", "2026-01-01"}};
  return r;
}

constexpr const char* kLine =
    R"({"q4_tuning":1,"op":"matmul","device":"H200/sm_90a","arch":"sm_90a","units":132,"k":4096,"n":28672,"group":128,)"
    R"("act_order":true,"activation":"bf16","kernels":"abc123","policy":"cold","reconstruct_from":513,"math":"half2",)"
    R"("buckets":[{"m":1,"tactic":"decode tiles=2 \"quoted\"","us":4.25,"low":4.125,"high":4.5,"default_us":5.0},)"
    R"({"m":512,"tactic":"reconstruct+blas","us":100.0,"low":99.0,"high":101.5,"default_us":100.0}],)"
    R"("provenance":{"date":"2026-01-01","driver":"13.0"}})"
    "\n";

std::string error_of(const std::string& path, ErrorCode expected) {
  TuningDb db;
  try {
    db.load(path);
    db.records();  // what load() did not look at
  } catch (const Error& e) {
    CHECK(e.code() == expected);
    return e.what();
  }
  FAIL("no error");
  return {};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// kLine with one replacement.
std::string edited(const std::string& from, const std::string& to) {
  std::string line = kLine;
  const auto at = line.find(from);
  REQUIRE(at != std::string::npos);
  return line.replace(at, from.size(), to);
}

TEST_CASE("the file format is fixed and round-trips") {
  const test::TempFolder folder;
  TuningDb db;
  db.add(record());
  db.save(folder / "a.jsonl");
  CHECK(read(folder / "a.jsonl") == kLine);

  TuningDb again;
  again.load(folder / "a.jsonl");
  REQUIRE(again.size() == 1);
  CHECK(again.records()[0] == record());
}

TEST_CASE("the order of adding does not change the file, and a later record replaces") {
  const test::TempFolder folder;
  TuningDb one, two;
  one.add(record("a", 1)), one.add(record("b", 2));
  auto stale = record("a", 1);
  stale.reconstruct_from = 7;
  two.add(stale), two.add(record("b", 2)), two.add(record("a", 1));
  one.save(folder / "1"), two.save(folder / "2");
  CHECK(two.size() == 2);
  CHECK(read(folder / "1") == read(folder / "2"));

  auto smaller = record("b", 2);
  smaller.key.k = 8;
  two.add(smaller);
  const auto sorted = two.records();
  CHECK(std::is_sorted(sorted.begin(), sorted.end(), [](const auto& x, const auto& y) { return x.key < y.key; }));
  CHECK(sorted[1].key.k == 8);

  two = TuningDb();
  two.load(folder / "1"), two.load(folder / "1");  // the same keys again
  CHECK(two.size() == 2);
}

TEST_CASE("save replaces the whole file and leaves nothing else behind") {
  const test::TempFolder folder;
  write(folder / "a", "old and longer than anything new " + std::string(10000, 'x'));
  TuningDb db;
  db.save(folder / "a");
  CHECK(read(folder / "a").empty());
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  try {
    db.save(folder / "missing/a");
    FAIL("no error");
  } catch (const Error& e) {
    CHECK(e.code() == ErrorCode::kIo);
    CHECK(contains(e.what(), "missing/a"));
  }
  std::filesystem::create_symlink("a", folder / "link");  // to a file that several share
  db.add(record());
  db.save(folder / "link");
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(read(folder / "a") == kLine);

  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);  // as /dev/null is, which root could replace
  CHECK_THROWS_WITH_AS(db.save(folder / "pipe"), doctest::Contains("no regular file"), Error);
  CHECK(std::filesystem::is_fifo(folder / "pipe"));
}

TEST_CASE("exact device, else nearest units of the same arch, else none") {
  TuningDb db;
  db.add(record("small", 66)), db.add(record("large", 132));
  auto other = record("other", 100);
  other.key.arch = "sm_100";
  db.add(other);

  auto key = record("large", 132).key;
  TuningMatch match = TuningMatch::kNone;
  REQUIRE(db.find(key, &match));
  CHECK(match == TuningMatch::kExact);
  CHECK(db.find(key)->key.fingerprint == "large");

  key.fingerprint = "unknown", key.units = 100;  // 32 from large, 34 from small, 0 from the wrong arch
  REQUIRE(db.find(key, &match));
  CHECK(match == TuningMatch::kNearest);
  CHECK(db.find(key)->key.fingerprint == "large");

  key.units = 70;
  CHECK(db.find(key)->key.fingerprint == "small");

  key.arch = "sm_75";
  CHECK(db.find(key, &match) == nullptr);
  CHECK(match == TuningMatch::kNone);

  key = record("large", 132).key;
  for (const auto change : {0, 1, 2, 3, 4}) {
    auto different = key;
    if (change == 0) different.k += 8;
    if (change == 1) different.n += 8;
    if (change == 2) different.group = 64;
    if (change == 3) different.act_order = false;
    if (change == 4) different.activation = DType::kF16;
    CHECK(db.find(different) == nullptr);
  }
}

TEST_CASE("the bucket that serves m") {
  auto r = record();
  r.buckets[1].m = 6;
  r.buckets.push_back(r.buckets[1]), r.buckets[2].m = 8;
  r.buckets.push_back(r.buckets[1]), r.buckets[3].m = 512;
  const std::pair<std::int64_t, std::int64_t> served[] = {{1, 1}, {4, 6},     {6, 6},    {7, 8},
                                                          {8, 8}, {257, 512}, {512, 512}};
  for (const auto& [m, bucket] : served) {
    REQUIRE(r.bucket(m));
    CHECK(r.bucket(m)->m == bucket);
  }
  for (const std::int64_t m : {2, 3, 9, 256, 513, 100000}) CHECK(r.bucket(m) == nullptr);  // nothing near was measured
  CHECK(TuningRecord{}.bucket(1) == nullptr);
}

TEST_CASE("files that are missing, empty or damaged") {
  const test::TempFolder folder;
  CHECK(contains(error_of(folder / "none", ErrorCode::kNotFound), folder / "none"));
  error_of(folder.path(), ErrorCode::kIo);                                // a folder
  CHECK(contains(error_of("/dev/zero", ErrorCode::kIo), "is a device"));  // and has no end

  TuningDb empty;
  empty.load("/dev/null");
  CHECK(empty.size() == 0);
  write(folder / "blank", "\n  \n" + std::string(kLine) + "\r\n");
  empty.load(folder / "blank");
  CHECK(empty.size() == 1);

  const struct {
    std::string line, says;
  } damaged[] = {
      {"{", "parse error"},
      {"[]", "object"},
      {std::string(kLine).substr(0, 300), "parse error"},
      {edited(R"("k":4096,)", ""), "\"k\""},
      {edited(R"("k":4096)", R"("k":4096.5)"), "\"k\""},
      {edited(R"("k":4096)", R"("k":-8)"), "positive"},
      {edited(R"("q4_tuning":1)", R"("q4_tuning":2)"), "this version reads 1"},
      {edited(R"("bf16")", R"("bf17")"), "bf17"},
      {edited(R"("half2")", R"("quarter")"), "quarter"},
      {edited(R"("m":512)", R"("m":1)"), "ascend"},
      {edited(R"("us":4.25)", R"("us":"fast")"), "\"us\""},
      {edited(R"("us":4.25)", R"("us":-1)"), "times"},
      {edited(R"("us":4.25)", R"("us":1e999)"), "range"},
      {edited(R"("tactic":"reconstruct+blas")", R"("tactic":"")"), "tactic"},
      {edited(R"("reconstruct_from":513)", R"("reconstruct_from":-1)"), "reconstruct_from"},
  };
  for (const auto& d : damaged) {
    CAPTURE(d.line);
    write(folder / "bad", std::string(kLine) + d.line + "\n");
    const std::string text = error_of(folder / "bad", ErrorCode::kCorrupt);
    CHECK(contains(text, "line 2"));
    CHECK(contains(text, folder / "bad"));
    CHECK_MESSAGE(contains(text, d.says), text);
  }
}

TEST_CASE("add refuses what a file could not hold") {
  TuningDb db;
  auto r = record();
  r.buckets[0].us = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(db.add(r), Error);
  r = record();
  r.key.fingerprint.clear();
  CHECK_THROWS_AS(db.add(r), Error);
  CHECK(db.size() == 0);
}

TEST_CASE("tuning: a record is stale when a kernel of its own tactics changed, and not otherwise") {
  const std::string mine = "batch:b1,decode:d1,prefill:p1,reconstruct:r1,remap:m1/1";
  TuningRecord r;
  r.key.fingerprint = "GPU", r.key.arch = "sm_90a", r.key.units = 132;
  r.key.k = 4096, r.key.n = 4096, r.key.group = 128, r.key.kernels = mine;
  r.buckets = {{1, "decode tiles=2", 1, 1, 1, 1, 0}, {16, "remap+prefill rows=16", 1, 1, 1, 1, 0}};
  const auto match_of = [](const TuningRecord& record, const std::string& kernels) {
    TuningDb written, db;
    written.add(record);
    db.parse(written.str(), "test");  // as a file has it
    TuningKey key = record.key;
    key.kernels = kernels;
    TuningMatch match = TuningMatch::kNone;
    const bool found = db.find(key, &match) != nullptr;
    CHECK(found == (match == TuningMatch::kExact));
    return match;
  };
  CHECK(match_of(r, mine) == TuningMatch::kExact);
  CHECK(match_of(r, "batch:B2,decode:d1,prefill:p1,reconstruct:r1,remap:m1/1") == TuningMatch::kExact);
  CHECK(match_of(r, "batch:b1,decode:d1,prefill:p1,reconstruct:R2,remap:m1/1") == TuningMatch::kExact);
  CHECK(match_of(r, "decode:d1,fresh:f1,prefill:p1,remap:m1/1") == TuningMatch::kExact);
  CHECK(match_of(r, "batch:b1,decode:D2,prefill:p1,reconstruct:r1,remap:m1/1") == TuningMatch::kStale);
  CHECK(match_of(r, "batch:b1,decode:d1,prefill:P2,reconstruct:r1,remap:m1/1") == TuningMatch::kStale);
  CHECK(match_of(r, "batch:b1,decode:d1,prefill:p1,reconstruct:r1,remap:M2/1") == TuningMatch::kStale);
  CHECK(match_of(r, "batch:b1,decode:d1,reconstruct:r1,remap:m1/1") == TuningMatch::kStale);  // prefill is gone
  CHECK(match_of(r, "batch:b1,decode:d1,prefill:p1,reconstruct:r1,remap:m1/2") == TuningMatch::kStale);  // the search
  r.reconstruct_from = 512;
  CHECK(match_of(r, "batch:b1,decode:d1,prefill:p1,reconstruct:R2,remap:m1/1") == TuningMatch::kStale);
  r.buckets = {{1, "reconstruct+blas", 1, 1, 1, 1, 0}};
  CHECK(match_of(r, "batch:b1,decode:D2,prefill:p1,reconstruct:r1,remap:m1/1") == TuningMatch::kExact);
  // One digest of everything, as the CPU has and as GPUs had: equal or stale, and readable either way.
  r.key.kernels = "0123abcd/1";
  CHECK(match_of(r, mine) == TuningMatch::kStale);
  CHECK(match_of(r, "0123abcd/1") == TuningMatch::kExact);
  CHECK(match_of(r, "0123abce/1") == TuningMatch::kStale);
}

TEST_CASE("tuning: of two usable records of a problem, the one of exactly these kernels is found") {
  TuningDb db;
  TuningRecord r;
  r.key.fingerprint = "GPU", r.key.arch = "sm_90a", r.key.k = 4096, r.key.n = 4096, r.key.group = 128;
  r.buckets = {{1, "decode tiles=2", 1, 1, 1, 1, 0}};
  for (const char* kernels : {"batch:b0,decode:d1/1", "batch:b1,decode:d1/1", "batch:b2,decode:d1/1"}) {
    r.key.kernels = kernels, r.provenance["of"] = kernels;
    db.add(r);
  }
  r.key.kernels = "batch:b1,decode:d1/1";
  REQUIRE(db.find(r.key) != nullptr);
  CHECK(db.find(r.key)->provenance.at("of") == "batch:b1,decode:d1/1");
}

}  // namespace
}  // namespace q4
