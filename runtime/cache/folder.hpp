// A folder of entry files: the user's own, which is written to and bounded, or one that is only read.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/fork.hpp"
#include "runtime/cache/entry.hpp"

namespace q4::cache {

class Folder {
 public:
  /// `own`: a hit counts as a use (its modification time is what eviction goes by).
  Folder(std::string path, bool own) : path_(std::move(path)), own_(own) {}

  const std::string& path() const { return path_; }
  /// The sound entry of this key that was made last, and beside it what is wrong with one that is not sound.
  /// Thread-safe; sees what other processes have added or removed. `note`: a hit that counts as a use is written down.
  Found find(const std::string& digest, const std::string& target, bool note = true);
  /// Adds or replaces, and removes what is not sound under this key; then the least recently used go until the folder
  /// fits `max_bytes` (0: unbounded). Empty text, or what went wrong.
  std::string store(const Entry& entry, std::uint64_t max_bytes);

 private:
  Found newest(const std::string& digest, const std::string& target);
  void scan();

  std::string path_;
  bool own_;
  ForkSafeMutex mutex_;
  std::multimap<std::string, std::string> files_;  ///< digest -> file, as the last scan found them
};

/// An entry file as it lies there, unread.
struct StoredFile {
  std::string path;
  std::uint64_t bytes = 0;
  std::int64_t used_ns = 0;  ///< modification time: last write or hit
};
/// Those of a folder, least recently used first. Empty if there is no such folder.
std::vector<StoredFile> stored_files(const std::string& folder);

struct Pruned {
  std::size_t files = 0;
  std::uint64_t bytes = 0, left = 0;
};
/// Removes the least recently used until at most `max_bytes` are left, and what killed writers left behind. Readers
/// that have a file open keep it.
Pruned prune(const std::string& folder, std::uint64_t max_bytes);

/// Held while one process compiles a key, so that others wait for its result instead of repeating the work. Nothing is
/// wrong without it: after `wait_s`, or where the file system has no locks, the caller goes on unlocked.
class KeyLock {
 public:
  KeyLock(const std::string& folder, const std::string& digest, double wait_s);
  ~KeyLock();
  KeyLock(const KeyLock&) = delete;
  bool held() const { return held_; }

 private:
  int fd_ = -1;
  bool held_ = false;
};

}  // namespace q4::cache
