// Checkpoint: the public face of the files, the config and the matrices.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <q4/checkpoint.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/matrices.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4 {

class Checkpoint::Impl {
 public:
  explicit Impl(const std::string& path) : path_(path), files_(checkpoint::open_files(path)) {
    checkpoint::Matrices found = checkpoint::find_matrices(files_, checkpoint::read_config(files_.folder));
    config_ = found.config;
    matrices_ = std::move(found.list);
    for (const checkpoint::Matrix& matrix : matrices_) {
      index_.emplace(matrix.entry.name, entries_.size());
      entries_.push_back(matrix.entry);
    }
  }

  const std::string& path() const { return path_; }
  const QuantConfig& config() const { return config_; }
  const std::vector<MatrixEntry>& entries() const { return entries_; }
  const checkpoint::FileSet& files() const { return files_; }

  /// Which of entries() has this name.
  std::size_t index(const char* call, const std::string& name) const {
    const auto at = index_.find(name);
    if (at != index_.end()) return at->second;
    std::vector<std::string> names;
    for (const MatrixEntry& entry : entries_) names.push_back(entry.name);
    not_found(call, "quantized matrix", name, names);
  }

  const checkpoint::Matrix& matrix(const char* call, const std::string& name) const {
    return matrices_[index(call, name)];
  }

  [[noreturn]] void not_found(const char* call, const char* what, const std::string& name,
                              const std::vector<std::string>& names) const {
    std::string nearest;
    for (const std::string& near : checkpoint::nearest(name, names, 3)) {
      nearest += (nearest.empty() ? "; nearest: " : ", ") + checkpoint::quote(near);
    }
    fail(ErrorCode::kNotFound, "Checkpoint::{}: {}: no {} {} among {}{}", call, path_, what, checkpoint::quote(name),
         names.size(), nearest);
  }

  /// A view of a stored tensor; `name` for messages.
  TensorView view(const checkpoint::Located& at, const std::string& name) const {
    at.file->check_unchanged();
    const auto type = checkpoint::public_type(at.tensor->dtype);
    if (!type) {
      fail(ErrorCode::kUnsupported, "Checkpoint::tensor: {}: tensor {}: dtype {} has no q4 type; convert the tensor",
           at.file->path(), checkpoint::quote(name), at.tensor->dtype);
    }
    TensorView view;
    view.dtype = *type;
    view.rows = view.cols = 1;
    for (const std::int64_t extent : at.tensor->shape) {
      view.rows *= view.cols;  // no overflow: the header's check multiplied in the same order
      view.cols = extent;
    }
    view.data = aligned(*at.tensor, size_of(*type));
    return view;
  }

 private:
  /// The tensor where it is mapped, or a copy of it where the file does not align it.
  const void* aligned(const checkpoint::StoredTensor& tensor, std::size_t alignment) const {
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % alignment == 0) return tensor.data;
    const std::lock_guard lock(mutex_);
    std::unique_ptr<std::byte[]>& copy = copies_[&tensor];
    if (!copy) {
      copy = std::make_unique_for_overwrite<std::byte[]>(std::max<std::size_t>(tensor.bytes, 1));
      std::memcpy(copy.get(), tensor.data, tensor.bytes);
    }
    return copy.get();
  }

  std::string path_;
  checkpoint::FileSet files_;
  QuantConfig config_;
  std::vector<checkpoint::Matrix> matrices_;
  std::vector<MatrixEntry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
  mutable std::mutex mutex_;  // guards copies_
  mutable std::unordered_map<const checkpoint::StoredTensor*, std::unique_ptr<std::byte[]>> copies_;
};

namespace {

void need_format(const QuantConfig& config, QuantFormat format, const char* call, const char* other) {
  check(config.format == format, "Checkpoint::{}: the checkpoint is packed as {}; call {}() or load()", call,
        config.format == QuantFormat::kAwq ? "AWQ" : "GPTQ", other);
}

}  // namespace

Checkpoint Checkpoint::open(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.impl_ = std::make_shared<const Impl>(path);
  return checkpoint;
}

const Checkpoint::Impl& Checkpoint::impl() const {
  check(impl_ != nullptr, "Checkpoint: it is empty; make it with Checkpoint::open");
  return *impl_;
}

const QuantConfig& Checkpoint::config() const { return impl().config(); }
const std::vector<MatrixEntry>& Checkpoint::matrices() const { return impl().entries(); }
const MatrixEntry& Checkpoint::find(const std::string& name) const {
  return impl().entries()[impl().index("find", name)];
}

GptqTensors Checkpoint::gptq(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("gptq", name);
  need_format(impl().config(), QuantFormat::kGptq, "gptq", "awq");
  GptqTensors tensors;
  tensors.qweight = impl().view(matrix.qweight, name + ".qweight");
  tensors.qzeros = impl().view(matrix.qzeros, name + ".qzeros");
  tensors.scales = impl().view(matrix.scales, name + ".scales");
  if (matrix.entry.has_g_idx) tensors.g_idx = impl().view(matrix.g_idx, name + ".g_idx");
  if (matrix.entry.has_bias) tensors.bias = impl().view(matrix.bias, name + ".bias");
  tensors.group_size = matrix.entry.group_size;
  tensors.zeros = impl().config().zeros;
  return tensors;
}

AwqTensors Checkpoint::awq(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("awq", name);
  need_format(impl().config(), QuantFormat::kAwq, "awq", "gptq");
  AwqTensors tensors;
  tensors.qweight = impl().view(matrix.qweight, name + ".qweight");
  tensors.qzeros = impl().view(matrix.qzeros, name + ".qzeros");
  tensors.scales = impl().view(matrix.scales, name + ".scales");
  if (matrix.entry.has_bias) tensors.bias = impl().view(matrix.bias, name + ".bias");
  tensors.group_size = matrix.entry.group_size;
  return tensors;
}

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, const std::string& name,
                                 std::optional<ZeroFormat> zeros) const {
  if (impl().config().format == QuantFormat::kAwq) {
    check(zeros.value_or(ZeroFormat::kV2) != ZeroFormat::kV1,
          "Checkpoint::load: zeros is v1, but AWQ stores zeros as they are; leave it out");
    return QuantizedMatrix::from_awq(runtime, device, awq(name));
  }
  GptqTensors tensors = gptq(name);
  if (zeros) tensors.zeros = *zeros;
  return QuantizedMatrix::from_gptq(runtime, device, tensors);
}

TensorView Checkpoint::tensor(const std::string& name) const {
  const auto at = impl().files().tensors.find(name);
  if (at == impl().files().tensors.end()) impl().not_found("tensor", "tensor", name, tensor_names());
  return impl().view(at->second, name);
}

std::vector<std::string> Checkpoint::tensor_names() const {
  std::vector<std::string> names;
  for (const auto& [name, at] : impl().files().tensors) names.push_back(name);
  std::sort(names.begin(), names.end(), checkpoint::natural_less);
  return names;
}

}  // namespace q4
