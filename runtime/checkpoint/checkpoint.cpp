// Checkpoint: the public face of the files, the config and the matrices.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <q4/checkpoint.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/experts.hpp"
#include "runtime/checkpoint/matrices.hpp"
#include "runtime/checkpoint/names.hpp"
#include "runtime/group_index.hpp"
#include "runtime/matrix.hpp"
#include "runtime/slice.hpp"

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
      for (const checkpoint::Located* at : {&matrix.codes, &matrix.zeros, &matrix.scales, &matrix.g_idx, &matrix.bias})
        if (at->tensor != nullptr) entries_.back().bytes += at->tensor->bytes;
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
  TensorView zeros(const checkpoint::Matrix& matrix, checkpoint::Fetched* scope) const {
    if (matrix.zeros.tensor != nullptr) return view(matrix.zeros, matrix.name("qzeros"), scope);
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

  /// A view of a stored tensor; `name` for messages. It is valid as long as `scope`; null: as this object.
  TensorView view(const checkpoint::Located& at, const std::string& name, checkpoint::Fetched* scope) const {
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
    scope ? scope->add(at) : at.file->fetch(*at.tensor);
    view.data = aligned(*at.tensor, size_of(*type));
    return view;
  }

  /// A GPTQ matrix as it is stored.
  GptqTensors tensors(const checkpoint::Matrix& matrix, checkpoint::Fetched* scope) const {
    GptqTensors tensors;
    tensors.qweight = view(matrix.codes, matrix.name("qweight"), scope);
    tensors.qzeros = zeros(matrix, scope);
    tensors.scales = view(matrix.scales, matrix.name("scales"), scope);
    tensors.zeros = matrix.zeros.tensor == nullptr ? ZeroFormat::kV2 : matrix.zero_format;
    add_optional(matrix, tensors, scope);
    return tensors;
  }

  AwqTensors awq_tensors(const checkpoint::Matrix& matrix, checkpoint::Fetched* scope) const {
    AwqTensors tensors;
    tensors.qweight = view(matrix.codes, matrix.name("qweight"), scope);
    tensors.qzeros = zeros(matrix, scope);
    tensors.scales = view(matrix.scales, matrix.name("scales"), scope);
    if (matrix.entry.has_bias) tensors.bias = view(matrix.bias, matrix.name("bias"), scope);
    tensors.group_size = matrix.entry.group_size;
    return tensors;
  }

  /// One that was converted; refers to `repacked`.
  GptqTensors repacked_tensors(const checkpoint::Matrix& matrix, const checkpoint::Cut& cut,
                               const checkpoint::Repacked& repacked, checkpoint::Fetched* scope) const {
    const MatrixEntry& entry = matrix.entry;
    const bool stored = matrix.zeros.tensor != nullptr;
    GptqTensors tensors;
    tensors.qweight = {repacked.qweight.data(), DType::kI32, cut.rows / 8, cut.n()};
    tensors.qzeros = {stored ? repacked.qzeros.data() : eights_.data(), DType::kI32, entry.groups, cut.n() / 8};
    tensors.scales = {repacked.scales.data(), *checkpoint::public_type(matrix.scales.tensor->dtype), entry.groups,
                      cut.n()};
    tensors.zeros = stored ? matrix.zero_format : ZeroFormat::kV2;
    add_optional(matrix, tensors, scope);
    return tensors;
  }

  /// Converted once, and kept.
  const checkpoint::Repacked& repacked(const checkpoint::Matrix& matrix) const {
    const checkpoint::Fetched fetched({&matrix.codes, &matrix.zeros, &matrix.scales});
    const std::lock_guard lock(mutex_);
    auto& kept = repacked_[&matrix];
    if (!kept)
      kept =
          std::make_unique<checkpoint::Repacked>(matrix.reader->repack(matrix, checkpoint::Cut::whole(matrix.entry)));
    return *kept;
  }

 private:
  void add_optional(const checkpoint::Matrix& matrix, GptqTensors& tensors, checkpoint::Fetched* scope) const {
    if (matrix.entry.has_g_idx) tensors.g_idx = view(matrix.g_idx, matrix.name("g_idx"), scope);
    if (matrix.entry.has_bias) tensors.bias = view(matrix.bias, matrix.name("bias"), scope);
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

std::int64_t Checkpoint::experts_per_token() const { return checkpoint::experts_per_token(impl().files().folder); }

GptqTensors Checkpoint::gptq(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("gptq", name);
  need_format(matrix.entry, QuantFormat::kGptq, "gptq", "awq");
  if (!matrix.reader->repacks()) return impl().tensors(matrix, nullptr);
  return impl().repacked_tensors(matrix, checkpoint::Cut::whole(matrix.entry), impl().repacked(matrix), nullptr);
}

AwqTensors Checkpoint::awq(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("awq", name);
  need_format(matrix.entry, QuantFormat::kAwq, "awq", "gptq");
  return impl().awq_tensors(matrix, nullptr);
}

bool Checkpoint::act_order(const std::string& name) const {
  const checkpoint::Matrix& matrix = impl().matrix("act_order", name);
  if (!matrix.entry.has_g_idx) return false;
  checkpoint::Fetched fetched;
  const TensorView g_idx = impl().view(matrix.g_idx, name + ".g_idx", &fetched);
  const std::string call = "Checkpoint::act_order: " + impl().path() + ": " + name;
  return !read_group_index(call.c_str(), g_idx.dtype, g_idx.data, matrix.entry.k, matrix.entry.group_size,
                           matrix.entry.groups)
              .rows.empty();
}

namespace {

/// What the slice takes of a matrix that is converted.
checkpoint::Cut cut_of(const char* call, const MatrixEntry& entry, const Slice& slice) {
  checkpoint::Cut cut = checkpoint::Cut::whole(entry);
  if (slice.along == Slice::Along::kRows) {
    const Extent rows = extents_of(call, slice, entry.k, "k")[0];
    cut.row = rows.first, cut.rows = rows.count;
  } else if (slice.along != Slice::Along::kWhole) {
    cut.columns.clear();
    for (const Extent& e : extents_of(call, slice, entry.n, "n"))
      for (std::int64_t c = e.first; c < e.first + e.count; ++c) cut.columns.push_back(static_cast<std::int32_t>(c));
  }
  return cut;
}

/// kAuto decided on the whole matrix, not on a cut of it.
ZeroFormat detected(const checkpoint::Matrix& matrix) {
  checkpoint::Cut none = checkpoint::Cut::whole(matrix.entry);
  none.rows = 0;
  const auto zeros = matrix.reader->repack(matrix, none).qzeros;
  const bool all = std::all_of(zeros.begin(), zeros.end(), [](std::uint32_t word) { return word == 0x88888888u; });
  return all ? ZeroFormat::kV2 : ZeroFormat::kV1;
}

}  // namespace

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, const std::vector<std::string>& names,
                                 const LoadOptions& options) const {
  constexpr const char* kCall = "Checkpoint::load";
  check(!names.empty(), "{}: names is empty: name one matrix or more", kCall);
  std::vector<AwqTensors> awq_tensors;
  std::vector<GptqTensors> gptq_tensors;
  std::vector<CutFrom> cuts;
  std::vector<std::unique_ptr<const checkpoint::Repacked>> converted;  // what gptq_tensors refer to
  checkpoint::Fetched fetched;                                         // what the others refer to
  const checkpoint::Matrix& first = impl().matrix("load", names[0]);
  std::uint64_t bytes = 0;
  for (const std::string& name : names) bytes += find(name).bytes;
  if (options.progress) options.progress(0, bytes);
  for (const std::string& name : names) {
    const checkpoint::Matrix& matrix = impl().matrix("load", name);
    const bool is_awq = matrix.entry.format == QuantFormat::kAwq, stored = matrix.zeros.tensor != nullptr;
    if (matrix.entry.format != first.entry.format) {
      fail(ErrorCode::kUnsupported, "{}: {} is packed as {}, {} as {}: load them as separate matrices", kCall,
           checkpoint::quote(name), matrix.entry.packing, checkpoint::quote(names[0]), first.entry.packing);
    }
    const bool plus_one_fits = !is_awq && (!matrix.reader->repacks() || matrix.zero_format == ZeroFormat::kAuto);
    check(options.zeros != ZeroFormat::kV1 || plus_one_fits || (!stored && !is_awq),
          "{}: zeros is v1, but {} stores zeros as they are; leave it out", kCall,
          is_awq ? "AWQ" : matrix.entry.packing);
    if (is_awq) {
      awq_tensors.push_back(impl().awq_tensors(matrix, &fetched));
      continue;
    }
    CutFrom cut_from;
    if (matrix.reader->repacks()) {
      const checkpoint::Fetched converting({&matrix.codes, &matrix.zeros, &matrix.scales});
      const checkpoint::Cut cut = cut_of(kCall, matrix.entry, options.slice);
      converted.push_back(std::make_unique<checkpoint::Repacked>(matrix.reader->repack(matrix, cut)));
      gptq_tensors.push_back(impl().repacked_tensors(matrix, cut, *converted.back(), &fetched));
      cut_from = {matrix.entry.k, matrix.entry.n};
      if (gptq_tensors.back().zeros == ZeroFormat::kAuto) {
        if (options.slice.along == Slice::Along::kColumns) gptq_tensors.back().zeros = detected(matrix);
      }
    } else {
      gptq_tensors.push_back(impl().tensors(matrix, &fetched));
    }
    cuts.push_back(cut_from);
    if (options.zeros && stored) gptq_tensors.back().zeros = *options.zeros;
  }
  try {
    QuantizedMatrix matrix =
        awq_tensors.empty() ? make_matrix(runtime, device, gptq_tensors, cuts, options.slice, options.gate_up, kCall)
                            : make_matrix(runtime, device, awq_tensors, options.slice, options.gate_up, kCall);
    if (options.progress) options.progress(bytes, bytes);
    return matrix;
  } catch (const Error& error) {
    fail(error.code(), "{} ({} of {})", error.what(), fmt::join(names, ", "), impl().path());
  }
}

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, const std::string& name,
                                 std::optional<ZeroFormat> zeros) const {
  return load(runtime, device, std::vector<std::string>{name}, {.zeros = zeros});
}

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, const std::string& name,
                                 const LoadOptions& options) const {
  return load(runtime, device, std::vector<std::string>{name}, options);
}

