// The kernel cache under real processes: many at once, killed while writing, folders that refuse, and the q4-cache
// tool.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "cache_support.hpp"
#include "report.hpp"
#include "runtime/backends/backend.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/choose/kernel.hpp"
#include "runtime/tuning_key.hpp"
#include "tools/cache/cross.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

Ran q4_cache(const std::string& arguments) { return run_tool("q4-cache " + arguments); }

}  // namespace

TEST_CASE("cache: a hundred processes at once on an empty folder compile each kernel once and all get it") {
  TempFolder s;
  constexpr int kProcesses = 100, kKernels = 3;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p)
    children.push_back(start([&] {
      KernelCache cache({.folder = s / "k"}, nullptr);
      for (int i = 0; i < kKernels; ++i) {
        const auto got = cache.get(numbered_key(i), [&] {
          const int log = ::open((s / "compiles").c_str(), O_WRONLY | O_APPEND | O_CREAT, 0600);
          if (::write(log, "x", 1) != 1) std::abort();
          ::close(log);
          std::this_thread::sleep_for(milliseconds(100));
          return compiled(i, 50000);
        });
        if (*got.code != numbered_code(i, 50000)) return 1;
      }
      return 0;
    }));
  for (const auto child : children) CHECK(finish(child) == 0);
  CHECK(fs::file_size(s / "compiles") == kKernels);
}

TEST_CASE("cache: a holder of the lock that never ends is waited for only so long") {
  TempFolder s;
  REQUIRE(prepare_folder(s / "k") == "");
  const KeyLock held(s / "k", numbered_key(0).digest(), 0);
  const auto begin = std::chrono::steady_clock::now();
  KernelCache cache({.folder = s / "k", .lock_wait_s = 0.2}, nullptr);
  CHECK(*cache.get(numbered_key(0), [] { return compiled(0, 10); }).code == numbered_code(0, 10));
  const auto waited = std::chrono::steady_clock::now() - begin;
  CHECK(waited >= milliseconds(190));
  CHECK(waited < milliseconds(5000));
  KernelCache other({.folder = s / "k", .lock_wait_s = 60}, nullptr);
  other.get(numbered_key(1), [] { return compiled(1, 10); });  // another key's lock is free
  CHECK(std::chrono::steady_clock::now() - begin < milliseconds(10000));
}

TEST_CASE("cache: a hit waits for no compile, of its own key in another process or of another key here") {
  TempFolder s;
  REQUIRE(Folder(s / "k", true).store(make_entry(numbered_key(0), "nvrtc 1", 1, numbered_code(0, 10)), 0) == "");
  const KeyLock held(s / "k", numbered_key(0).digest(), 0);  // as a process that compiles it anew
  REQUIRE(held.held());
  KernelCache cache({.folder = s / "k", .lock_wait_s = 60}, nullptr);
  std::atomic<bool> compiling = false, found = false;
  std::thread compiles([&] {
    cache.get(numbered_key(1), [&] {
      compiling = true;
      for (int i = 0; i < 10000 && !found; ++i) std::this_thread::sleep_for(milliseconds(1));
      return compiled(1, 10);
    });
  });
  while (!compiling) std::this_thread::yield();
  CHECK(cache.get(numbered_key(0), [] { return compiled(0, 99); }).event.layer ==
        CacheLayer::kUserFolder);  // from the folder
  CHECK(cache.get(numbered_key(0), [] { return compiled(0, 99); }).event.layer == CacheLayer::kMemory);
  CHECK_FALSE(found.exchange(true));
  compiles.join();
}

TEST_CASE("cache: kill -9 while writing leaves the old entry, the new one or none, never half of one") {
  TempFolder s;
  constexpr std::size_t kBytes = 400000;
  int found = 0, killed = 0;
  for (int round = 0; round < 40; ++round) {
    const pid_t child = start([&] {
      for (int n = 0;; ++n) {
        Folder folder(s / "k", true);
        const auto k = numbered_key(n % 3);
        const auto bytes = numbered_code(n % 3, kBytes);
        folder.store(make_entry(k, "nvrtc 1", 1, bytes), 0);
      }
      return 0;
    });
    std::this_thread::sleep_for(std::chrono::microseconds(500 + 977 * round));
    ::kill(child, SIGKILL);
    killed += finish(child) == 128 + SIGKILL;
    Folder folder(s / "k", true);
    for (int i = 0; i < 3; ++i) {
      const auto [entry, problem] = folder.find(numbered_key(i).digest(), "sm_90a");
      CHECK(problem == "");
      if (!entry) continue;
      ++found;
      CHECK(entry->code == numbered_code(i, kBytes));
    }
  }
  CHECK(killed == 40);
  CHECK(found > 0);  // how many depends on how fast this machine writes
}

