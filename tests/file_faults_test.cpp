// Files that cannot be written or read: each call of the C library that an operation makes fails in turn, by
// faults/files.c. What is interrupted or cut short goes on; everything else is an error with its cause, or for the cache a
// result without it; nothing is left behind, and the next try works.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <q4/checkpoint.hpp>
#include <q4/tuning.hpp>
#include <set>

#include "cache_support.hpp"
#include "checkpoint_maker.hpp"
#include "interpreted.hpp"
#include "runtime/cache/pack.hpp"
#include "runtime/checkpoint/file_bytes.hpp"
#include "runtime/untuned.hpp"
#include "tools/common/npy.hpp"
#include "tools/convert/convert.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;

std::set<std::string> names_below(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& file : fs::recursive_directory_iterator(folder)) names.insert(file.path().string());
  return names;
}
std::ptrdiff_t descriptors() {
  return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
}

/// What is done with files: `prepare` without faults, then `run`, which throws or gives a text where it noticed one.
struct Operation {
  const char* name;
  std::function<void()> prepare;
  std::function<std::string()> run;
  bool never_fails = false;  ///< the cache: a kernel is compiled and kept in memory
};

struct Files {
  void (*arm)(const char*, const char*, int, int) = nullptr;
  int (*failed)() = nullptr;
  void (*type)(long) = nullptr;
  Files() {
    const auto find = [](auto& to, const char* name) {
      to = reinterpret_cast<std::decay_t<decltype(to)>>(::dlsym(RTLD_DEFAULT, name));
    };
    find(arm, "file_faults_arm"), find(failed, "file_faults_failed"), find(type, "file_faults_type");
    REQUIRE(bool(arm));
  }
};

TuningDb tuning(double us) {
  TuningDb db;
  for (int k = 1; k <= 20; ++k) {
    TuningRecord record;
    record.key.fingerprint = "GPU", record.key.arch = "sm_90a", record.key.units = 132;
    record.key.k = 128 * k, record.key.n = 256, record.key.group = 128;
    record.buckets = {{.m = 1, .tactic = "gemv warps=4", .us = us, .us_low = us, .us_high = us, .default_us = us}};
    db.add(record);
  }
  return db;
}

std::vector<Operation> operations(const TempFolder& s) {
  const std::string folder = s.path();
  const auto fresh = [folder](const char* name) {
    fs::remove_all(folder + "/" + name);
    return folder + "/" + name;
  };
  const auto wrong = [](bool right) { return right ? std::string() : std::string("WRONG RESULT"); };
  const auto make_checkpoint_here = [folder] {
    fs::create_directories(folder + "/model");
    make_checkpoint(folder + "/model", {.matrix = {.k = 64, .n = 64, .group_size = 32}, .shards = 2});
  };
  const auto load = [folder, wrong] {
    const Runtime runtime({.cache_mode = CacheMode::kOff, .log = [](LogLevel, const std::string&) {}});
    const auto checkpoint = Checkpoint::open(folder + "/model");
    const auto made = make_gptq({.k = 64, .n = 64, .group_size = 32});
    const auto matrices = checkpoint.load_all(runtime, {});
    return wrong(matrices.size() == 3 && matrices[0].unpack().scales.size() == made.scales.size());
  };
  const auto get_kernel = [=] {
    std::string problem;
    cache::KernelCache kernels({.folder = folder + "/k"}, [&](LogLevel level, const std::string& text) {
      if (level == LogLevel::kWarning) problem = text;
    });
    const auto got = kernels.get(cache::numbered_key(1), [] { return cache::compiled(1, 5000); });
    return *got.code == cache::numbered_code(1, 5000) ? problem : "WRONG RESULT";
  };
  return {
      {"a kernel is stored", [=] { fresh("k"); }, get_kernel, true},
      {"a kernel is found",
       [=] {
         cache::Folder(fresh("k"), true)
             .store(cache::make_entry(cache::numbered_key(1), "nvrtc 1", 1, cache::numbered_code(1, 5000)), 0);
       },
       get_kernel, true},
      {"a pack is written", [=] { fresh("p.q4pack"); },
       [=] {
         return cache::write_pack(folder + "/p.q4pack", {cache::make_entry(cache::numbered_key(1), "nvrtc 1", 1,
                                                                           cache::numbered_code(1, 5000))});
       }},
      {"a pack is read",
       [=] {
         cache::write_pack(fresh("p.q4pack"),
                           {cache::make_entry(cache::numbered_key(1), "nvrtc 1", 1, cache::numbered_code(1, 5000))});
       },
       [=] {
         const auto pack = cache::Pack::open(folder + "/p.q4pack");
         if (!pack) return pack.reason();
         const auto entry = (*pack)->entry(0);
         if (!entry) return entry.reason();
         return wrong(entry->code == cache::numbered_code(1, 5000));
       }},
      {"tuning records are saved", [=] { fresh("t.jsonl"); },
       [=] { return tuning(2).save(folder + "/t.jsonl"), std::string(); }},
      {"tuning records are loaded", [=] { tuning(3).save(fresh("t.jsonl")); },
       [=] {
         TuningDb db;
         db.load(folder + "/t.jsonl");
         return wrong(db.str() == tuning(3).str());
       }},
      {"an untuned problem is noted", [=] { fresh("u.jsonl"); },
       [=] {
         UntunedLog log;
         log.open(folder + "/u.jsonl");
         TuningKey key;
         key.k = key.n = key.group = 8;
         const auto noted = log.note(key);
         return noted ? std::string() : noted.reason();
       }},
      {"a mapped checkpoint is loaded", make_checkpoint_here,
       [=] {
         const Environment map(std::vector<std::pair<std::string, std::string>>{{"Q4_CHECKPOINT_READ", "map"}});
         return load();
       }},
      {"a checkpoint is read", make_checkpoint_here,
       [=] {
         const Environment read(std::vector<std::pair<std::string, std::string>>{{"Q4_CHECKPOINT_READ", "read"}});
         return load();
       }},
      {"a checkpoint is converted",
       [=] {
         make_checkpoint_here();
         fresh("out");
       },
       [=] {
         tools::convert::Request request;
         request.in = folder + "/model", request.out = folder + "/out";
         return wrong(tools::convert::convert(request, [](double, const std::string&) {}).matrices == 3);
       }},
      {"activations are saved", [=] { fresh("x.npy"); },
       [=] {
         tools::NpyArray x{DType::kF32, {4, 64}, std::vector<std::byte>(1024)};
         tools::write_npy(folder + "/x.npy", x);
         return std::string();
       }},
      {"activations are read",
       [=] {
         tools::write_npy(fresh("x.npy"), {DType::kF32, {4, 64}, std::vector<std::byte>(1024, std::byte{7})});
       },
       [=] { return wrong(tools::read_npy(folder + "/x.npy").data == std::vector<std::byte>(1024, std::byte{7})); }},
  };
}

}  // namespace

