// Whose cache files are trusted: owners, groups, signed packs; and packs that change while they are in use.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cache_support.hpp"
#include "report.hpp"
#include "runtime/base/check.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/cache/signature.hpp"
#include "runtime/cache/trust.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;

struct Variable {
  const char* name;
  Variable(const char* name, const char* value) : name(name) { ::setenv(name, value, 1); }
  ~Variable() { ::unsetenv(name); }
};

Entry numbered_entry(int i) { return make_entry(numbered_key(i), "nvrtc 1", 1, numbered_code(i, 1000)); }

/// Whether a process of this user and group, with the group trusted, finds kernel `find` in the folder without compiling,
/// and then keeps kernel `add` there.
int pod(uid_t user, gid_t group, const std::string& folder, int find, int add) {
  return finish(start([&] {
    ::umask(077);  // what is written must still be for the group
    if (::setgroups(0, nullptr) != 0 || ::setgid(group) != 0 || ::setuid(user) != 0) return 9;
    int warnings = 0;
    KernelCache cache({.folder = folder},
                      [&](LogLevel level, const std::string&) { warnings += level == LogLevel::kWarning; });
    bool compiles = false;
    if (find >= 0) cache.get(numbered_key(find), [&] { return compiles = true, compiled(find, 1000); });
    cache.get(numbered_key(add), [&] { return compiled(add, 1000); });
    return compiles ? 1 : warnings ? 2 : 0;
  }));
}

}  // namespace

TEST_CASE("trust: with Q4_CACHE_TRUST=group, processes of one group and other users share a folder") {
  if (::geteuid() != 0) return test::skip("another owner: only root can be somebody else");
  TempFolder s;
  ::chmod(s.path().c_str(), 0755);
  fs::create_directories(s / "volume");
  REQUIRE(::chown((s / "volume").c_str(), 0, 4242) == 0);
  ::chmod((s / "volume").c_str(), 02775);  // as Kubernetes' fsGroup leaves a volume
  const std::string folder = s / "volume/q4";
  const Variable trust("Q4_CACHE_TRUST", "group");
  CHECK(pod(100001, 4242, folder, -1, 0) == 0);
  CHECK(pod(100002, 4242, folder, 0, 1) == 0);
  CHECK(pod(100003, 4242, folder, 1, 2) == 0);
  CHECK(stored_files(folder).size() == 3);
  CHECK(pod(100004, 4343, folder, 0, 3) != 0);  // of another group
  ::unsetenv("Q4_CACHE_TRUST");
  CHECK(pod(100005, 4242, folder, 0, 4) == 1);  // by default nothing there is trusted, and the kernel is compiled
  CHECK(stored_files(folder).size() == 3);
}

TEST_CASE("trust: the group is trusted only when that is asked for, the world never") {
  TempFolder s;
  fs::create_directories(s / "k");
  REQUIRE(Folder(s / "k", true).store(numbered_entry(0), 0) == "");
  const std::string file = stored_files(s / "k")[0].path;
  ::chmod(file.c_str(), 0660);
  CHECK(contains(read_entry(file).problem, "Q4_CACHE_TRUST=group"));
  {
    const Variable trust("Q4_CACHE_TRUST", "group");
    CHECK(read_entry(file).entry);
    ::chmod(file.c_str(), 0662);
    CHECK(contains(read_entry(file).problem, "chmod o-w"));
  }
  const Variable wrong("Q4_CACHE_TRUST", "everybody");
  CHECK_THROWS_WITH(cache_options({}), doctest::Contains("Q4_CACHE_TRUST = everybody: it must be owner or group"));
}

TEST_CASE("trust: a pack that is signed by the configured key is used whoever may write it") {
  if (!signing_problem().empty()) return test::skip(signing_problem());
  TempFolder s;
  const auto keys = make_signing_keys();
  REQUIRE(write_pack(s / "p.q4pack", {numbered_entry(0)}, {}, keys.secret) == "");
  ::chmod((s / "p.q4pack").c_str(), 0666);
  CHECK_FALSE(Pack::open(s / "p.q4pack"));
  const auto pack = Pack::open(s / "p.q4pack", keys.public_key);
  REQUIRE(pack);
  CHECK((*pack)->entry(0));
}

TEST_CASE("trust: a pack that is truncated, overwritten or replaced while it is open is an error, not a signal") {
  TempFolder s;
  const std::string path = s / "p.q4pack";
  REQUIRE(write_pack(path, {numbered_entry(0), numbered_entry(1)}) == "");
  const auto pack = Pack::open(path);
  REQUIRE(pack);
  REQUIRE(write_pack(path, {numbered_entry(2)}) == "");  // renamed over it: the old file lives on
  CHECK((*pack)->entry(1));
  const auto opened = Pack::open(path);
  REQUIRE(opened);
  const auto cut = *opened;
  const auto why_not = [&] {
    const auto entry = cut->entry(0);
    return entry ? "" : entry.reason();
  };
  fs::resize_file(path, fs::file_size(path) - 100);
  CHECK(contains(why_not(), "truncated after it was opened"));
  CHECK(cut->verify().size() == 1);
  std::ofstream(path, std::ios::binary | std::ios::app) << std::string(100, 'x');
  CHECK(contains(why_not(), "checksum"));
}

}  // namespace q4::cache
