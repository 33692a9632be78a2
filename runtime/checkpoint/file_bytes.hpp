// The bytes of a regular file: memory-mapped, read, or read piece by piece as they are wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace q4::checkpoint {

/// Immutable and thread-safe. Holds no file descriptor: a checkpoint of a thousand files needs one at a time.
class FileBytes {
 public:
  enum class Access {
    /// Mapped if the limits allow it, else read; on a file system that other machines may change, where a mapping can end
    /// in SIGBUS, as kOnDemand. $Q4_CHECKPOINT_READ=map or =read says which of the two, whatever the file system.
    kMap,
    kRead,      ///< all of it, at once
    kOnDemand,  ///< zeros until fetch()
  };
  /// Throws kNotFound, kIo (not a regular file, no permission, too many open files) or kOutOfMemory; the text names the
  /// limit that was reached.
  explicit FileBytes(std::string path, Access access = Access::kMap);
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  /// The bytes are there when it returns. Throws kCorrupt if the file's size or modification time is no longer what it
  /// was: reading on could be a SIGBUS (truncated) or give mixed content (written in place). A file that was replaced or
  /// removed lives on in a mapping; on demand that is kCorrupt too, and what the file system says instead of bytes kIo.
  void fetch(std::size_t begin, std::size_t size) const;
  /// On demand: the memory of these bytes is free again, until the next fetch().
  void release(std::size_t begin, std::size_t size) const noexcept;
  bool on_demand() const { return on_demand_; }

 private:
  void read(int file, const char* call, std::size_t begin, std::size_t size) const;
  void read_all(int file);
  void check_unchanged() const;
  [[noreturn]] void modified(std::uint64_t now) const;

  std::string path_, absolute_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false, on_demand_ = false;
  std::uint64_t device_ = 0, inode_ = 0;
  std::int64_t modified_ns_ = 0;
};

/// "mapped from ext4", "read from nfs": how the weights in this file or folder get into memory.
std::string how_read(const std::string& path);

/// What `start`, the first bytes of a file, says that the file is, with the remedy; empty: nothing that is known. A
/// git-lfs pointer, a web page, a PyTorch file, GGUF.
std::string foreign_content(std::string_view start);

/// A command that converts a PyTorch file to safetensors.
std::string conversion_command(const std::string& from);

}  // namespace q4::checkpoint
