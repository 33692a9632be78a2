// Checkpoint: quantized matrices of a safetensors checkpoint, by name.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <q4/matrix.hpp>
#include <string>
#include <vector>

namespace q4 {

enum class QuantFormat : std::uint8_t { kGptq, kAwq };

/// What the checkpoint says of its quantization: quantization_config anywhere in config.json, quantize_config.json,
/// quantization_config.json and quant_config.json merged, synonyms resolved; what they leave open comes from the
/// tensors' shapes.
struct QuantConfig {
  std::string tool;  ///< quant_method and what the tool says of its version; empty if the configuration says neither
  QuantFormat format = QuantFormat::kGptq;
  std::int64_t group_size = -1;          ///< -1: one group. Matrices may differ: see MatrixEntry
  bool desc_act = false;                 ///< claimed; whether a matrix has act-order, its g_idx says
  bool sym = true;                       ///< claimed; the stored zeros are what counts
  ZeroFormat zeros = ZeroFormat::kAuto;  ///< of GPTQ: kV2 for checkpoint_format "gptq_v2" and for AWQ, else kAuto
};

/// What one quantized matrix of the checkpoint is, before anything is loaded. Of one that is not supported k, n and the
/// other numbers are what is known of it, or 0.
struct MatrixEntry {
  std::string name;         ///< prefix: "model.layers.0.self_attn.q_proj"
  std::string unsupported;  ///< why it cannot be loaded: file, tensor, value and limit; empty if it can
  bool damaged = false;     ///< it is unsupported because its tensors contradict each other or the configuration
  std::string packing;      ///< the format that it is stored in: "GPTQ", "AWQ gemv", "Marlin", ...
  /// What gptq() or awq() give: kAwq for AWQ gemm, kGptq for every other packing, which is converted
  QuantFormat format = QuantFormat::kGptq;
  std::int64_t bits = 0;  ///< of a weight: 4 if it can be loaded
  std::int64_t k = 0, n = 0, groups = 0;
  std::int64_t group_size = 0;  ///< rows of a group, from the number of groups; k for one group
  bool has_g_idx = false;       ///< there is one, trivial or not
  bool has_bias = false;
  std::uint64_t bytes = 0;  ///< of its tensors in the files
};

struct LoadOptions {
  /// Overrides the checkpoint's claim (v1 on AWQ: kInvalidArgument; of no effect where no zeros are stored).
  std::optional<ZeroFormat> zeros = {};
  /// What of each matrix is loaded. Only the bytes of the slice are read from the files, and of the stored zeros, where
  /// the checkpoint leaves their format open, as many as decide it.
  Slice slice = {};
  /// Gates, then ups, for plans whose activation multiplies them (MatrixOptions::gate_up): two names, or one matrix with
  /// both.
  bool gate_up = false;
  /// Called before the first matrix and after each one, on the calling thread: bytes of tensors done, and of the call.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

/// A safetensors file, or a folder with one or with shards and an index, memory-mapped read-only (read into memory
/// where it cannot be mapped), and closed again. On file systems that other machines may change (NFS, FUSE, Lustre, ...)
/// each tensor is read when it is wanted instead, and its memory is free again after a load; $Q4_CHECKPOINT_READ = map or
/// read says which of the two. A slice then reads whole tensors, and replacing a file is a kCorrupt or kIo too. Headers, offsets,
/// shapes and names are checked when opened; contents are read when a matrix is loaded. Thread-safe; copies are cheap
/// and share the mapping; views stay valid as long as a copy lives.
///
/// The files must not be written to meanwhile. Replacing one by renaming is safe: the mapped one lives on. One that was
/// written into or truncated is a kCorrupt at the next view or load; while a view is being read it means mixed content
/// or, beyond the new end, SIGBUS, as for every mapped file.
class Q4_API Checkpoint {
 public:
  Checkpoint() = default;  ///< empty; using it is an error
  /// `path`: a .safetensors file, an index (*.index.json), or a folder. In a folder: model.safetensors, else
  /// model.safetensors.index.json, else the only other index of safetensors, else the only .safetensors file, else all
  /// shards of one set; the index of the model before it was quantized is passed over where its files are gone. A
  /// matrix is every name with a .qweight, .weight_packed, or .B and .s; a checkpoint without any opens, and matrices()
  /// is empty. One that cannot be loaded is listed with the reason, and an error only when it is requested. Throws
  /// kNotFound, kIo, kCorrupt, kOutOfMemory or kUnsupported (another quant_method) with file, tensor, field, value and
  /// remedy.
  static Checkpoint open(const std::string& path);

  const QuantConfig& config() const;
  const std::vector<MatrixEntry>& matrices() const;        ///< sorted by name, numbers in numeric order
  const MatrixEntry& find(const std::string& name) const;  ///< throws kNotFound with the nearest names
  /// Of a mixture of experts, those that each token has: num_experts_per_tok of config.json. 0: it does not say.
  std::int64_t experts_per_token() const;

  /// Host views of one matrix, aligned for their type. gptq() throws kInvalidArgument for an AWQ matrix and the other
  /// way round; both throw kNotFound as find() does, and the error of a matrix that is not supported. Where a symmetric
  /// checkpoint stores no zeros, qzeros is 8 everywhere and `zeros` is kV2. Packings other than GPTQ and AWQ gemm are
  /// converted exactly, and kept: load() converts again and keeps nothing.
  GptqTensors gptq(const std::string& name) const;
  AwqTensors awq(const std::string& name) const;
  /// Whether load() gives a matrix with act-order: what its g_idx says, by the rule of GptqTensors::g_idx. Throws
  /// kInvalidArgument for a g_idx that load() refuses.
  bool act_order(const std::string& name) const;
  /// Loads it to the device, whatever the format. `zeros` overrides the checkpoint's claim (v1 on AWQ:
  /// kInvalidArgument; of no effect where no zeros are stored).
  QuantizedMatrix load(const Runtime& runtime, Device device, const std::string& name,
                       std::optional<ZeroFormat> zeros = std::nullopt) const;
  QuantizedMatrix load(const Runtime& runtime, Device device, const std::string& name,
                       const LoadOptions& options) const;
  /// Several matrices of one input as one, their columns side by side (q, k, v; gate, up). Throws kUnsupported where
  /// their groups, g_idx or packings (AWQ gemm, others) differ, kInvalidArgument where k does; the text says which.
  QuantizedMatrix load(const Runtime& runtime, Device device, std::initializer_list<std::string> names,
                       const LoadOptions& options = {}) const;
  QuantizedMatrix load(const Runtime& runtime, Device device, const std::vector<std::string>& names,
                       const LoadOptions& options = {}) const;
  /// The same where they can be one matrix; else as many as there are names.
  std::vector<QuantizedMatrix> load_together(const Runtime& runtime, Device device,
                                             const std::vector<std::string>& names,
                                             const LoadOptions& options = {}) const;
  /// One matrix for each name; no names: for each of matrices() that can be loaded.
  std::vector<QuantizedMatrix> load_all(const Runtime& runtime, Device device,
                                        const std::vector<std::string>& names = {},
                                        const LoadOptions& options = {}) const;
  /// Any tensor by its full name, quantized or not; rank above 2 is folded into rows, a scalar is [1, 1]. Throws
  /// kNotFound with the nearest names, kUnsupported for a type that DType has not.
  TensorView tensor(const std::string& name) const;
  std::vector<std::string> tensor_names() const;  ///< sorted as matrices()

 private:
  class Impl;
  const Impl& impl() const;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace q4
