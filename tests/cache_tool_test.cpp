// q4-cache as its users call it: merge, export, import, explain, doctor, verify's exit status, and packs that carry
// tuning or lie beside a program.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "cache_support.hpp"
#include "paths.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// A kernel of this version, as far as the tools can tell.
Entry current(int i, std::uint64_t created = 1) {
  KernelKey key = numbered_key(i);
  key.options = {"-std=c++20"};
  key.source = fmt::format("#include \"decode.h\"\nq4::decode<q4::DecodeConfig{{.k={},.n=64}}>(a0);\n", 4096 * (i + 1));
  key.headers = jit::headers_digest(key.source);
  return make_entry(key, "nvrtc 1", created, numbered_code(i, 100));
}
void store(const std::string& folder, const Entry& entry) { REQUIRE(Folder(folder, true).store(entry, 0) == ""); }

TuningRecord record(std::int64_t k) {
  TuningRecord r;
  r.key.fingerprint = "GPU", r.key.arch = "sm_90a", r.key.units = 132;
  r.key.k = k, r.key.n = 64, r.key.group = 128;
  r.key.kernels = "digest", r.key.policy = "cold";
  r.buckets.resize(1);
  r.buckets[0].m = 1, r.buckets[0].tactic = "gemv", r.buckets[0].us = 1;
  return r;
}

Json parsed(const Ran& ran) {
  REQUIRE_MESSAGE(!ran.out.empty(), ran.status);
  return Json::parse(ran.json());
}

}  // namespace

TEST_CASE("q4-cache: export, import and merge move sound kernels, and tuning records with them") {
  TempFolder s;
  for (const int i : {0, 1, 2}) store(s / "a", current(i));
  store(s / "b", current(2, 9)), store(s / "b", current(3));
  TuningDb db;
  db.add(record(4096));
  db.save(s / "t.jsonl");
  REQUIRE(
      run_tool("q4-cache pack --cache-dir " + (s / "a") + " --out " + (s / "a.q4pack") + " --tuning " + (s / "t.jsonl"))
          .status == 0);
  const auto merged =
      run_tool("q4-cache merge --json --out " + (s / "m.q4pack") + " " + (s / "a.q4pack") + " " + (s / "b"));
  REQUIRE_MESSAGE(merged.status == 0, merged.out);
  CHECK(parsed(merged)["manifest"]["kernels"] == 4);
  CHECK(parsed(merged)["manifest"]["tuning_records"] == 1);
  const auto packed = *Pack::open(s / "m.q4pack");
  CHECK(packed->find(current(2).digest, "sm_90a").entry->created == 9);  // made last

  CHECK(run_tool("q4-cache export " + (s / "m.q4pack") + " --out " + (s / "out")).status == 0);
  CHECK(stored_files(s / "out").size() == 4);
  CHECK(fs::exists(s / "out/tuning.jsonl"));
  fs::resize_file(stored_files(s / "out")[0].path, 50);
  const auto imported = run_tool("q4-cache import --json --cache-dir " + (s / "in") + " " + (s / "out"));
  CHECK(imported.status == 1);  // one was unsound, and is named
  CHECK(contains(imported.out, "left out"));
  CHECK(stored_files(s / "in").size() == 3);
  CHECK(run_tool("q4-cache import --cache-dir " + (s / "in") + " " + (s / "m.q4pack")).status == 0);
  CHECK(stored_files(s / "in").size() == 4);
  CHECK(run_tool("q4-cache import --cache-dir " + (s / "in") + " " + (s / "none.q4pack")).status == 2);
  CHECK(run_tool("q4-cache verify --cache-dir " + (s / "in")).status == 0);
}

TEST_CASE("q4-cache verify: 0 all sound, 1 something is not, 2 wrong usage or cannot be read") {
  TempFolder s;
  store(s / "k", current(0));
  REQUIRE(write_pack(s / "k/p.q4pack", {current(1)}) == "");
  const auto status = [&](const std::string& arguments) { return run_tool("q4-cache verify " + arguments).status; };
  CHECK(status(s / "k/p.q4pack") == 0);
  CHECK(status(s / "k") == 0);
  CHECK(status("--cache-dir " + (s / "k")) == 0);
  CHECK(status(s / "none.q4pack") == 2);
  CHECK(status(s / "none") == 2);
  CHECK(status("--bogus") == 2);
  CHECK(status((s / "k") + " more") == 2);
  fs::resize_file(s / "k/p.q4pack", fs::file_size(s / "k/p.q4pack") - 1);
  CHECK(status(s / "k/p.q4pack") == 1);
  CHECK(status(s / "k") == 1);  // with the packs in it
  fs::remove(s / "k/p.q4pack");
  CHECK(status(s / "k") == 0);
  std::ofstream(s / "empty.q4pack");
  CHECK(status(s / "empty.q4pack") == 1);
  ::chmod(stored_files(s / "k")[0].path.c_str(), 0666);
  CHECK(status(s / "k") == 1);
  REQUIRE(write_pack(s / "t.q4pack", {current(1)}, "not a record\n") == "");
  CHECK(status(s / "t.q4pack") == 1);
}

