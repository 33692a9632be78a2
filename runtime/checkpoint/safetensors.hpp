// One safetensors file: memory-mapped read-only, its header checked whole before anything is handed out.
//
//     0        8            8 + N                                 end
//     ┌────────┬────────────┬─────────┬─────────┬───┬─────────────┐
//     │ u64 N  │ JSON, N B  │ tensor  │ tensor  │...│ tensor      │   little-endian, no holes, no overlap, nothing
//     behind └────────┴────────────┴─────────┴─────────┴───┴─────────────┘
//
// JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {"key": "text"}};
// offsets count from 8 + N. Format: https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace q4::checkpoint {

/// A tensor as the header describes it. `data` need not be aligned for its type: old writers did not pad the header.
struct StoredTensor {
  std::string dtype;  ///< the format's name: "F16", "I32", "F8_E4M3", ...
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// Immutable and thread-safe. The mapping lives as long as the object.
class SafetensorsFile {
 public:
  /// Throws kNotFound, kIo, kCorrupt or kUnsupported (a dtype that this version does not know).
  explicit SafetensorsFile(std::string path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  /// Throws kCorrupt if the file's size or modification time is no longer what it was when it was mapped: reading on
  /// could be a SIGBUS (truncated) or give mixed content (written in place).
  void check_unchanged() const;

 private:
  void map();
  void parse();
  void unmap() noexcept;

  std::string path_;
  int file_ = -1;
  const std::byte* mapped_ = nullptr;
  std::size_t size_ = 0;
  std::int64_t modified_ns_ = 0;
  std::map<std::string, StoredTensor> tensors_;
};

/// Size of a regular file. Throws kNotFound if it does not exist, kIo if it is something else or cannot be looked at.
std::size_t regular_file_size(const std::string& path);

}  // namespace q4::checkpoint
