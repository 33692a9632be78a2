// Folders and packs as layers of the cache: who wins, what damage does, what a miss says.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "report.hpp"
#include "runtime/base/check.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "temp_folder.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;

using test::TempFolder;

KernelKey key(int i = 0) { return {fmt::format("kernel {}", i), fmt::format("source {}", i), "headers", "sm_90a", {}}; }
Entry entry(int i, const std::string& code, std::uint64_t created = 1) {
  return make_entry(key(i), "nvrtc 1", created, {code.begin(), code.end()});
}
void store(const std::string& folder, const Entry& e) { REQUIRE(Folder(folder, true).store(e, 0) == ""); }

struct Asked {
  std::string code, error;
  std::vector<std::string> warnings;
};
Asked ask(const CacheOptions& options, int i = 0) {
  Asked asked;
  KernelCache cache(options, [&](LogLevel level, const std::string& text) {
    if (level <= LogLevel::kWarning) asked.warnings.push_back(text);
  });
  try {
    const auto got = cache.get(key(i), [] { return Compiled{{'j', 'i', 't'}, "nvrtc 1", ""}; });
    asked.code.assign(got.code->begin(), got.code->end());
  } catch (const Error& error) { asked.error = error.what(); }
  return asked;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write(const std::string& path, const std::string& data) { std::ofstream(path, std::ios::binary) << data; }

}  // namespace

TEST_CASE("cache layers: user folder, folders in order, packs, compiler; the first sound entry wins") {
  TempFolder s;
  CacheOptions options{
      .folder = s / "user", .mode = CacheMode::kReadOnly, .folders = {s / "a", s / "b"}, .packs = {s / "named.q4pack"}};
  fs::create_directories(s / "a"), fs::create_directories(s / "b");
  CHECK(write_pack(s / "named.q4pack", {}) == "");
  CHECK(ask(options).code == "jit");
  CHECK(write_pack(s / "b/found.q4pack", {entry(0, "found")}) == "");
  CHECK(ask(options).code == "found");
  CHECK(write_pack(s / "named.q4pack", {entry(0, "named")}) == "");
  CHECK(ask(options).code == "named");
  store(s / "b", entry(0, "b"));
  CHECK(ask(options).code == "b");
  store(s / "a", entry(0, "a"));
  CHECK(ask(options).code == "a");
  store(s / "user", entry(0, "user"));
  CHECK(ask(options).code == "user");
  fs::resize_file(s / "user/" + file_name(entry(0, "")), 40);
  const auto damaged = ask(options);
  CHECK(damaged.code == "a");
  CHECK(damaged.warnings.size() == 1);
  options.mode = CacheMode::kOff;
  CHECK(ask(options).code == "jit");
}

TEST_CASE("cache layers: nothing but the user folder is written") {
  TempFolder s;
  fs::create_directories(s / "a");
  CHECK(write_pack(s / "p.q4pack", {entry(1, "x")}) == "");
  const auto before = read_file(s / "p.q4pack");
  CHECK(ask({.folder = s / "user", .folders = {s / "a"}, .packs = {s / "p.q4pack"}}).code == "jit");
  CHECK(fs::is_empty(s / "a"));
  CHECK(read_file(s / "p.q4pack") == before);
  CHECK(fs::exists(s / "user/" + file_name(entry(0, ""))));
}

TEST_CASE("cache layers: the environment adds folders and packs after those of the options") {
  TempFolder s;
  fs::create_directories(s / "env");
  CHECK(write_pack(s / "direct.q4pack", {entry(1, "direct")}) == "");
  store(s / "env", entry(0, "env"));
  ::setenv("Q4_CACHE_PATH", (":" + (s / "env") + "::" + (s / "direct.q4pack")).c_str(), 1);
  RuntimeOptions runtime;
  runtime.cache_dir = s / "user", runtime.cache_folders = {s / "own"}, runtime.packs = {"p"};
  runtime.cache_mode = CacheMode::kReadOnly;
  auto options = cache_options(runtime);
  ::unsetenv("Q4_CACHE_PATH");
  CHECK(options.folders == std::vector<std::string>{s / "own", s / "env", s / "direct.q4pack"});
  CHECK(options.packs == std::vector<std::string>{"p"});
  CHECK(options.max_bytes == runtime.cache_max_bytes);
  CHECK(ask(options, 0).code == "env");
  CHECK(ask(options, 1).code == "direct");
  CHECK(ask(options, 1).warnings.size() == 1);  // "own" and "p" are not there: said once
}

