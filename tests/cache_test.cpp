// The kernel cache: keys that see every part, entries that are checked, compiles that happen once.
#include "paths.hpp"
#include "runtime/cache/kernel_cache.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <latch>
#include <set>
#include <thread>

#include "runtime/base/sha256.hpp"
#include "runtime/cache/entry.hpp"
#include "runtime/jit/embedded.hpp"
#include "temp_folder.hpp"

using namespace q4;
using namespace q4::cache;
using q4::test::TempFolder;
namespace fs = std::filesystem;

namespace {

const std::string kCompiler = "nvrtc 13.0 CL-1";
KernelKey key() { return {"gemv", "source", "headers", "sm_90a", {"-std=c++20"}}; }

struct Fixture {
  TempFolder folder;
  std::vector<std::string> warnings;
  std::atomic<int> compiles = 0;
  std::vector<char> get(CacheMode mode, const KernelKey& k = key()) {
    KernelCache cache({.folder = folder / "kernels", .mode = mode}, [this](LogLevel level, const std::string& text) {
      if (level == LogLevel::kWarning) warnings.push_back(text);
    });
    return *cache
                .get(k,
                     [this] {
                       ++compiles;
                       return Compiled{{'c', 'o', 'd', 'e'}, kCompiler, ""};
                     })
                .code;
  }
  fs::path entry() {
    for (const auto& file : fs::directory_iterator(folder / "kernels"))
      if (file.path().extension() == ".q4k") return file.path();
    return {};
  }
};

}  // namespace

