// MatmulPlan: out = x @ W (+ bias), prepared once, launched many times.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>
#include <string>
#include <vector>

namespace q4 {

class LoraAdapters;

/// Products of the direct kernels; sums are always fp32 but for kInt8.
enum class Math : std::uint8_t {
  kAuto,
  kHalf2,
  kFp32,
  /// CPU only, and only when asked for: activations are quantized to 8 bits per row and group of at most 128, products
  /// summed exactly. Relative error 5e-3 to 7e-3 on normal activations instead of 1e-7, more with outliers. Rows stay
  /// independent of the batch; infinity or NaN makes its row NaN. Excludes reconstruct_from > 0.
  kInt8,
};
/// Act-order: where the columns of x are permuted.
enum class Gather : std::uint8_t {
  kAuto,
  kFused,     ///< inside the kernel, where one that serves this m can
  kSeparate,  ///< before it, by a kernel of its own
  kGiven      ///< by the caller: run() is given x in x_order() (q4/order.hpp), and a plan runs what it does
              ///< without act-order. Excludes Epilogue::lora, whose adapters meet x as it comes
};

/// A function of each sum, or of each pair of sums. ...Mul: W's columns are n / 2 gates, then their n / 2 ups, and out has
/// n / 2 columns, activation(gate) * up; such a matrix is loaded with MatrixOptions::gate_up, the others without.
enum class Activation : std::uint8_t {
  kNone,
  kSilu,      ///< v / (1 + exp(-v))
  kGeluTanh,  ///< v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2
  kGelu,      ///< v (1 + erf(v / sqrt(2))) / 2
  kRelu2,     ///< max(v, 0)^2
  kSiluMul,
  kGeluTanhMul,
  kGeluMul,
  kRelu2Mul,
};
Q4_API const char* to_string(Activation activation) noexcept;  ///< "none", "silu", "gelu_tanh", "gelu", ... "relu2_mul"

/// What is done to the sums before they are rounded: out = residual + activation(x @ W + adapters + bias), all in fp32,
/// rounded once. W is not reconstructed for the BLAS of a GPU then, which would round twice.
struct Epilogue {
  Activation activation = Activation::kNone;
  bool residual = false;  ///< run() is given rows to add
  bool lora = false;      ///< run() is given a table of adapters (q4/lora.hpp) and the number of each row's
  friend bool operator==(const Epilogue&, const Epilogue&) = default;
};

struct PlanOptions {
  std::int64_t max_m = 1;          ///< largest m that run() will accept; sizes the workspace
  std::int64_t min_m = 1;          ///< smallest m but 0 that run() will accept: kernels for fewer rows are left out
  DType activation = DType::kF16;  ///< dtype of x and out: fp16, bf16, and on the CPU fp32
  Math math = Math::kAuto;
  Gather gather = Gather::kAuto;
  /// First m at which W is reconstructed and a BLAS multiplies; 0: chosen (tuned or default), -1: never, 1: always. The
  /// same in C and Python.
  std::int64_t reconstruct_from = 0;
  /// A row's result has the same bits whatever m is and wherever the row stands.
  bool batch_invariant = false;
  /// Programmatic dependent launch on GPUs that have it: the kernel may begin reading weights before the previous
  /// kernel of the stream has ended. Results are the same.
  bool overlap_previous = false;
  /// On a GPU: default tactics are chosen as if it had so many multiprocessors less, which then are left to kernels that run at the
  /// same time: in other streams, or with overlap_previous before and after this one. Excludes tuned tactics.
  int spare_units = 0;
  /// Use this tactic ("kernel field=value ...", as tactics() prints it) for every m; for tools and tests.
  std::string tactic = {};
  /// false: the plan allocates no workspace, and every run() passes one.
  bool own_workspace = true;
  Epilogue epilogue = {};
  /// x stands for x / sqrt(mean(x^2) + norm_epsilon) * RunInputs::norm_weight, each row by itself (RMSNorm). Where few rows
  /// meet a kernel that can, it is a part of the product: x times the weights is rounded to the plan's type, in which it
  /// must not overflow. Else a launch before writes such rows, rounded once, to the workspace. Excludes Epilogue::lora.
  bool norm = false;
  float norm_epsilon = 1e-5f;   ///< 0 or more
  std::int64_t lora_rank = 64;  ///< with Epilogue::lora: the largest LoraAdapters::max_rank() that run() will accept
};

/// Rows of activations in the plan's device memory: element (r, c) at data + r * row_stride + c, dtype of the plan.
/// row_stride in elements, at least the number of columns. On a GPU: 16-byte aligned, row_stride a multiple of 8.
struct ConstRows {
  const void* data = nullptr;
  std::int64_t row_stride = 0;  ///< 0: contiguous
};
struct Rows {
  void* data = nullptr;
  std::int64_t row_stride = 0;
};

/// What run() takes beside x and out.
struct RunInputs {
  /// With Epilogue::residual, and only then: rows like those of out, in the plan's type. May be out itself (the same
  /// data and stride: out += ...), else must not overlap it.
  ConstRows residual = {};
  /// With Epilogue::lora, and only then: adapters of a matrix of this shape on this device, of the plan's type; and for
  /// each row of x the number of its adapter, int32 [m] in the plan's device memory.
  const LoraAdapters* adapters = nullptr;
  const std::int32_t* adapter_of_row = nullptr;
  /// With PlanOptions::norm, and only then: [k] in the plan's type and device memory, aligned as x. A kernel may read it
  /// before the stream's earlier work has ended (PlanOptions::overlap_previous).
  const void* norm_weight = nullptr;
  /// As run()'s own `workspace`; null: the plan's.
  void* workspace = nullptr;
};

/// Immutable and prepared: kernels compiled and loaded, workspace allocated, a tactic chosen for each bucket of m.
/// run() only launches: no allocation, compile, synchronization or lock, so it can be captured in a CUDA graph. On the
/// CPU it computes and returns when done; two plans of one Runtime may run at once from two threads, and share its own.
///
/// Work that was launched, and every graph that was captured, must have ended before the last copy of a plan is gone.
/// A plan's workspace serves one stream at a time. Threads or streams that run at the same time each use a plan of
/// their own, or pass a workspace of their own to run().
class Q4_API MatmulPlan {
 public:
  MatmulPlan() = default;  ///< empty; using it is an error
  MatmulPlan(const Runtime& runtime, const QuantizedMatrix& matrix, const PlanOptions& options);