TEST_CASE("q4-cache explain: the field that differs, in a folder, in a pack, and for a key that no layer holds") {
  TempFolder s;
  Entry other = current(0);
  store(s / "k", other);
  KernelKey key = other.key;
  const auto explained = [&](const KernelKey& changed) {
    const Entry entry = make_entry(changed, "nvrtc 1", 1, {'x'});
    REQUIRE(write_pack(s / "p.q4pack", {entry}) == "");
    const auto ran = run_tool("q4-cache explain --json --cache-dir " + (s / "k") + " --in " + (s / "p.q4pack") + " " +
                              entry.digest.substr(0, 12));
    CHECK_MESSAGE(ran.status == 0, ran.out);
    const auto json = parsed(ran);
    CHECK(json["key"] == entry.digest);
    CHECK(json["nearest"]["key"] == other.digest);
    REQUIRE(json["nearest"]["differs"].size() == 1);
    return json["nearest"]["differs"][0];
  };
  auto changed = key;
  changed.headers = "0123";
  CHECK(explained(changed)["field"] == "kernel headers");
  changed = key, changed.options.push_back("-G");
  CHECK(explained(changed)["field"] == "options");
  changed = key, changed.target = "sm_80";
  CHECK(explained(changed)["there"] == "sm_90a");
  changed = key, changed.source.replace(changed.source.find("4096"), 4, "8192");
  CHECK(explained(changed)["field"] == "source: .k");
  CHECK(explained(changed)["here"] == "8192");

  // A key that require-prebuilt would name: in no layer, but one of a shape's kernels.
  const auto missing = run_tool(
      "q4-cache warmup --json --device cuda:0 --shape 256x512 --max-m 1",
      "Q4_CACHE_MODE=require-prebuilt Q4_CACHE_DIR=" + (s / "none") + " Q4_CUDA_DRIVER=" + q4::test::fake_cuda());
  CHECK(missing.status == 1);
  const auto kernels = parsed(missing)["kernels"];
  REQUIRE(!kernels.empty());
  const std::string digest = kernels.back()["key"];
  CHECK(contains(kernels.back()["error"], digest));
  const auto derived = run_tool("q4-cache explain --json --cache-dir " + (s / "k") +
                                " --target sm_90a/132 --shape 256x512 --max-m 1 " + digest);
  CHECK_MESSAGE(derived.status == 0, derived.out);
  CHECK(parsed(derived)["found"].empty());
  CHECK(parsed(derived)["fields"]["kernel"] == kernels.back()["kernel"]);
  const auto unknown = run_tool("q4-cache explain --target sm_90a/132 --shape 256x512 --max-m 1 --cache-dir " +
                                (s / "k") + " " + std::string(16, '0'));
  CHECK(unknown.status == 1);
  CHECK(contains(unknown.out, s / "k"));
  CHECK(run_tool("q4-cache explain xyz").status == 2);
}

TEST_CASE("q4-cache doctor: well, and each thing that is not") {
  TempFolder s;
  store(s / "k", current(0));
  const auto state = [&](const char* check, const std::string& folder) {
    const auto ran = run_tool("q4-cache doctor --json --cache-dir " + folder);
    const auto json = parsed(ran);
    CHECK((ran.status != 0) == (json["bad"] != 0));
    for (const auto& row : json["checks"])
      if (row["check"] == check) return row["state"].get<std::string>();
    return std::string("not checked");
  };
  CHECK(run_tool("q4-cache doctor --cache-dir " + (s / "k")).status == 0);
  for (const char* check : {"folder", "owner", "mode", "writing", "locks", "file system", "free space", "versions",
                            "temporary files", "other tools' files", "kernels"})
    CHECK_MESSAGE(state(check, s / "k") == "ok", check);
  std::ofstream(s / "k/.tmp-left") << "x";
  std::ofstream(s / "k/notes.txt") << "x";
  CHECK(state("temporary files", s / "k") == "note");
  CHECK(state("other tools' files", s / "k") == "note");
  Entry old = current(1);
  old.key.headers = "another version's", old = make_entry(old.key, "nvrtc 2", 1, old.code);
  store(s / "k", old);
  CHECK(state("versions", s / "k") == "note");
  CHECK(state("compilers", s / "k") == "note");
  fs::resize_file(s / "k/" + file_name(old), 60);
  CHECK(state("unsound kernels", s / "k") == "BAD");
  ::chmod((s / "k").c_str(), 0770);
  CHECK(state("mode", s / "k") == "BAD");
  fs::create_directory_symlink(s / "k", s / "link");
  CHECK(state("folder", s / "link") == "BAD");
  CHECK(state("folder", s / "not-there") == "note");
  std::ofstream(s / "bad.q4pack") << "nonsense";
  const auto layers = run_tool("q4-cache doctor --cache-dir " + (s / "fresh"), "Q4_CACHE_PATH=" + (s / "bad.q4pack"));
  CHECK(layers.status == 1);
  CHECK(contains(layers.out, "bad.q4pack"));
  CHECK(contains(run_tool("q4-cache doctor", "-u HOME -u XDG_CACHE_HOME -u Q4_CACHE_DIR").out, "none: set"));
}

