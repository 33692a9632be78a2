// A .q4pack: many kernels in one read-only file that a deployment ships.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cache/entry.hpp"

namespace q4::cache {

inline constexpr const char* kPackExtension = ".q4pack";

/// File, little-endian:
///
///     0    magic "q4pack\r\n"
///     8    u32 schema, u32 number of entries
///     16   u64 bytes of the manifest, u64 bytes of the tuning records, u64 bytes of the file
///     40   SHA-256 over bytes 0..39, manifest, tuning records and index
///     72   Ed25519 signature of bytes 0..71, and the public key that it is by; zeros: not signed
///     168  manifest (JSON text), tuning records (JSON Lines)
///     ..   index, sorted by key: {key 32, SHA-256 32, u64 offset, u64 bytes} an entry
///     ..   entries, each as an entry file (entry.hpp)
///
/// Entries carry their SHA-256 and the index repeats it, so the digest of the head covers every byte of the file, and
/// the signature the digest, while opening a pack reads its head alone. Nothing in it depends on where it lies.
class Pack {
 public:
  /// Reads the head of the file and checks it; entries are read when they are used, never mapped: a file that another
  /// machine truncates or replaces is an error, not a SIGBUS. A failure if it is not a sound pack or not one that
  /// we may trust (trust.hpp). With a `public_key` (hex) it must be signed by that, and then anybody may be
  /// its owner: the signature covers every byte that is used.
  static Result<std::shared_ptr<const Pack>> open(const std::string& path, const std::string& public_key = {});
  ~Pack();
  Pack(const Pack&) = delete;

  const std::string& path() const { return path_; }
  std::size_t size() const { return count_; }
  /// Every byte of the file.
  Result<std::string> bytes() const { return read(0, file_bytes_); }
  std::string_view manifest() const;
  std::string_view tuning() const;  ///< JSON Lines, as a tuning file
  /// Whether it has a kernel for this target that was made from one of these headers, as its manifest says.
  bool holds(const std::string& target, const std::vector<std::string>& headers) const;
  std::string signer() const;  ///< the public key in hex that its signature claims; empty: not signed
  /// Nothing if the pack does not hold this key; a problem if what it holds is damaged.
  Found find(const std::string& digest, const std::string& target) const;
  /// The i-th entry in order of the keys, checked.
  Result<Entry> entry(std::size_t i) const;
  /// Reads every byte. One text for each thing that is wrong.
  std::vector<std::string> verify() const;

 private:
  Pack() = default;
  std::string_view index(std::size_t i) const;
  Result<std::string> read(std::size_t at, std::size_t size) const;

  std::string path_;
  int fd_ = -1;
  std::string head_;  ///< all that stands before the entries
  std::size_t file_bytes_ = 0, count_ = 0, tuning_at_ = 0, index_at_ = 0;
};

/// Of entries with the same key the one made last stays. Signed where there is a `secret` key (hex). The file (0644)
/// appears whole, by renaming. Empty text, or what went wrong; throws what sign() throws.
std::string write_pack(const std::string& path, const std::vector<Entry>& entries, std::string_view tuning = {},
                       const std::string& secret = {});
/// Signs a pack that is there, by renaming a signed copy over it. As write_pack().
std::string sign_pack(const std::string& path, const std::string& secret);

}  // namespace q4::cache
