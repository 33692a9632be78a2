// A .q4pack: many kernels in one read-only file that a deployment ships.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cache/entry.hpp"

namespace q4::cache {

inline constexpr const char* kPackExtension = ".q4pack";

/// File, little-endian:
///
///     0   magic "q4pack\r\n"
///     8   u32 schema, u32 number of entries
///     16  u64 bytes of the manifest, u64 bytes of the file
///     32  SHA-256 over bytes 0..31, manifest and index
///     64  manifest (JSON text)
///     ..  index, sorted by key: {key 32, SHA-256 32, u64 offset, u64 bytes} an entry
///     ..  entries, each as an entry file (entry.hpp)
///
/// Entries carry their SHA-256 and the index repeats it, so the digest of the head covers every byte of the file, while
/// opening a pack reads its head alone. Nothing in it depends on where it lies.
class Pack {
 public:
  /// Maps the file and checks its head. Null, and `problem` set, if it is no sound pack that we may trust: only its
  /// owner or root may write it, and that is us or root.
  static std::shared_ptr<const Pack> open(const std::string& path, std::string& problem);
  ~Pack();
  Pack(const Pack&) = delete;

  const std::string& path() const { return path_; }
  std::size_t size() const { return count_; }
  std::string_view manifest() const;
  /// Empty without a problem if the pack does not hold this key; `problem` set if what it holds is damaged.
  std::optional<Entry> find(const std::string& digest, const std::string& target, std::string& problem) const;
  /// The i-th entry in order of the keys, checked.
  std::optional<Entry> entry(std::size_t i, std::string& problem) const;
  /// Reads every byte. One text for each thing that is wrong.
  std::vector<std::string> verify() const;

 private:
  Pack() = default;
  std::string_view index(std::size_t i) const;

  std::string path_;
  std::string_view data_;  ///< the mapping
  std::size_t count_ = 0, index_at_ = 0;
};

/// Of entries with the same key the one made last stays. The file (0644) appears whole, by renaming. Empty text, or
/// what went wrong.
std::string write_pack(const std::string& path, std::vector<Entry> entries);

}  // namespace q4::cache
