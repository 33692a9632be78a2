// One cached kernel as a file: checked when read, written so that no reader ever sees half of it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace q4::cache {

/// File: magic "q4kernel", u32 schema, then length-prefixed key digest, target, entry name, payload, and the SHA-256 of
/// all before it. Little-endian.
struct Entry {
  std::string digest;  ///< KernelKey::digest
  std::string target;
  std::string name;  ///< entry point
  std::vector<char> code;
};

/// Empty if there is no such file. `problem` is set, and the result empty, if the file is not a sound entry of that
/// digest and target: foreign, truncated, altered, a symbolic link, or of another owner.
std::optional<Entry> read_entry(const std::string& path, const std::string& digest, const std::string& target,
                                std::string& problem);

/// Temporary file in the same folder, fsync, rename, fsync of the folder. Empty text, or what went wrong.
std::string write_entry(const std::string& folder, const std::string& file, const Entry& entry);

/// Creates the folder (0700) if needed and checks that it is ours alone to write. Empty text, or what is wrong with it.
std::string prepare_folder(const std::string& folder);

}  // namespace q4::cache