QuantizedMatrix Checkpoint::load(const Runtime& runtime, Device device, std::initializer_list<std::string> names,
                                 const LoadOptions& options) const {
  return load(runtime, device, std::vector<std::string>(names), options);
}

std::vector<QuantizedMatrix> Checkpoint::load_together(const Runtime& runtime, Device device,
                                                       const std::vector<std::string>& names,
                                                       const LoadOptions& options) const {
  std::vector<QuantizedMatrix> matrices;
  try {
    matrices.push_back(load(runtime, device, names, options));
    return matrices;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported || names.size() == 1) throw;
  }
  return load_all(runtime, device, names, options);  // what else is not supported, it throws again
}

std::vector<QuantizedMatrix> Checkpoint::load_all(const Runtime& runtime, Device device,
                                                  const std::vector<std::string>& names,
                                                  const LoadOptions& options) const {
  std::vector<std::string> wanted = names;
  if (names.empty())
    for (const MatrixEntry& entry : matrices())
      if (entry.unsupported.empty()) wanted.push_back(entry.name);
  std::uint64_t done = 0, total = 0;
  for (const std::string& name : wanted) total += find(name).bytes;
  LoadOptions each = options;
  each.progress = {};
  std::vector<QuantizedMatrix> loaded;
  if (options.progress) options.progress(0, total);
  for (const std::string& name : wanted) {
    loaded.push_back(load(runtime, device, name, each));
    done += find(name).bytes;
    if (options.progress) options.progress(done, total);
  }
  return loaded;
}

TensorView Checkpoint::tensor(const std::string& name) const {
  const auto at = impl().files().tensors.find(name);
  if (at == impl().files().tensors.end()) impl().not_found("tensor", "tensor", name, tensor_names());
  return impl().view(at->second, name, nullptr);
}

std::vector<std::string> Checkpoint::tensor_names() const {
  std::vector<std::string> names;
  for (const auto& [name, at] : impl().files().tensors) names.push_back(name);
  std::sort(names.begin(), names.end(), checkpoint::natural_less);
  return names;
}

}  // namespace q4
