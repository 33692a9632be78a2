// Signed packs: what is accepted with a public key, what is not, and that nothing is where libsodium is missing.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include "cache_support.hpp"
#include "runtime/cache/signature.hpp"

namespace q4::cache {
namespace {

Entry entry(int i) { return make_entry(numbered_key(i), "nvrtc 1", 1, numbered_code(i, 100)); }

bool no_sodium(const char* what) {
  const auto problem = signing_problem();
  if (!problem.empty()) test::skip(std::string(what) + ": " + problem);
  return !problem.empty();
}

/// What a cache that requires `public_key` serves from this pack alone, and its first warning.
std::string served(const std::string& pack, const std::string& public_key, std::string& warning) {
  KernelCache cache({.packs = {pack}, .public_key = public_key}, [&](LogLevel level, const std::string& text) {
    if (level == LogLevel::kWarning && warning.empty()) warning = text;
  });
  const auto code = *cache.get(numbered_key(0), [] { return Compiled{{'j', 'i', 't'}, "nvrtc 1", ""}; }).code;
  return {code.begin(), code.end()};
}

}  // namespace

TEST_CASE("signatures: the signer's packs alone are used, wherever something is changed") {
  if (no_sodium("signed packs")) return;
  TempFolder s;
  const auto keys = make_signing_keys(), others = make_signing_keys();
  CHECK(keys.public_key != others.public_key);
  const std::string path = s / "p.q4pack", code(100, 'a');
  REQUIRE(write_pack(path, {entry(0), entry(1)}, "", keys.secret) == "");
  std::string warning;
  CHECK(served(path, keys.public_key, warning) == code);
  CHECK(served(path, "", warning) == code);  // nobody asks
  CHECK(warning == "");
  CHECK((*Pack::open(path))->signer() == keys.public_key);
  CHECK((*Pack::open(path))->verify().empty());

  CHECK(served(path, others.public_key, warning) == "jit");
  CHECK(contains(warning, "signed by " + keys.public_key));
  warning.clear();
  REQUIRE(write_pack(s / "unsigned.q4pack", {entry(0)}) == "");
  CHECK(served(s / "unsigned.q4pack", keys.public_key, warning) == "jit");
  CHECK(contains(warning, "not signed"));
  warning.clear();
  CHECK(served(path, "abc", warning) == "jit");
  CHECK(contains(warning, "abc"));

  REQUIRE(sign_pack(s / "unsigned.q4pack", keys.secret) == "");
  CHECK(served(s / "unsigned.q4pack", keys.public_key, warning) == code);
  // Another's kernels under this signature: the head's digest, which is signed, names every entry.
  REQUIRE(write_pack(s / "forged.q4pack", {entry(0), entry(2)}, "", others.secret) == "");
  std::string forged = read_file(s / "forged.q4pack");
  forged.replace(72, 96, read_file(path).substr(72, 96));
  std::ofstream(s / "forged.q4pack", std::ios::binary) << forged;
  warning.clear();
  CHECK(served(s / "forged.q4pack", keys.public_key, warning) == "jit");
  CHECK(contains(warning, "does not match"));
  CHECK_FALSE((*Pack::open(s / "forged.q4pack"))->verify().empty());
  // Any byte of the head, and any byte of the entry.
  const std::string whole = read_file(path);
  int used = 0;
  for (std::size_t at = 0; at < whole.size(); at += at < 200 ? 1 : 37) {
    std::string data = whole;
    data[at] = static_cast<char>(data[at] ^ 4);
    std::ofstream(s / "bent.q4pack", std::ios::binary) << data;
    const auto got = served(s / "bent.q4pack", keys.public_key, warning);
    CHECK_MESSAGE((got == "jit" || got == code), at);  // damage to another entry does not take this one
    used += got == code;
  }
  CHECK(used > 0);
  CHECK(used < 60);
}

TEST_CASE("signatures: without libsodium signing is refused and no pack passes a public key") {
  TempFolder s;
  const std::string key(64, 'a'), hidden = "Q4_SODIUM=/nonexistent/libsodium.so";
  REQUIRE(write_pack(s / "p.q4pack", {entry(0)}) == "");
  const auto made = run_tool("q4-cache keygen --out " + (s / "k"), hidden);
  CHECK(made.status == 1);
  CHECK(contains(made.out, "libsodium"));
  CHECK(run_tool("q4-cache verify " + (s / "p.q4pack"), hidden).status == 0);
  CHECK(run_tool("q4-cache verify --public-key " + key + " " + (s / "p.q4pack"), hidden).status == 1);
  if (no_sodium("hiding libsodium")) return;
  const auto keys = make_signing_keys();
  REQUIRE(sign_pack(s / "p.q4pack", keys.secret) == "");
  const auto checked = run_tool("q4-cache verify --public-key " + keys.public_key + " " + (s / "p.q4pack"), hidden);
  CHECK(checked.status == 1);
  CHECK(contains(checked.out, "cannot be checked"));
  CHECK(run_tool("q4-cache verify " + (s / "p.q4pack"), "Q4_PACK_PUBLIC_KEY=" + keys.public_key).status == 0);
  CHECK(run_tool("q4-cache verify " + (s / "p.q4pack"), "Q4_PACK_PUBLIC_KEY=" + std::string(64, 'b')).status == 1);
}

TEST_CASE("signatures: keygen, sign and pack --sign by the tool; a secret that others may read is refused") {
  if (no_sodium("signing by q4-cache")) return;
  TempFolder s;
  const auto key = s / "ops";
  REQUIRE(run_tool("q4-cache keygen --out " + key).status == 0);
  CHECK(run_tool("q4-cache keygen --out " + key).status == 1);  // never over another's
  CHECK(run_tool("q4-cache keygen --out " + (s / "")).status == 2);
  ::rename((key + ".public").c_str(), (s / "half.public").c_str());
  CHECK(run_tool("q4-cache keygen --out " + (s / "half")).status == 1);
  CHECK_FALSE(std::filesystem::exists(s / "half.secret"));  // a secret without its public key would be of no use
  ::rename((s / "half.public").c_str(), (key + ".public").c_str());
  struct stat status;
  REQUIRE(::stat((key + ".secret").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  REQUIRE(write_pack(s / "p.q4pack", {entry(0)}) == "");
  CHECK(run_tool("q4-cache sign " + (s / "p.q4pack") + " --sign " + key + ".secret").status == 0);
  CHECK(run_tool("q4-cache verify --public-key " + key + ".public " + (s / "p.q4pack")).status == 0);
  CHECK(
      run_tool("q4-cache merge --out " + (s / "m.q4pack") + " --sign " + key + ".secret " + (s / "p.q4pack")).status ==
      0);
  CHECK(run_tool("q4-cache verify --public-key " + key + ".public " + (s / "m.q4pack")).status == 0);
  std::string bytes = read_file(s / "p.q4pack");
  bytes[bytes.size() - 40] ^= 1;  // of the entry's code
  std::ofstream(s / "damaged.q4pack", std::ios::binary) << bytes;
  const auto damaged = run_tool("q4-cache sign " + (s / "damaged.q4pack") + " --sign " + key + ".secret");
  CHECK(damaged.status == 1);
  CHECK_MESSAGE(contains(damaged.out, "checksum"), damaged.out);
  CHECK(read_file(s / "damaged.q4pack") == bytes);
  ::chmod((key + ".secret").c_str(), 0644);
  const auto open = run_tool("q4-cache sign " + (s / "p.q4pack") + " --sign " + key + ".secret");
  CHECK(open.status == 2);
  CHECK(contains(open.out, "chmod 600"));
}

}  // namespace q4::cache