TEST_CASE("cache layers: a miss in require-prebuilt names key, kernel, target, every layer and what is wrong with it") {
  TempFolder s;
  fs::create_directories(s / "a");
  write(s / "bad.q4pack", std::string(100, 'x'));
  CHECK(write_pack(s / "good.q4pack", {entry(1, "x")}) == "");
  const CacheOptions options{.folder = s / "user",
                             .mode = CacheMode::kRequirePrebuilt,
                             .folders = {s / "a", s / "missing"},
                             .packs = {s / "bad.q4pack", s / "good.q4pack"}};
  CHECK(ask(options, 1).code == "x");
  const std::string error = ask(options, 0).error;
  for (const auto& part :
       {key().digest(), std::string("kernel 0"), std::string("sm_90a"), s / "user", s / "a", (s / "missing") + " (",
        (s / "bad.q4pack") + " (not a q4 pack", (s / "good.q4pack") + " (does not"}) {
    CAPTURE(part);
    CHECK(contains(error, part));
  }
  CHECK_FALSE(fs::exists(s / "user"));
  CHECK(contains(ask({.mode = CacheMode::kRequirePrebuilt}).error, "there is none"));
}

/// Why a pack cannot be used; empty: it can.
std::string why_not(const std::string& path) {
  const auto pack = Pack::open(path);
  return pack ? "" : pack.reason();
}

TEST_CASE("pack: holds what was put in, by key; of one key what was made last") {
  TempFolder s;
  std::vector<Entry> entries;
  for (int i = 0; i < 40; ++i) entries.push_back(entry(i, "code " + std::to_string(i), 5));
  entries.push_back(entry(7, "older", 4)), entries.push_back(entry(8, "newer", 6));
  REQUIRE(write_pack(s / "p.q4pack", entries) == "");
  const auto opened = Pack::open(s / "p.q4pack");
  REQUIRE(opened);
  const auto pack = *opened;
  CHECK(pack->size() == 40);
  CHECK(pack->verify().empty());
  for (int i = 0; i < 40; ++i) {
    const auto [found, problem] = pack->find(key(i).digest(), "sm_90a");
    REQUIRE_MESSAGE(found, problem);
    CHECK(std::string(found->code.begin(), found->code.end()) == (i == 8 ? "newer" : "code " + std::to_string(i)));
    CHECK(found->compiler == "nvrtc 1");
  }
  const Found nothing = pack->find(key(41).digest(), "sm_90a"), other = pack->find(key(1).digest(), "sm_80");
  CHECK_FALSE(nothing.entry);
  CHECK(nothing.problem.empty());
  CHECK_FALSE(other.entry);
  CHECK(contains(other.problem, "sm_90a"));
  const auto manifest = nlohmann::json::parse(pack->manifest());
  CHECK(manifest["kernels"] == 40);
  CHECK(manifest["targets"]["sm_90a"] == 40);
  CHECK(manifest["compilers"]["nvrtc 1"] == 40);
  const double overhead =
      (static_cast<double>(fs::file_size(s / "p.q4pack")) - manifest["code_bytes"].get<double>()) / 40;
  CHECK(overhead < 1024);
}