  explicit operator bool() const noexcept { return impl_ != nullptr; }

  /// out[m, n] = x[m, k] @ W (+ bias), and the plan's epilogue. m = 0 does nothing. `out` may hold anything before, is fully overwritten, and
  /// must not overlap x. Asynchronous on a GPU: errors of earlier work on the device may surface here.
  ///
  /// Numbers: the sum, rounded once to the type of out; a sum beyond its largest value becomes infinity with the sum's
  /// sign. On the CPU (kInt8 excepted) infinite, NaN and very large x give what the same sum in fp64 gives: a finite
  /// value where that is finite, infinity where it is infinite, NaN where infinities cancel, meet a weight of 0, or x
  /// is NaN. On a GPU sums are fp32: a finite x gives the same as long as 15 |x| summed over k stays below 3e38 (every
  /// fp16 x does) and 15 times a scale is finite in fp16; a row with an infinite or NaN x has infinity or NaN wherever
  /// fp64 has, though some kernels give NaN for an infinity. No row changes another one.
  void run(Stream stream, ConstRows x, Rows out, std::int64_t m) const;
  /// The same with a workspace of the caller: workspace_bytes() of 256-byte aligned device memory, zeroed once before
  /// its first use, not shared by launches that may overlap in time. Plans of one device may use the same in turn.
  void run(Stream stream, ConstRows x, Rows out, std::int64_t m, void* workspace) const;

  /// The same with what the plan's epilogue reads.
  void run(Stream stream, ConstRows x, Rows out, std::int64_t m, const RunInputs& inputs) const;

  std::size_t workspace_bytes() const;
  std::int64_t out_columns() const;  ///< n, or n / 2 with an activation that multiplies gates and ups
  std::int64_t max_m() const;
  /// What runs for this m: "decode tiles=2 warps=16 ...", "decode+silu_mul+residual tiles=2 ...", "reconstruct+blas".
  std::string tactic(std::int64_t m) const;
  /// Every tactic that could run for this m, the default first: the tuner's search space.
  std::vector<std::string> tactics(std::int64_t m) const;

  class Impl;

 private:
  std::shared_ptr<const Impl> impl_;
};

/// x_new[r, c] = x[r, x_map[c]]: the permutation that act-order needs. All 16-bit elements; every x_map[c] must be in
/// [0, x_cols), which is checked when x_map is host memory. Any number of columns. Strides as in ConstRows,
/// alignment 2.
Q4_API void column_remap(const Runtime& runtime, Device device, Stream stream, ConstRows x, std::int64_t x_cols,
                         Rows x_new, const std::int32_t* x_map, std::int64_t cols, std::int64_t rows);

}  // namespace q4