TEST_CASE("q4-cache warmup: a machine whose GPU driver is missing is not ready, unless the CPU was named") {
  TempFolder s;
  const std::string none = "Q4_CUDA_DRIVER=/nonexistent Q4_HIP_RUNTIME=/nonexistent Q4_CACHE_DIR=" + (s / "k");
  const std::string warmup = "q4-cache warmup --shape 64x64 --max-m 1";
  for (const std::string mode : {"", " Q4_CACHE_MODE=require-prebuilt"}) {
    const auto ran = run_tool(warmup, none + mode);
    CHECK(ran.status != 0);
    CHECK_MESSAGE(contains(ran.out, "there is no GPU to warm up; cuda: "), ran.out);
    CHECK_MESSAGE(contains(ran.out, "; hip: "), ran.out);
    CHECK(contains(ran.out, "device = cpu"));
    CHECK(run_tool(warmup + " --json", none + mode).status != 0);
    const auto named = run_tool(warmup + " --device cpu", none + mode);
    CHECK_MESSAGE(named.status == 0, named.out);
  }
  // The tools that may run on the CPU say that they do, unless it was named.
  const std::string bench = "q4-bench --shape 64x64 --m 1 --seconds 0.01";
  CHECK(contains(run_tool(bench, none).out, "this runs on the CPU"));
  CHECK_FALSE(contains(run_tool(bench + " --device cpu", none).out, "this runs on the CPU"));
}

TEST_CASE("packs carry tuning records; a file's records win over theirs") {
  TempFolder s;
  TuningDb packed;
  packed.add(record(4096)), packed.add(record(8192));
  REQUIRE(write_pack(s / "p.q4pack", {}, packed.str()) == "");
  RuntimeOptions options;
  options.cache_dir = s / "none", options.packs = {s / "p.q4pack"};
  CHECK(Runtime(options).tuning().size() == 2);
  TuningDb own;
  auto better = record(4096);
  better.buckets[0].tactic = "decode";
  own.add(better);
  own.save(s / "own.jsonl");
  options.tuning_files = {s / "own.jsonl"};
  const Runtime both(options);
  CHECK(both.tuning().size() == 2);
  CHECK(both.tuning().find(better.key)->buckets[0].tactic == "decode");

  REQUIRE(write_pack(s / "bad.q4pack", {}, "{\"q4_tuning\": 1}\n") == "");
  int warnings = 0;
  options.packs = {s / "bad.q4pack"}, options.log = [&](LogLevel level, const std::string& text) {
    warnings += level == LogLevel::kWarning && contains(text, "bad.q4pack");
  };
  CHECK(Runtime(options).tuning().size() == 1);
  CHECK(warnings == 1);
}

TEST_CASE("beside the library: kernels of an installation are found wherever it is moved, also read-only") {
  TempFolder s;
  fs::create_directories(s / "opt/bin");
  fs::copy_file(q4::test::binary_dir() + "/bin/q4-cache", s / "opt/bin/q4-cache");
  store(s / "opt/bin/q4-kernels", current(0));
  fs::create_directories(s / "opt/share/q4");
  REQUIRE(write_pack(s / "opt/share/q4/ship.q4pack", {current(1)}) == "");
  for (const char* place : {"opt", "moved"}) {
    if (!fs::exists(s / place)) fs::rename(s / "opt", s / place);
    for (const auto& folder : {"/bin/q4-kernels", "/share/q4"}) ::chmod((s / place + folder).c_str(), 0555);
    std::FILE* pipe =
        ::popen(("cd / && " + (s / place) + "/bin/q4-cache doctor --json --cache-dir " + (s / "none")).c_str(), "r");
    REQUIRE(pipe);
    std::string out;
    char buffer[4096];
    for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, got);
    ::pclose(pipe);
    bool folder = false, pack = false;
    const Json json = Json::parse(out);
    for (const auto& row : json["checks"]) {
      folder |= row["check"] == "beside the library " + (s / place) + "/bin/q4-kernels" && row["text"] == "1 kernels";
      pack |= row["check"] == "pack " + (s / place) + "/share/q4/ship.q4pack" && row["text"] == "1 kernels";
    }
    CHECK_MESSAGE(folder, out);
    CHECK_MESSAGE(pack, out);
  }
  // And the order of the search: after the folders of options, before packs.
  CacheOptions options{
      .mode = CacheMode::kReadOnly, .beside = beside(s / "moved/bin/q4-cache"), .packs = {s / "own.q4pack"}};
  REQUIRE(write_pack(s / "own.q4pack", {current(0), current(1)}) == "");
  const auto layer_of = [&](int i) {
    return KernelCache(options, nullptr).get(current(i).key, [] { return compiled(0, 1); }).event.layer;
  };
  CHECK(layer_of(0) == CacheLayer::kBesideLibrary);
  CHECK(layer_of(1) == CacheLayer::kPack);
  options.folders = {s / "first"};
  store(s / "first", current(0));
  CHECK(layer_of(0) == CacheLayer::kFolder);
}

}  // namespace q4::cache
