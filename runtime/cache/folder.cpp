// Finds, adds and evicts entry files.
#include "runtime/cache/folder.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <functional>
#include <thread>
#include <tuple>

#include "runtime/cache/trust.hpp"

namespace q4::cache {
namespace {

constexpr std::size_t kDigestDigits = 64;
constexpr std::int64_t kSecond = 1'000'000'000;
/// A use is noted at most this often: a hit should not cost a write to the disk.
constexpr std::int64_t kTouchAfter = 60 * kSecond;
/// A temporary file this old has lost its writer.
constexpr std::int64_t kAbandonedAfter = 3600 * kSecond;

std::int64_t now_ns() {
  timespec now;
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

/// A file may claim any time; beyond what 64 bits of nanoseconds hold it is only far in the past or the future.
std::int64_t modified_ns(const struct stat& status) {
  constexpr std::int64_t kMost = INT64_MAX / kSecond - 1;
  return std::clamp<std::int64_t>(status.st_mtim.tv_sec, -kMost, kMost) * kSecond + status.st_mtim.tv_nsec;
}

void each_file(const std::string& folder, const std::function<void(const std::string& name)>& visit) {
  DIR* directory = ::opendir(folder.c_str());
  if (!directory) return;
  while (const dirent* entry = ::readdir(directory)) visit(entry->d_name);
  ::closedir(directory);
}

void note_use(const std::string& path) {
  struct stat status;
  if (::lstat(path.c_str(), &status) != 0 || std::llabs(now_ns() - modified_ns(status)) < kTouchAfter) return;
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
}

}  // namespace

void Folder::scan() {
  std::multimap<std::string, std::string> files;
  each_file(path_, [&](const std::string& name) {
    if (name.ends_with(kExtension) && name.size() > kDigestDigits) files.emplace(name.substr(0, kDigestDigits), name);
  });
  std::lock_guard lock(mutex_);
  files_ = std::move(files);
}

Found Folder::newest(const std::string& digest, const std::string& target) {
  std::vector<std::string> names;
  {
    std::lock_guard lock(mutex_);
    const auto [first, last] = files_.equal_range(digest);
    for (auto it = first; it != last; ++it) names.push_back(it->second);
  }
  Found best;
  for (const auto& name : names) {
    auto found = read_entry(path_ + "/" + name);
    if (found.entry && (found.entry->digest != digest || found.entry->key.target != target))
      found = {{}, "holds another kernel than its name says"};
    if (!found.problem.empty()) best.problem = path_ + "/" + name + ": " + found.problem;
    if (found.entry && (!best.entry || found.entry->created > best.entry->created)) best.entry = std::move(found.entry);
  }
  return best;
}

Found Folder::find(const std::string& digest, const std::string& target, bool note) {
  auto found = newest(digest, target);
  if (!found.entry) {  // another process may have added it, or removed what the last scan saw
    scan();
    found = newest(digest, target);
  }
  if (found.entry && own_ && note) note_use(path_ + "/" + file_name(*found.entry));
  return found;
}

std::string Folder::store(const Entry& entry, std::uint64_t max_bytes) {
  std::string problem = prepare_folder(path_);
  if (problem.empty()) problem = write_file(path_, file_name(entry), encode(entry), file_mode(trust_of_environment()));
  if (!problem.empty()) return problem;
  for (const auto& file : stored_files(path_))
    if (std::filesystem::path(file.path).filename().string().starts_with(entry.digest) &&
        !read_entry(file.path).problem.empty())
      ::unlink(file.path.c_str());
  if (max_bytes == 0) return {};
  std::uint64_t bytes = 0;
  for (const auto& file : stored_files(path_)) bytes += file.bytes;
  prune(path_, bytes > max_bytes ? max_bytes / 10 * 9 : max_bytes);  // with room for the next ones
  return {};
}

std::vector<StoredFile> stored_files(const std::string& folder) {
  std::vector<StoredFile> files;
  each_file(folder, [&](const std::string& name) {
    struct stat status;
    const std::string path = folder + "/" + name;
    if (name.ends_with(kExtension) && ::lstat(path.c_str(), &status) == 0 && !S_ISDIR(status.st_mode))
      files.push_back({path, static_cast<std::uint64_t>(status.st_size), modified_ns(status)});
  });
  std::sort(files.begin(), files.end(), [](const StoredFile& a, const StoredFile& b) {
    return std::tie(a.used_ns, a.path) < std::tie(b.used_ns, b.path);
  });
  return files;
}

Pruned prune(const std::string& folder, std::uint64_t max_bytes) {
  Pruned result;
  const auto files = stored_files(folder);
  for (const auto& file : files) result.left += file.bytes;
  for (const auto& file : files) {
    if (result.left <= max_bytes) break;
    if (::unlink(file.path.c_str()) != 0 && errno != ENOENT) continue;
    ++result.files, result.bytes += file.bytes, result.left -= file.bytes;
  }
  each_file(folder, [&](const std::string& name) {
    struct stat status;
    const std::string path = folder + "/" + name;
    if (name.starts_with(kTemporary) && ::lstat(path.c_str(), &status) == 0 &&
        std::llabs(now_ns() - modified_ns(status)) > kAbandonedAfter)
      ::unlink(path.c_str());
  });
  return result;
}

KeyLock::KeyLock(const std::string& folder, const std::string& digest, double wait_s) {
  fd_ = ::open((folder + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd_ < 0) return;
  if (trust_of_environment() == Trust::kGroup) ::fchmod(fd_, file_mode(Trust::kGroup));  // fails where another made it
  // One file for all keys: each locks a byte of its own, at an offset that no file reaches. The kernel releases it when
  // the holder dies, however it dies.
  struct flock range {};
  range.l_type = F_WRLCK, range.l_whence = SEEK_SET, range.l_len = 1;
  range.l_start = static_cast<off_t>(std::strtoull(digest.substr(0, 15).c_str(), nullptr, 16));
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_s);
  auto pause = std::chrono::milliseconds(1);
  while (!(held_ = ::fcntl(fd_, F_OFD_SETLK, &range) == 0)) {
    if ((errno != EAGAIN && errno != EACCES && errno != EINTR) || std::chrono::steady_clock::now() > end) return;
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, std::chrono::milliseconds(20));
  }
}

KeyLock::~KeyLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace q4::cache
