// Mixtures of experts: many 4-bit matrices of one shape on one device, and plans that multiply each row by the experts
// that a router chose for it.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/checkpoint.hpp>
#include <q4/matmul.hpp>
#include <q4/matrix.hpp>
#include <q4/slice.hpp>
#include <span>
#include <string>
#include <vector>

namespace q4 {

/// What stands between the two matrices of an expert. "gate" and "up" are the two halves of the first product's columns.
enum class MoeActivation : std::uint8_t {
  kNone,         ///< h = x @ W13, as it is; W13 has no gate
  kSiluMul,      ///< silu(gate) * up: Mixtral, Qwen, DeepSeek, Llama 4
  kGeluMul,      ///< gelu(gate) * up with the error function
  kGeluTanhMul,  ///< gelu(gate) * up with the tanh approximation
  /// gate' sigmoid(alpha gate') (up' + 1) with gate' = min(gate, limit), up' = clamp(up, -limit, limit): gpt-oss
  kSwigluClamp,
};
/// "none", "silu_mul", "gelu_mul", "gelu_tanh_mul", "swiglu_clamp"
Q4_API const char* to_string(MoeActivation activation) noexcept;

struct ExpertsOptions {
  /// The columns of each matrix are a gate (the first n / 2) and up (the others), for a plan with an activation that
  /// multiplies them. A GPU then stores them side by side, so such experts serve no plan without an activation.
  bool gate_up = false;
  /// What a rank holds of each matrix (tensor parallelism): columns of W13, of gate and of up each by themselves where
  /// it is gate_up, and rows of W2. The sum over the ranks of what their plans give is the layer. Slices of rows of experts
  /// with act-order may differ in their groups, which is an error.
  Slice slice = {};
};

/// Which matrices of a checkpoint are the experts of a layer.
struct ExpertNames {
  /// One name with "{}" for the number of the expert, or two: gate and up, whose columns are joined (gate_up).
  /// {"model.layers.0.mlp.experts.{}.gate_proj", "model.layers.0.mlp.experts.{}.up_proj"}
  std::vector<std::string> patterns;
  std::int64_t first = 0;   ///< number of the first expert that is loaded: a rank's own experts, for instance
  std::int64_t count = -1;  ///< experts that are loaded; -1: every one that follows
};

/// A handle to E matrices of one shape, one allocation in the memory of a device. Copies share them; a plan keeps its
/// experts alive. The experts have the same format, k, n, groups and group size, and all or none have a bias; each has
/// scales, zeros and an act-order of its own. Limits and tensors as for QuantizedMatrix, 1 <= E <= 65536. Thread-safe.
class Q4_API QuantizedExperts {
 public:
  QuantizedExperts() = default;  ///< empty; using it is an error
  static QuantizedExperts from_gptq(const Runtime& runtime, Device device, std::span<const GptqTensors> experts,
                                    const ExpertsOptions& options = {});
  static QuantizedExperts from_awq(const Runtime& runtime, Device device, std::span<const AwqTensors> experts,
                                   const ExpertsOptions& options = {});
  /// Tensors [E, ...] as one: each view has E times the rows of one expert's, qweight [E k/8, n], qzeros [E groups, n/8],
  /// scales [E groups, n]; g_idx and bias are [E, k] and [E, n]. Absent ones as in GptqTensors.
  static QuantizedExperts from_stacked(const Runtime& runtime, Device device, std::int64_t experts,
                                       const GptqTensors& tensors, const ExpertsOptions& options = {});
  /// Reads one expert after the other: host memory for one of them is all that is taken beside the result, and for what
  /// Checkpoint::gptq keeps of formats that it converts. Two patterns
  /// set `gate_up`. Throws kNotFound where an expert is missing, and what Checkpoint::load throws.
  static QuantizedExperts load(const Runtime& runtime, Device device, const Checkpoint& checkpoint,
                               const ExpertNames& names, const ExpertsOptions& options = {});

  explicit operator bool() const noexcept { return impl_ != nullptr; }
  std::int64_t experts() const;
  std::int64_t k() const;           ///< in_features of each
  std::int64_t n() const;           ///< out_features of each, gate and up together
  std::int64_t group_size() const;  ///< rows of a group as loaded (k for -1)
  std::int64_t groups() const;
  bool act_order() const;  ///< of one at least
  bool has_bias() const;
  bool gate_up() const;  ///< ExpertsOptions::gate_up
  bool is_awq() const;
  Device device() const;
  std::size_t bytes() const;  ///< device memory held

  /// Other weights for one expert in the same memory, as QuantizedMatrix::update. An expert with an act-order needs
  /// experts that were made with one.
  void update(std::int64_t expert, const GptqTensors& tensors, Stream stream = {});
  void update(std::int64_t expert, const AwqTensors& tensors, Stream stream = {});
  /// The tensors of one expert again, gate columns before up columns. Waits for the device.
  UnpackedMatrix unpack(std::int64_t expert) const;

  class Impl;
  std::shared_ptr<const Impl> impl() const { return impl_; }  ///< internal