TEST_CASE("cache: eviction while other processes read: every answer is right") {
  TempFolder s;
  std::vector<pid_t> children;
  for (int p = 0; p < 6; ++p)
    children.push_back(start([&] {
      for (int n = 0; n < 60; ++n) {
        KernelCache cache({.folder = s / "k", .max_bytes = 50000}, nullptr);
        const int i = (n + p) % 10;
        if (*cache.get(numbered_key(i), [&] { return compiled(i, 12000); }).code != numbered_code(i, 12000)) return 1;
      }
      return 0;
    }));
  for (const auto child : children) CHECK(finish(child) == 0);
  std::uint64_t bytes = 0;
  for (const auto& file : stored_files(s / "k")) bytes += file.bytes;
  CHECK(bytes <= 50000 + 6 * 13000);
}

TEST_CASE("cache: as another user: a folder of root's is read and not written, one's own read-only one likewise") {
  if (::geteuid() != 0) return test::skip("another owner: only root can be somebody else");
  constexpr uid_t kNobody = 65534;
  TempFolder s;
  ::chmod(s.path().c_str(), 0755);
  const auto store = [&](const std::string& folder, int i) {
    return Folder(folder, true).store(make_entry(numbered_key(i), "nvrtc 1", 1, numbered_code(i, 10)), 0);
  };
  REQUIRE(store(s / "roots", 0) == "");
  ::chmod((s / "roots").c_str(), 0755);
  for (const auto& file : stored_files(s / "roots")) ::chmod(file.path.c_str(), 0644);
  fs::create_directories(s / "own"), fs::create_directories(s / "nobodys");
  for (const char* folder : {"own", "nobodys"}) REQUIRE(::chown((s / folder).c_str(), kNobody, kNobody) == 0);
  ::chmod((s / "own").c_str(), 0555);
  REQUIRE(store(s / "other", 0) == "");
  const auto foreign = stored_files(s / "other")[0].path;
  REQUIRE(::chown(foreign.c_str(), 12345, 12345) == 0);
  CHECK(finish(start([&] {
          if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) return 9;
          for (const auto& folder : {s / "roots", s / "own"}) {
            int warnings = 0;
            KernelCache cache({.folder = folder},
                              [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
            const auto got = cache.get(numbered_key(0), [] { return compiled(0, 10); });
            if (*got.code != numbered_code(0, 10)) return 1;
            if ((got.event.layer == CacheLayer::kUserFolder) != (folder == s / "roots")) return 2;
            if (*cache.get(numbered_key(1), [] { return compiled(1, 10); }).code != numbered_code(1, 10) ||
                warnings != 1)
              return 3;
          }
          return stored_files(s / "own").empty() ? 0 : 4;
        })) == 0);
  // An entry of a third user's is not used, not even by root.
  int warnings = 0;
  KernelCache cache({.folder = s / "other"},
                    [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
  CHECK(cache.get(numbered_key(0), [] { return compiled(0, 10); }).event.layer == CacheLayer::kCompiler);
  CHECK(warnings == 1);
}

TEST_CASE("cache: a read-only folder, an unwritable parent, no HOME: the kernel is right and one warning says why") {
  if (::geteuid() == 0) MESSAGE("as root, permissions refuse nothing: a file in the way stands for them");
  TempFolder s;
  std::ofstream(s / "file") << "in the way";
  for (const auto& folder : {s / "file", s / "file/below", std::string("/proc/q4-cache")}) {
    CAPTURE(folder);
    int warnings = 0;
    KernelCache cache({.folder = folder},
                      [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
    CHECK(*cache.get(numbered_key(0), [] { return compiled(0, 10); }).code == numbered_code(0, 10));
    CHECK(*cache.get(numbered_key(1), [] { return compiled(1, 10); }).code == numbered_code(1, 10));
    CHECK(warnings == 1);
  }
  const int status = finish(start([&] {
    ::unsetenv("HOME"), ::unsetenv("XDG_CACHE_HOME"), ::unsetenv("Q4_CACHE_DIR");
    int warnings = 0;
    RuntimeOptions options;
    options.log = [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; };
    const Runtime runtime(options);
    return runtime.cache_dir().empty() && warnings == 1 ? 0 : 1;
  }));
  CHECK(status == 0);
}

TEST_CASE("cache: a write that stops half-way, as on a full disk, leaves nothing behind but a warning") {
  TempFolder s;
  const int status = finish(start([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{20000, 20000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    int warnings = 0;
    KernelCache cache({.folder = s / "k"},
                      [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
    for (const int i : {0, 1})
      if (*cache.get(numbered_key(i), [&] { return compiled(i, 50000); }).code != numbered_code(i, 50000)) return 2;
    if (warnings != 1) return 3;
    return *cache.get(numbered_key(2), [] { return compiled(2, 100); }).code == numbered_code(2, 100)
               ? 0
               : 4;  // small enough
  }));
  CHECK(status == 0);
  std::size_t files = 0;
  for (const auto& file : fs::directory_iterator(s / "k")) files += file.path().filename() != ".lock";
  CHECK(files == 1);
}

TEST_CASE("cache: a group-writable folder and a symbolic link are not written to") {
  TempFolder s;
  fs::create_directories(s / "open");
  ::chmod((s / "open").c_str(), 0770);
  fs::create_directories(s / "real");
  fs::create_directory_symlink(s / "real", s / "link");
  for (const auto& folder : {s / "open", s / "link"}) {
    int warnings = 0;
    KernelCache cache({.folder = folder},
                      [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
    CHECK(*cache.get(numbered_key(0), [] { return compiled(0, 10); }).code == numbered_code(0, 10));
    CHECK(warnings == 1);
    CHECK(fs::is_empty(folder));
  }
}

TEST_CASE("q4-cache: build without a GPU, pack, verify; the pack serves every plan with the compiler hidden") {
  if (const cuda::Nvrtc nvrtc; !nvrtc.available()) return test::skip("no NVRTC: " + nvrtc.problem());
  TempFolder s;
  const std::string folder = s / "k", pack = s / "ship.q4pack";
  const auto built = q4_cache(
      "build --json --target sm_80,sm_90a/132 --shape 256x512 --group 64 --act-order --max-m 16 --cache-dir " + folder);
  REQUIRE_MESSAGE(built.status == 0, built.out);
  const auto json = nlohmann::json::parse(built.json());
  REQUIRE(json["targets"].size() == 2);
  for (const auto& target : json["targets"]) {
    CHECK(target["kernels"].get<int>() >= 5);  // two packers, the remap, and kernels for m
    CHECK(target["compiled"] == target["kernels"]);
  }
  TuningDb tuning;
  TuningRecord record;
  record.key.fingerprint = "A100", record.key.arch = "sm_80", record.key.units = 108;
  record.key.k = 256, record.key.n = 512, record.key.group = 64;
  record.buckets.resize(1);
  record.buckets[0].m = 1, record.buckets[0].tactic = "gemv half2=0 rows=1 tiles=1 warps=8";
  record.key.kernels = tuning_digest(choose::kernel_digests());
  tuning.add(record);
  tuning.save(s / "tuning.jsonl");
  const auto tuned = q4_cache("build --target sm_80 --shape 256x512 --group 64 --max-m 1 --tuning " +
                              (s / "tuning.jsonl") + " --cache-dir " + folder);
  REQUIRE_MESSAGE(tuned.status == 0, tuned.out);
  CHECK(q4_cache("ls --cache-dir " + folder).out.find("gemv {") != std::string::npos);
  REQUIRE(q4_cache("pack --out " + pack + " --cache-dir " + folder).status == 0);
  CHECK(q4_cache("verify " + pack).status == 0);
  CHECK(q4_cache("verify --cache-dir " + folder).status == 0);
  CHECK(q4_cache("ls --cache-dir " + folder).out.find("reconstruct") == std::string::npos);  // every m has a kernel

  // What a machine with the pack and no compiler does: the same plans, every kernel found, none compiled.
  const int status = finish(start([&] {
    ::setenv("Q4_NVRTC", "/nonexistent/libnvrtc.so", 1);
    KernelCache prebuilt({.mode = CacheMode::kRequirePrebuilt, .packs = {pack}}, nullptr);
    autotune::Problem problem{"", 256, 512, 64, true};
    for (const auto& target : tools::parse_targets("sm_80,sm_90a/132")) {
      tools::CrossCompiler device(target, prebuilt);
      device.add(problem, {.max_m = 16});
      if (device.kernels() < 5 || device.compiled() != 0) return 1;
    }
    try {
      tools::CrossCompiler device(tools::parse_targets("sm_80")[0], prebuilt);
      problem.n = 520;
      device.add(problem, {.max_m = 16});
      return 2;  // not in the pack
    } catch (const Error& error) { return error.code() == ErrorCode::kNotFound ? 0 : 3; }
  }));
  CHECK(status == 0);

  fs::resize_file(pack, fs::file_size(pack) - 1);
  CHECK(q4_cache("verify " + pack).status == 1);
  CHECK(q4_cache("verify " + pack + ".none").status == 2);
  CHECK(q4_cache("verify --bogus").status == 2);
  CHECK(q4_cache("build --target sm_1 --shape 256x512 --cache-dir " + folder).status == 2);
  const auto files = stored_files(folder);
  fs::resize_file(files[0].path, 100);
  CHECK(q4_cache("verify --cache-dir " + folder).status == 1);
  CHECK(q4_cache("prune --max-bytes 0 --cache-dir " + folder).status == 0);
  CHECK(stored_files(folder).empty());
}

}  // namespace q4::cache
