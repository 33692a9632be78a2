// The kernel cache under what a fleet does to it, with real processes and the real compiler: CTest label "torture".
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <random>
#include <set>
#include <thread>

#include "cache_support.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "tools/cache/cross.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kSkipped = 77;

void append_line(const std::string& path, const std::string& line) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (::write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) std::abort();
  ::close(file);
}

/// What a rank does at its start: every kernel of a shape, with the real compiler where it is not there. Notes
/// compiles.
int compile_rank(const std::string& folder, const std::string& log) {
  CacheOptions options{.folder = folder};
  bool right = true;
  options.event = [&](const CacheEvent& event) {
    right &= event.error.empty();
    if (event.layer == CacheLayer::kCompiler) append_line(log, "x");
  };
  KernelCache cache(options, nullptr);
  tools::CrossCompiler compiler(tools::parse_targets("sm_90a/132")[0], cache);
  compiler.add({"", 4096, 4096, 128, false}, {.max_m = 16});
  return right && compiler.kernels() >= 6 ? 0 : 1;
}

double seconds(const std::function<void()>& work) {
  const auto begin = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

TEST_CASE("torture: a hundred processes start at once on an empty folder, with the real compiler") {
  if (const cuda::Nvrtc nvrtc; !nvrtc.available()) return test::skip("torture with the compiler: " + nvrtc.problem());
  TempFolder s;
  const double one =
      seconds([&] { CHECK(finish(start([&] { return compile_rank(s / "one", s / "one.log"); })) == 0); });
  const double hundred = seconds([&] {
    std::vector<pid_t> ranks;
    for (int i = 0; i < 100; ++i) ranks.push_back(start([&] { return compile_rank(s / "k", s / "k.log"); }));
    for (const auto rank : ranks) CHECK(finish(rank) == 0);
  });
  const auto kernels = fs::file_size(s / "one.log"), compiles = fs::file_size(s / "k.log");
  MESSAGE("one process: " << one << " s for " << kernels << " kernels; a hundred: " << hundred << " s, " << compiles
                          << " compiles, " << hundred / one << " x");
  CHECK(compiles == kernels);
  CHECK(stored_files(s / "k").size() == kernels);
  CHECK(hundred < 4 * one + 5);  // 1.5 on a quiet machine: the line above says
}

TEST_CASE("torture: kill -9 at random moments of writing, many times") {
  TempFolder s;
  std::mt19937 random(7);
  constexpr std::size_t kBytes = 200000;
  int found = 0;
  for (int round = 0; round < 150; ++round) {
    const pid_t writer = start([&] {
      for (int n = 0;; ++n) {
        Folder folder(s / "k", true);
        folder.store(make_entry(numbered_key(n % 4), "nvrtc 1", 1, numbered_code(n % 4, kBytes)), 2 * kBytes);
      }
      return 0;
    });
    std::this_thread::sleep_for(std::chrono::microseconds(200 + random() % 15000));
    ::kill(writer, SIGKILL);
    CHECK(finish(writer) == 128 + SIGKILL);
    KernelCache cache({.folder = s / "k"},
                      [](LogLevel level, const std::string& text) { CHECK_MESSAGE(level > LogLevel::kWarning, text); });
    for (int i = 0; i < 4; ++i) {
      const auto got = cache.get(numbered_key(i), [&] { return compiled(i, kBytes); });
      CHECK(*got.code == numbered_code(i, kBytes));
      found += got.event.layer == CacheLayer::kUserFolder;
    }
    if (round % 2) prune(s / "k", 0);
  }
  CHECK(found > 0);
  // What the killed left is taken away an hour later.
  timespec long_ago[2] = {{1, 0}, {1, 0}};
  for (const auto& file : fs::directory_iterator(s / "k"))
    if (file.path().filename().string().starts_with(kTemporary))
      ::utimensat(AT_FDCWD, file.path().c_str(), long_ago, 0);
  prune(s / "k", 0);
  for (const auto& file : fs::directory_iterator(s / "k")) CHECK(file.path().filename() == ".lock");
}

TEST_CASE("torture: a full disk: a small tmpfs") {
  TempFolder s;
  fs::create_directories(s / "disk");
  const int status = finish(start([&] {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("q4", (s / "disk").c_str(), "tmpfs", 0, "size=400k,mode=0700") != 0)
      return kSkipped;
    int warnings = 0;
    KernelCache cache({.folder = s / "disk/k"},
                      [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
    for (int i = 0; i < 8; ++i)
      if (*cache.get(numbered_key(i), [&] { return compiled(i, 100000); }).code != numbered_code(i, 100000)) return 1;
    if (warnings != 1) return 2;
    const auto kept = stored_files(s / "disk/k");
    if (kept.empty() || kept.size() > 4) return 3;
    for (const auto& file : kept)
      if (!read_entry(file.path).entry) return 4;
    for (const auto& file : fs::directory_iterator(s / "disk/k"))
      if (file.path().filename().string().starts_with(kTemporary)) return 5;
    prune(s / "disk/k", 0);  // room again: another process writes
    KernelCache later({.folder = s / "disk/k"}, nullptr);
    later.get(numbered_key(9), [] { return compiled(9, 100000); });
    return stored_files(s / "disk/k").size() == 1 ? 0 : 6;
  }));
  if (status == kSkipped) return test::skip("a full disk: no right to mount a tmpfs");
  CHECK(status == 0);
}

TEST_CASE("torture: eviction, pruning and damage while others read: every answer is right") {
  TempFolder s;
  const auto end = Clock::now() + milliseconds(4000);
  std::vector<pid_t> children;
  for (int p = 0; p < 6; ++p)
    children.push_back(start([&] {
      for (int n = p; Clock::now() < end; ++n) {
        KernelCache cache({.folder = s / "k", .max_bytes = 60000}, nullptr);
        const int i = n % 10;
        if (*cache.get(numbered_key(i), [&] { return compiled(i, 12000); }).code != numbered_code(i, 12000)) return 1;
      }
      return 0;
    }));
  children.push_back(start([&] {
    std::mt19937 random(3);
    while (Clock::now() < end) {
      for (const auto& file : stored_files(s / "k")) {
        const int opened = ::open(file.path.c_str(), O_WRONLY | O_CLOEXEC);
        if (random() % 3 == 0 && opened >= 0 && ::ftruncate(opened, random() % 12000) != 0) std::abort();
        if (random() % 3 == 1 && opened >= 0 && ::pwrite(opened, "?", 1, random() % 12000) != 1) std::abort();
        if (opened >= 0) ::close(opened);
      }
      if (random() % 4 == 0) prune(s / "k", 20000);
      std::this_thread::sleep_for(milliseconds(5));
    }
    return 0;
  }));
  for (const auto child : children) CHECK(finish(child) == 0);
}

TEST_CASE("torture: two versions of the library share a folder") {
  TempFolder s;
  std::vector<pid_t> children;
  for (int p = 0; p < 8; ++p)
    children.push_back(start([&] {
      const int version = p % 2;
      for (int n = 0; n < 80; ++n) {
        KernelCache cache({.folder = s / "k"}, nullptr);
        KernelKey key = numbered_key(n % 5);
        key.headers = fmt::format("of version {}", version);
        const auto bytes = static_cast<std::size_t>(1000 + version);
        if (*cache.get(key, [&] { return compiled(n % 5, bytes); }).code != numbered_code(n % 5, bytes)) return 1;
        if (n % 10 != p) continue;
        // A version whose files have another form, under the names that this one looks for.
        std::string foreign = encode(make_entry(key, "nvrtc 1", 1, {'x'}));
        foreign[8] = 99;
        write_file(s / "k", file_name(make_entry(key, "nvrtc 1", 1, {})), foreign);
      }
      return 0;
    }));
  for (const auto child : children) CHECK(finish(child) == 0);
  std::set<std::string> versions;
  for (const auto& file : stored_files(s / "k"))
    if (const auto entry = read_entry(file.path).entry) versions.insert(entry->key.headers);
  CHECK(versions.size() == 2);
}

TEST_CASE("torture: a pack is replaced by renaming while others open and read it") {
  TempFolder s;
  const auto end = Clock::now() + milliseconds(2000);
  const auto pack = [&](int generation) {
    std::vector<Entry> entries;
    for (int i = 0; i < 10; ++i)
      entries.push_back(make_entry(numbered_key(i), "nvrtc 1", 1, numbered_code(generation, 5000)));
    return write_pack(s / "p.q4pack", entries);
  };
  REQUIRE(pack(0) == "");
  std::vector<pid_t> readers;
  for (int p = 0; p < 6; ++p)
    readers.push_back(start([&] {
      while (Clock::now() < end) {
        KernelCache cache({.mode = CacheMode::kRequirePrebuilt, .packs = {s / "p.q4pack"}}, nullptr);
        for (int i = 0; i < 10; ++i) {
          const auto code = cache.get(numbered_key(i), {}).code;
          if (*code != std::vector<char>(5000, code->front())) return 1;
        }
      }
      return 0;
    }));
  for (int generation = 1; Clock::now() < end; ++generation) CHECK(pack(generation) == "");
  for (const auto reader : readers) CHECK(finish(reader) == 0);
}

}  // namespace q4::cache
