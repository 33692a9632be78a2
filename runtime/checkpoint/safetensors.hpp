// One safetensors file: its bytes mapped or read (file_bytes.hpp says when), its header checked whole before anything is handed out.
//
//     0        8            8 + N                                 end
//     ┌────────┬────────────┬─────────┬─────────┬───┬─────────────┐
//     │ u64 N  │ JSON, N B  │ tensor  │ tensor  │...│ tensor      │   little-endian, no holes, no overlap
//     └────────┴────────────┴─────────┴─────────┴───┴─────────────┘
//
// JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {"key": "text"}};
// offsets count from 8 + N. Format: https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/checkpoint/file_bytes.hpp"

namespace q4::checkpoint {

/// A tensor as the header describes it. `data` need not be aligned for its type: old writers did not pad the header.
struct StoredTensor {
  std::string dtype;  ///< the format's name: "F16", "I32", "F8_E4M3", ...
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// Immutable and thread-safe. The bytes live as long as the object.
class SafetensorsFile {
 public:
  /// Throws kNotFound, kIo, kCorrupt or kUnsupported (a dtype that this version does not know).
  explicit SafetensorsFile(std::string path, FileBytes::Access access = FileBytes::Access::kMap);

  const std::string& path() const { return bytes_.path(); }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  /// The tensor's bytes are there until as many calls of release(). Throws as FileBytes::fetch().
  void fetch(const StoredTensor& tensor) const;
  void release(const StoredTensor& tensor) const noexcept;

 private:
  void parse();
  std::size_t place(const StoredTensor& tensor) const { return static_cast<std::size_t>(tensor.data - bytes_.data()); }

  FileBytes bytes_;
  std::map<std::string, StoredTensor> tensors_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<const StoredTensor*, std::size_t> fetched_;  ///< of bytes that are read on demand
};

}  // namespace q4::checkpoint