TEST_CASE("sha256: the standard's examples") {
  CHECK(Sha256().update("abc", 3).hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(Sha256().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  const std::string a(1000000, 'a');
  CHECK(Sha256().update(a.data(), a.size()).hex() ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  CHECK(Sha256().field("ab").field("c").hex() != Sha256().field("a").field("bc").hex());
}

TEST_CASE("cache: every part of a key counts, its name does not") {
  const auto digest = key().digest();
  auto k = key();
  k.name = "other";
  CHECK(k.digest() == digest);
  const std::vector<std::function<void(KernelKey&)>> changes = {[](KernelKey& c) { c.source += " "; },
                                                                [](KernelKey& c) { c.headers = "h2"; },
                                                                [](KernelKey& c) { c.target = "sm_90"; },
                                                                [](KernelKey& c) { c.options.push_back("-G"); },
                                                                [](KernelKey& c) { c.options[0] = "-std=c++23"; },
                                                                [](KernelKey& c) { c.options.clear(); }};
  for (const auto& change : changes) {
    auto changed = key();
    change(changed);
    CHECK(changed.digest() != digest);
  }
}

TEST_CASE("cache: a key's headers are those that its source includes, directly or not, and every byte of them") {
  const auto& headers = jit::embedded_headers();
  REQUIRE(headers.size() > 20);
  // What a search for the texts of the include lines reaches.
  const auto reached = [&](const std::string& root) {
    std::set<std::string> names = {root};
    for (std::size_t before = 0; before != names.size();) {
      before = names.size();
      for (const auto& header : headers)
        for (const auto& other : headers)
          if (names.count(header.name) &&
              std::string(header.text).find(std::string("\n#include \"") + other.name + "\"") != std::string::npos)
            names.insert(other.name);
    }
    return names;
  };
  for (const std::string root : {"decode.h", "prefill.h", "batch.h", "tile.h", "gemv.h", "remap.h", "pack.h"}) {
    const auto mine = reached(root);
    const std::string source = "#include \"" + root + "\"\n\nq4::decode<...>\n";
    const std::string digest = jit::headers_digest(source);
    CHECK(digest == jit::included_digest(source, headers));
    CHECK(digest == jit::header_digest(root));
    CHECK(mine.size() < headers.size());
    for (std::size_t i = 0; i < headers.size(); ++i) {
      CAPTURE(root);
      CAPTURE(std::string(headers[i].name));
      const bool counts = mine.count(headers[i].name) > 0;
      auto changed = headers;
      std::string text = std::string(headers[i].text) + "// a remark\n";
      changed[i].text = text.c_str();
      CHECK((jit::included_digest(source, changed) != digest) == counts);
      text = headers[i].text, text.back() = static_cast<char>(text.back() ^ 1);
      CHECK((jit::included_digest(source, changed) != digest) == counts);
      changed = headers, changed.erase(changed.begin() + static_cast<std::ptrdiff_t>(i));
      CHECK((jit::included_digest(source, changed) != digest) == counts);
    }
  }
  // What is embedded is what lies in kernels/, so a changed header is another key after the next build.
  for (const auto& header : headers) {
    std::ifstream file(fs::path(q4::test::source_dir()) / "kernels" / header.name, std::ios::binary);
    CHECK(std::string(std::istreambuf_iterator<char>(file), {}) == header.text);
  }
}

TEST_CASE("cache: a changed source of the CPU backend makes its tuning records stale after the next build") {
  std::set<fs::path> sources;
  for (const auto& file : fs::directory_iterator(fs::path(q4::test::source_dir()) / "runtime/backends/cpu"))
    if (file.path().extension() != ".md") sources.insert(file.path());
  REQUIRE(sources.size() > 20);
  const auto hex = [](const std::string& text) { return Sha256().update(text.data(), text.size()).hex(); };
  std::string all;
  for (const auto& source : sources) {
    std::ifstream file(source, std::ios::binary);
    all += hex({std::istreambuf_iterator<char>(file), {}});
  }
  CHECK(hex(all) == jit::cpu_sources_digest());
}

TEST_CASE("cache: a hit asks no compiler, and what compilers made lies side by side with their builds") {
  Fixture f;
  f.get(CacheMode::kReadWrite);
  CHECK(f.get(CacheMode::kReadWrite).size() == 4);

  const auto first = read_entry(f.entry()).entry;
  REQUIRE(first);
  CHECK(first->compiler == kCompiler);
  CHECK(first->key.text() == key().text());
  CHECK(first->key.name == "gemv");
  auto newer = *first;
  newer.compiler = "nvrtc 13.0 CL-2", newer.created += 10, newer.code = {'n', 'e', 'w'};
  CHECK(file_name(newer) != file_name(*first));
  Folder both(f.folder / "kernels", true);
  CHECK(both.store(newer, 0) == "");
  CHECK(f.get(CacheMode::kReadWrite) == newer.code);  // made last
  fs::resize_file(fs::path(f.folder / "kernels") / file_name(newer), 50);
  CHECK(f.get(CacheMode::kReadWrite) == first->code);  // the sound one
  CHECK(f.compiles == 1);

  newer.compiler = "";
  const auto unknown = decode(encode(newer));  // a kernel whose compiler nobody knows is not an entry
  REQUIRE_FALSE(unknown);
  CHECK(unknown.reason().find("compiler") != std::string::npos);
}

TEST_CASE("cache: a second process finds what the first compiled") {
  Fixture f;
  CHECK(f.get(CacheMode::kReadWrite) == std::vector<char>{'c', 'o', 'd', 'e'});
  CHECK(f.get(CacheMode::kReadWrite) == std::vector<char>{'c', 'o', 'd', 'e'});
  CHECK(f.get(CacheMode::kRequirePrebuilt).size() == 4);
  CHECK(f.compiles == 1);
  CHECK(f.warnings.empty());
  struct stat status;
  REQUIRE(::stat(f.entry().c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  for (const auto& file : fs::directory_iterator(f.folder / "kernels")) {
    const auto name = file.path().filename();
    CHECK((name.extension() == ".q4k" || name == ".lock"));  // no temporary file
  }
}

TEST_CASE("cache: a damaged entry is reported, compiled again and replaced") {
  const std::vector<std::function<void(const fs::path&)>> damages = {
      [](const fs::path& p) { fs::resize_file(p, fs::file_size(p) / 2); },
      [](const fs::path& p) { fs::resize_file(p, 0); },
      [](const fs::path& p) {
        std::fstream file(p, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(fs::file_size(p)) - 34);
        file.put('X');
      },
      [](const fs::path& p) {
        std::ofstream(p) << "something else entirely, but long enough to be read as an entry file";
      },
      [](const fs::path& p) {
        fs::rename(p, p.string() + ".real");
        fs::create_symlink(p.string() + ".real", p);
      },
      [](const fs::path& p) { ::chmod(p.c_str(), 0666); },
  };
  for (const auto& damage : damages) {
    Fixture f;
    f.get(CacheMode::kReadWrite);
    damage(f.entry());
    CHECK(f.get(CacheMode::kReadWrite) == std::vector<char>{'c', 'o', 'd', 'e'});
    CHECK(f.compiles == 2);
    CHECK(f.warnings.size() == 1);
    CHECK(f.get(CacheMode::kReadWrite).size() == 4);
    CHECK(f.compiles == 2);  // replaced by a sound one
  }
}

TEST_CASE("cache: an entry whose last option has no end is damaged, though its checksum matches") {
  const Entry entry = make_entry({"kernel", "source", "headers", "sm_90a", {"-std=c++20"}}, "nvrtc 1", 1, {'a'});
  std::string bytes = encode(entry);
  bytes.resize(bytes.size() - 32);
  const auto checked = [&] {
    const auto sum = Sha256().update(bytes.data(), bytes.size()).digest();
    return decode(bytes + std::string(reinterpret_cast<const char*>(sum.data()), sum.size()));
  };
  REQUIRE(checked());
  CHECK(checked()->key.options == entry.key.options);
  bytes.at(bytes.find("-std=c++20\n") + 10) = '0';
  REQUIRE_FALSE(checked());
  CHECK(checked().reason() == "its last option has no end");
}

TEST_CASE("cache: an entry under another key's name is refused") {
  Fixture f;
  f.get(CacheMode::kReadWrite);
  const auto first = f.entry();
  auto other = key();
  other.source = "other";
  const auto tail = first.filename().string().substr(64);
  fs::rename(first, fs::path(f.folder / "kernels") / (other.digest() + tail));
  f.get(CacheMode::kReadWrite, other);
  CHECK(f.compiles == 2);
  CHECK(f.warnings.size() == 1);
}

TEST_CASE("cache: trouble with the folder is one warning and never an error") {
  Fixture f;
  std::ofstream(f.folder / "kernels") << "a file where the folder should be";
  CHECK(f.get(CacheMode::kReadWrite).size() == 4);
  CHECK(f.warnings.size() == 1);
  fs::remove(f.folder / "kernels");
  fs::create_directory(f.folder / "real");
  fs::create_directory_symlink(f.folder / "real", f.folder / "kernels");
  CHECK(f.get(CacheMode::kReadWrite).size() == 4);
  CHECK(f.warnings.size() == 2);
  CHECK(fs::is_empty(f.folder / "real"));
}

TEST_CASE("cache: modes") {
  Fixture f;
  f.get(CacheMode::kOff);
  f.get(CacheMode::kReadOnly);
  CHECK_FALSE(fs::exists(f.folder / "kernels"));
  std::string text;
  try {
    f.get(CacheMode::kRequirePrebuilt);
  } catch (const Error& error) {
    text = error.what();
    CHECK(error.code() == ErrorCode::kNotFound);
  }
  CHECK(text.find(key().digest()) != text.npos);
  CHECK(text.find(f.folder / "kernels") != text.npos);
  CHECK(f.compiles == 2);
}

TEST_CASE("cache: many threads, one compile; a failure reaches all and is forgotten") {
  TempFolder folder;
  KernelCache cache({.folder = folder / "kernels"}, nullptr);
  std::atomic<int> compiles = 0, failures = 0;
  bool fail = true;
  const auto ask = [&](std::latch& start) {
    start.arrive_and_wait();
    try {
      cache.get(key(), [&]() -> Compiled {
        ++compiles;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        if (fail) throw Error(ErrorCode::kCompile, "no");
        return {{'x'}, kCompiler, ""};
      });
    } catch (const Error&) { ++failures; }
  };
  for (const int round : {0, 1}) {
    std::latch start(8);
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) threads.emplace_back([&] { ask(start); });
    for (auto& thread : threads) thread.join();
    CHECK(failures == 8);
    CHECK(compiles == (round == 0 ? 1 : 2));
    fail = false;
  }
}