// Run by the test below in a process that has faults/files.c.
TEST_CASE("file faults: inside: each call" * doctest::skip()) {
  const Files files;
  const TempFolder s;
  int injected = 0;
  for (const Operation& operation : operations(s)) {
    INFO(std::string(operation.name));
    const auto outcome = [&]() -> std::string {
      try {
        return operation.run();
      } catch (const Error& error) {
        return error.code() == ErrorCode::kInternal ? std::string("INTERNAL: ") + error.what() : error.what();
      }
    };
    operation.prepare();
    REQUIRE(outcome() == "");
    for (const char* call : {"open", "create", "read", "write", "fsync", "rename", "lock"})
      for (const int code : {ENOSPC, EIO, EINTR, ESTALE, -1}) {
        const bool goes_on = code == EINTR || code == -1,
                   moves_bytes = !std::strcmp(call, "read") || !std::strcmp(call, "write");
        if (goes_on && !moves_bytes) continue;
        for (int nth = 1; nth < 500; ++nth) {
          operation.prepare();
          const auto before = names_below(s.path());
          const auto open = descriptors();
          files.arm(s.path().c_str(), call, code, nth);
          const std::string text = outcome();
          const int failed = files.failed();
          files.arm("", "", 0, 0);
          if (!failed) break;
          ++injected;
          INFO(nth, ". ", std::string(call), ": ", std::string(code < 0 ? "half" : std::strerror(code)), ": ", text);
          CHECK(text.find("WRONG") == text.npos);
          CHECK(text.find("INTERNAL") == text.npos);
          CHECK(text.find("Success") == text.npos);
          if (goes_on) CHECK(text == "");
          if (!text.empty()) {
            for (const auto& name : names_below(s.path()))
              CHECK_MESSAGE(
                  (before.count(name) || name.ends_with(".lock") || name.ends_with("/k") || name.ends_with("/u.jsonl")),
                  name << " is left");
            if (operation.never_fails) CHECK(text.find(s.path()) != text.npos);
          }
          CHECK(descriptors() == open);
          if (text.empty()) operation.prepare();
          CHECK(outcome() == "");
        }
      }
  }
  MESSAGE(injected << " faults");
  CHECK(injected > 300);
}

TEST_CASE("file faults: inside: a network file system" * doctest::skip()) {
  const Files files;
  const TempFolder s;
  make_checkpoint(s.path(), {.matrix = {.k = 64, .n = 64, .group_size = 32}});
  const std::string file = s / "model.safetensors";
  CHECK_FALSE(checkpoint::FileBytes(file).on_demand());
  files.arm(s.path().c_str(), "", 0, 0);
  files.type(0x6969);
  CHECK(checkpoint::FileBytes(file).on_demand());
  const Runtime runtime({.cache_mode = CacheMode::kOff, .log = [](LogLevel, const std::string&) {}});
  const auto opened = Checkpoint::open(s.path());
  files.arm(s.path().c_str(), "read", ESTALE, 1);
  const std::string text = error_of([&] { opened.load_all(runtime, {}); });
  CHECK(text.starts_with("io: Checkpoint: " + file));
  CHECK(text.find("another machine replaced or removed the file") != text.npos);
  CHECK(opened.load_all(runtime, {}).size() == 3);
  const Environment map(std::vector<std::pair<std::string, std::string>>{{"Q4_CHECKPOINT_READ", "map"}});
  CHECK_FALSE(checkpoint::FileBytes(file).on_demand());
  files.type(0);
}

TEST_CASE("file faults: whatever call on a file fails, there is an error with its cause, and the next try works") {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  return skip("file faults: LD_PRELOAD would come before the sanitizer's run time");
#endif
  const auto ran = cache::run_tool("q4-tests --no-skip --test-case=\"file faults: inside*\"",
                                   "LD_PRELOAD=" + q4::test::binary_dir() + "/lib/libq4-faulty-files.so");
  CHECK_MESSAGE(ran.status == 0, ran.out);
  MESSAGE(ran.out.substr(0, 2000));
}

}  // namespace q4::test