TEST_CASE("pack: any flipped byte, any length but its own, and foreign files are found out and never crash") {
  TempFolder s;
  REQUIRE(write_pack(s / "p.q4pack", {entry(0, "code"), entry(1, "other")}) == "");
  const std::string whole = read_file(s / "p.q4pack");
  const auto sound = [&](const std::string& data, bool& usable) {
    write(s / "d.q4pack", data);
    const auto pack = Pack::open(s / "d.q4pack");
    usable = pack && (*pack)->find(key(0).digest(), "sm_90a").entry;
    return pack && (*pack)->verify().empty();
  };
  bool usable = false;
  CHECK(sound(whole, usable));
  CHECK(usable);
  int missed = 0, served = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string data = whole;
    data[at] = static_cast<char>(data[at] ^ 1 << at % 8);
    missed += sound(data, usable);
    served += usable;
  }
  CHECK(missed == 0);
  CHECK(served > 0);  // damage to one kernel does not take the others
  for (std::size_t size = 0; size < whole.size(); ++size) missed += sound(whole.substr(0, size), usable) || usable;
  CHECK(missed == 0);
  CHECK_FALSE(sound(whole + "x", usable));
  // Another sound kernel of the same key in place of the one that was packed: forged, since the head says which.
  const std::string packed = encode(entry(0, "code"));
  const auto at = whole.find(packed);
  REQUIRE(at != whole.npos);
  std::string forged = whole;
  forged.replace(at, packed.size(), encode(entry(0, "evil")));
  CHECK_FALSE(sound(forged, usable));
  CHECK_FALSE(usable);
  for (const char* foreign : {"", "q4pack\r\n",
                              "\x7f"
                              "ELF"})
    CHECK_FALSE(sound(foreign, usable));

  ::chmod((s / "p.q4pack").c_str(), 0664);
  CHECK(contains(why_not(s / "p.q4pack"), "others may write it"));
  CHECK(why_not(s.path()) != "");
  ::mkfifo((s / "fifo.q4pack").c_str(), 0600);
  CHECK(why_not(s / "fifo.q4pack") != "");
}

TEST_CASE("folder and pack: another version, another owner and a clock set back") {
  TempFolder s;
  const std::string path = s / "k/" + file_name(entry(0, "code"));
  store(s / "k", entry(0, "code", 99'999'999'999));  // made in the future
  timespec future[2] = {{99'999'999'999, 0}, {99'999'999'999, 0}};
  REQUIRE(::utimensat(AT_FDCWD, path.c_str(), future, 0) == 0);
  const Found found = Folder(s / "k", true).find(key().digest(), "sm_90a");
  CHECK(found.entry);
  CHECK(found.problem == "");
  REQUIRE(write_pack(s / "p.q4pack", {entry(0, "code")}) == "");
  for (const auto& file : {path, s / "p.q4pack"}) {
    std::string data = read_file(file);
    data[8] = 9;  // schema
    write(file, data);
  }
  CHECK(contains(read_entry(path).problem, "schema 9"));
  CHECK(contains(why_not(s / "p.q4pack"), "schema 9"));
  if (::geteuid() != 0) return test::skip("files of another owner: only root gives files away");
  for (const auto& file : {path, s / "p.q4pack"}) REQUIRE(::chown(file.c_str(), 12345, 12345) == 0);
  CHECK(contains(read_entry(path).problem, "another user"));
  CHECK(contains(why_not(s / "p.q4pack"), "another user"));
}

TEST_CASE("folder: bounded by bytes; what was used last stays, whatever atime says") {
  TempFolder s;
  const std::string code(10000, 'c');
  Folder folder(s / "k", true);
  const auto age = [&](int i, int seconds) {  // all atimes alike
    timespec times[2] = {{1, 0}, {1'000'000'000 - seconds, 0}};
    REQUIRE(::utimensat(AT_FDCWD, (s / "k/" + file_name(entry(i, code))).c_str(), times, 0) == 0);
  };
  for (int i = 0; i < 5; ++i) {
    REQUIRE(folder.store(entry(i, code), 0) == "");
    age(i, 1000 - i);
  }
  CHECK(folder.find(key(0).digest(), "sm_90a").entry);  // oldest, but used now
  write(s / "k/.tmp-dead", "x"), write(s / "k/.tmp-alive", "x");
  timespec long_ago[2] = {{1, 0}, {1, 0}};
  REQUIRE(::utimensat(AT_FDCWD, (s / "k/.tmp-dead").c_str(), long_ago, 0) == 0);
  REQUIRE(folder.store(entry(5, code), 40000) == "");
  const auto has = [&](int i) { return fs::exists(s / "k/" + file_name(entry(i, code))); };
  CHECK(has(0));
  CHECK_FALSE(has(1));
  CHECK_FALSE(has(2));
  CHECK_FALSE(has(3));
  CHECK(has(4));
  CHECK(has(5));
  CHECK_FALSE(fs::exists(s / "k/.tmp-dead"));
  CHECK(fs::exists(s / "k/.tmp-alive"));
  const Found gone = folder.find(key(1).digest(), "sm_90a");
  CHECK_FALSE(gone.entry);
  CHECK(gone.problem.empty());
  const auto pruned = prune(s / "k", 0);
  CHECK(pruned.files == 3);
  CHECK(pruned.left == 0);
}

}  // namespace q4::cache
