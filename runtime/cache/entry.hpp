// One cached kernel as a file: checked when read, written so that no reader ever sees half of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.hpp"

namespace q4::cache {

inline constexpr const char* kExtension = ".q4k";
inline constexpr const char* kTemporary = ".tmp-";  ///< what the name of a file begins with until it is whole

/// What is compiled and how. A kernel is found by these parts, whichever compiler made it: a machine whose cache is
/// complete needs no compiler, and one that has it need not load it (README.md, "Keys").
struct KernelKey {
  std::string name;                  ///< for people: "decode {.p={.k=4096,...". Not a part of the key
  std::string source;                ///< generated text
  std::string headers;               ///< digest of the headers that the source includes, and no others
  std::string target;                ///< "sm_90a", "gfx90a"
  std::vector<std::string> options;  ///< of the compiler

  std::string text() const;    ///< every part with its length: two keys are equal if their texts are
  std::string digest() const;  ///< SHA-256 of text(), in hex
};

/// Bytes: magic "q4kernel", u32 schema, then each field with its u32 length (name, source, headers, target, options by
/// line, compiler, u64 created, code) and the SHA-256 of all before it. Little-endian.
struct Entry {
  KernelKey key;              ///< all of it, so that `q4-cache explain` can say what differs
  std::string digest;         ///< of the key: what it is found by
  std::string compiler;       ///< that made it, with its build; never empty
  std::uint64_t created = 0;  ///< seconds since 1970
  std::vector<char> code;
};
Entry make_entry(const KernelKey& key, const std::string& compiler, std::uint64_t created, std::vector<char> code);

/// "<digest>-<16 digits of the compiler>.q4k": what different compilers made lies side by side.
std::string file_name(const Entry& entry);

std::string encode(const Entry& entry);
/// A failure unless `data` is a sound entry. Any bytes are safe.
Result<Entry> decode(std::string_view data);

/// What a search gave: an entry, or what is wrong with what was found; neither where there is nothing.
struct Found {
  std::optional<Entry> entry;
  std::string problem;
};
/// Nothing if there is no such file; a problem if the file is not a sound entry of that name: foreign, truncated,
/// altered, a symbolic link, or of another owner.
Found read_entry(const std::string& path);

/// Empty text if the open file is regular and trusted (trust.hpp); else what is wrong with it. `size`: its bytes.
std::string trusted_file(int fd, std::size_t& size);

/// Temporary file in the same folder, fsync, rename, fsync of the folder. Empty text, or what went wrong.
std::string write_file(const std::string& folder, const std::string& file, std::string_view data, unsigned mode = 0600);

/// Creates the folder if needed and checks that it is trusted (trust.hpp). Empty text, or what is wrong with it.
std::string prepare_folder(const std::string& folder);

}  // namespace q4::cache
