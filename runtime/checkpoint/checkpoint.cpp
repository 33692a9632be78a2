// Checkpoint: the public face of the files, the config and the matrices.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <q4/checkpoint.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/matrices.hpp"
#include "runtime/checkpoint/names.hpp"
#include "runtime/group_index.hpp"

namespace q4 {

class Checkpoint::Impl {
 public:
  explicit Impl(const std::string& path) : path_(path), files_(checkpoint::open_files(path)) {
    checkpoint::Matrices found = checkpoint::find_matrices(files_, checkpoint::read_config(files_.folder));
    config_ = found.config;
    matrices_ = std::move(found.list);
    std::size_t zero_words = 0;
    for (const checkpoint::Matrix& matrix : matrices_) {
      const MatrixEntry& entry = matrix.entry;
      index_.emplace(entry.name, entries_.size());
      entries_.push_back(entry);
      if (entry.unsupported.empty() && matrix.zeros.tensor == nullptr)
        zero_words = std::max(zero_words, static_cast<std::size_t>(entry.groups * (entry.n / 8)));
    }
    eights_.assign(zero_words, 0x88888888u);
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

  /// The matrix of this name; throws if it is not supported.
  const checkpoint::Matrix& matrix(const char* call, const std::string& name) const {
    const checkpoint::Matrix& found = matrices_[index(call, name)];
    if (!found.entry.unsupported.empty()) fail(found.code, "Checkpoint::{}: {}", call, found.entry.unsupported);
    return found;
  }

  /// The stored zeros; 8 everywhere where there are none.
  TensorView zeros(const checkpoint::Matrix& matrix) const {
    if (matrix.zeros.tensor != nullptr) return view(matrix.zeros, matrix.name("qzeros"));
    return {eights_.data(), DType::kI32, matrix.entry.groups, matrix.entry.n / 8};
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

  /// A GPTQ matrix as it is stored.
  GptqTensors tensors(const checkpoint::Matrix& matrix) const {
    GptqTensors tensors;
    tensors.qweight = view(matrix.codes, matrix.name("qweight"));
    tensors.qzeros = zeros(matrix);
    tensors.scales = view(matrix.scales, matrix.name("scales"));
    tensors.zeros = matrix.zeros.tensor == nullptr ? ZeroFormat::kV2 : matrix.zero_format;
    add_optional(matrix, tensors);
    return tensors;
  }

  /// One that was converted; refers to `repacked`.
  GptqTensors repacked_tensors(const checkpoint::Matrix& matrix, const checkpoint::Repacked& repacked) const {
    const MatrixEntry& entry = matrix.entry;
    GptqTensors tensors;
    tensors.qweight = {repacked.qweight.data(), DType::kI32, entry.k / 8, entry.n};
    tensors.qzeros = {repacked.qzeros.data(), DType::kI32, entry.groups, entry.n / 8};
    if (repacked.qzeros.empty()) tensors.qzeros = zeros(matrix);
    tensors.scales = {repacked.scales.data(), *checkpoint::public_type(matrix.scales.tensor->dtype), entry.groups,
                      entry.n};
    tensors.zeros = repacked.qzeros.empty() ? ZeroFormat::kV2 : matrix.zero_format;
    add_optional(matrix, tensors);
    return tensors;
  }

  /// Converted once, and kept.
  const checkpoint::Repacked& repacked(const checkpoint::Matrix& matrix) const {
    check_unchanged(matrix);
    const std::lock_guard lock(mutex_);
    auto& kept = repacked_[&matrix];
    if (!kept) kept = std::make_unique<checkpoint::Repacked>(matrix.reader->repack(matrix));
    return *kept;
  }

  void check_unchanged(const checkpoint::Matrix& matrix) const {
    for (const checkpoint::Located* at : {&matrix.codes, &matrix.zeros, &matrix.scales})
      if (at->tensor != nullptr) at->file->check_unchanged();
  }

 private:
  void add_optional(const checkpoint::Matrix& matrix, GptqTensors& tensors) const {
    if (matrix.entry.has_g_idx) tensors.g_idx = view(matrix.g_idx, matrix.name("g_idx"));
    if (matrix.entry.has_bias) tensors.bias = view(matrix.bias, matrix.name("bias"));
    tensors.group_size = matrix.entry.group_size;
  }

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
  std::vector<std::uint32_t> eights_;  // zeros of the largest matrix that stores none
  mutable std::mutex mutex_;           // guards what follows
  mutable std::unordered_map<const checkpoint::StoredTensor*, std::unique_ptr<std::byte[]>> copies_;
  mutable std::unordered_map<const checkpoint::Matrix*, std::unique_ptr<checkpoint::Repacked>> repacked_;
};

namespace {

void need_format(const MatrixEntry& entry, QuantFormat format, const char* call, const char* other) {
  check(entry.format == format, "Checkpoint::{}: {} is packed as {}; call {}() or load()", call,
        checkpoint::quote(entry.name), entry.format == QuantFormat::kAwq ? "AWQ" : "GPTQ", other);
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
  need_format(matrix.entry, QuantFormat::kGptq, "gptq", "awq");
  return matrix.reader->repacks() ? impl().repacked_tensors(matrix, impl().repacked(matrix)) : impl().tensors(matrix);
}

AwqTensors Checkpoint::awq(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("awq", name);
  need_format(matrix.entry, QuantFormat::kAwq, "awq", "gptq");
  AwqTensors tensors;
  tensors.qweight = impl().view(matrix.codes, name + ".qweight");
  tensors.qzeros = impl().zeros(matrix);
  tensors.scales = impl().view(matrix.scales, name + ".scales");
  if (matrix.entry.has_bias) tensors.bias = impl().view(matrix.bias, name + ".bias");
  tensors.group_size = matrix.entry.group_size;
  return tensors;
}

bool Checkpoint::act_order(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("act_order", name);
  if (!matrix.entry.has_g_idx) return false;
  const TensorView g_idx = impl().view(matrix.g_idx, name + ".g_idx");
  return !read_group_index("Checkpoint::act_order", g_idx.dtype, g_idx.data, matrix.entry.k, matrix.entry.group_size,
                           matrix.entry.groups)
              .rows.empty();
}

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, const std::string& name,
                                 std::optional<ZeroFormat> zeros) const {
  const checkpoint::Matrix& matrix = impl().matrix("load", name);
  if (matrix.entry.format == QuantFormat::kAwq) {
    check(zeros.value_or(ZeroFormat::kV2) != ZeroFormat::kV1,
          "Checkpoint::load: zeros is v1, but AWQ stores zeros as they are; leave it out");
    return QuantizedMatrix::from_awq(runtime, device, awq(name));
  }
  if (matrix.reader->repacks()) {
    impl().check_unchanged(matrix);
    const checkpoint::Repacked repacked = matrix.reader->repack(matrix);
    GptqTensors tensors = impl().repacked_tensors(matrix, repacked);
    if (zeros && matrix.zeros.tensor != nullptr) {
      check(*zeros != ZeroFormat::kV1 || tensors.zeros == ZeroFormat::kAuto,
            "Checkpoint::load: zeros is v1, but {} stores zeros as they are; leave it out", matrix.entry.packing);
      tensors.zeros = *zeros;
    }
    return QuantizedMatrix::from_gptq(runtime, device, tensors);
  }
  GptqTensors tensors = impl().tensors(matrix);
  if (zeros && matrix.zeros.tensor != nullptr) tensors.zeros = *zeros;
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