 private:
  std::shared_ptr<Impl> impl_;
};

/// What MoePlan and GroupedPlan have in common.
struct ExpertsPlanOptions {
  DType dtype = DType::kF16;  ///< of x and out: fp16, bf16, and on the CPU fp32
  MoeActivation activation = MoeActivation::kSiluMul;
  float alpha = 1.702f, limit = 7.0f;  ///< of kSwigluClamp; limit > 0
  /// A row's result has the same bits whatever other rows there are, and wherever it stands.
  bool batch_invariant = false;
  bool overlap_previous = false;  ///< as in PlanOptions
  std::string tactic = {};        ///< use this one for every number of rows; for tools and tests
  bool own_workspace = true;      ///< false: the plan allocates no workspace, and every run() passes one
};

struct MoeOptions : ExpertsPlanOptions {
  std::int64_t max_tokens = 1;  ///< largest number of tokens that run() accepts; sizes the workspace
  std::int64_t topk = 1;        ///< slots of a token, 1 to 32
  /// Expert parallelism: entry i is the place of the model's expert i in w13 and w2, or -1 where another rank has it.
  /// Empty: the ids are places already.
  std::vector<std::int32_t> expert_map = {};
};

/// One layer of experts, prepared once, launched many times:
///   out[t] = sum over slots s of topk_weights[t, s] * (act(x[t] @ W13[e] + b13[e]) @ W2[e] + b2[e]),  e = topk_ids[t, s]
/// W13 is K x 2 I, gate columns before up columns (K x I with kNone), W2 is I x n. The router, and experts that every
/// token has, are ordinary matrices of the caller's.
///
/// A slot whose id (after expert_map) names no expert of w13 adds nothing, its weight is not used, and this is no error:
/// a token without any slot left has zeros. Other weights count as they are: one that is NaN makes its token NaN. The
/// slots' products are added in order of the slots in fp32 and rounded once to the type of out; the activation is rounded to
/// that type in between, as the model itself does, and on GPUs each slot's product is too. The same input gives the same
/// bits each time.
///
/// run() only launches: it reads neither ids nor weights on the host, allocates, compiles and synchronizes nothing, and
/// can be captured in a graph that is replayed with other ids. Threads, streams and lifetimes as for MatmulPlan.
class Q4_API MoePlan {
 public:
  MoePlan() = default;  ///< empty; using it is an error
  /// w13 and w2 are on one device and have as many experts; w13.gate_up() unless the activation is kNone.
  MoePlan(const Runtime& runtime, const QuantizedExperts& w13, const QuantizedExperts& w2, const MoeOptions& options);

  explicit operator bool() const noexcept { return impl_ != nullptr; }

  /// x [tokens, K], topk_ids int32 [tokens, topk], topk_weights fp32 [tokens, topk], out [tokens, n of w2]: in the
  /// memory of the plan's device (topk_* contiguous). tokens = 0 does nothing. `out` may hold anything before, is fully
  /// overwritten, and must not overlap the others. Alignment as in ConstRows.
  void run(Stream stream, ConstRows x, const std::int32_t* topk_ids, const float* topk_weights, Rows out,
           std::int64_t tokens) const;
  /// The same with a workspace of the caller's, as for MatmulPlan::run.
  void run(Stream stream, ConstRows x, const std::int32_t* topk_ids, const float* topk_weights, Rows out,
           std::int64_t tokens, void* workspace) const;

  std::size_t workspace_bytes() const;
  std::int64_t max_tokens() const;
  std::int64_t topk() const;
  std::string tactic(std::int64_t tokens) const;  ///< what runs for so many tokens
  /// Every tactic that could, the default first: the tuner's search space.
  std::vector<std::string> tactics(std::int64_t tokens) const;

  class Impl;

 private:
  std::shared_ptr<const Impl> impl_;
};

struct GroupedOptions : ExpertsPlanOptions {
  GroupedOptions() { activation = MoeActivation::kNone; }
  std::int64_t max_rows = 1;  ///< largest number of rows that run() accepts; sizes the workspace
};

/// One grouped product: each row of x by the matrix of one expert, out[r] = act(x[r] @ W[e(r)] + b[e(r)]). out has n
/// columns, n / 2 with an activation (which needs experts made with gate_up, and kNone others). A row of no expert gets
/// zeros. Everything else as for MoePlan.
class Q4_API GroupedPlan {
 public:
  GroupedPlan() = default;  ///< empty; using it is an error
  GroupedPlan(const Runtime& runtime, const QuantizedExperts& experts, const GroupedOptions& options);

  explicit operator bool() const noexcept { return impl_ != nullptr; }

  /// Row r has expert expert_ids[r] (int32 [rows] in device memory); an id that names none gives zeros.
  void run(Stream stream, ConstRows x, const std::int32_t* expert_ids, Rows out, std::int64_t rows,
           void* workspace = nullptr) const;
  /// Rows sorted by expert: expert e has the rows [offsets[e], offsets[e + 1]), offsets int32 [experts + 1] in device
  /// memory, ascending. Rows before the first and from the last one on get zeros.
  void run_sorted(Stream stream, ConstRows x, const std::int32_t* offsets, Rows out, std::int64_t rows,
                  void* workspace = nullptr) const;

  std::size_t workspace_bytes() const;
  std::int64_t max_rows() const;
  std::string tactic(std::int64_t rows) const;
  std::vector<std::string> tactics(std::int64_t rows) const;

  class Impl;

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace q4
