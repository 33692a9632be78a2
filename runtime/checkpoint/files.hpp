// Which safetensors files a path means, and where each tensor is.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/checkpoint/safetensors.hpp"

namespace q4::checkpoint {

struct Located {
  const SafetensorsFile* file = nullptr;
  const StoredTensor* tensor = nullptr;
};

/// Tensors whose bytes are there for a scope (SafetensorsFile::fetch).
class Fetched {
 public:
  Fetched() = default;
  explicit Fetched(std::initializer_list<const Located*> all) {
    for (const Located* at : all) add(*at);
  }
  Fetched(const Fetched&) = delete;
  ~Fetched() {
    for (const Located& at : all_) at.file->release(*at.tensor);
  }
  void add(const Located& at) {  ///< nothing happens for a tensor that is not there
    if (at.tensor == nullptr) return;
    all_.push_back(at);
    try {
      at.file->fetch(*at.tensor);
    } catch (...) {
      all_.pop_back();
      throw;
    }
  }

 private:
  std::vector<Located> all_;
};

/// The open files of one checkpoint. Pointers in `tensors` stay valid while `files` lives.
struct FileSet {
  std::string folder;  ///< where config.json would be
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::unordered_map<std::string, Located> tensors;
};

/// `path`: a .safetensors file, an index (*.index.json), or a folder. In a folder, in this order: model.safetensors,
/// model.safetensors.index.json, the only *.safetensors.index.json, the only *.safetensors, all shards of one set. The
/// index of the model before it was quantized is passed over where none of its files is there, and so are indices of
/// other formats. An
/// index decides what belongs to the checkpoint: tensors of its files that it does not name are left out.
FileSet open_files(const std::string& path);

}  // namespace q4::checkpoint
