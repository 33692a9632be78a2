// The bytes of a regular file: memory-mapped, or read where it cannot be mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace q4::checkpoint {

/// Immutable and thread-safe. Holds no file descriptor: a checkpoint of a thousand files needs one at a time.
class FileBytes {
 public:
  enum class Access { kMap, kRead };  ///< kMap: mapped if the file system and the limits allow it, else read
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
  /// Throws kCorrupt if the file's size or modification time is no longer what it was: reading on could be a SIGBUS
  /// (truncated) or give mixed content (written in place). A file that was replaced or removed lives on in the mapping.
  void check_unchanged() const;

 private:
  void read(int file);

  std::string path_, absolute_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  std::uint64_t device_ = 0, inode_ = 0;
  std::int64_t modified_ns_ = 0;
};

/// What `start`, the first bytes of a file, says that the file is, with the remedy; empty: nothing that is known. A
/// git-lfs pointer, a web page, a PyTorch file, GGUF.
std::string foreign_content(std::string_view start);

/// A command that converts a PyTorch file to safetensors.
std::string conversion_command(const std::string& from);

}  // namespace q4::checkpoint
