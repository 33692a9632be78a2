// MatmulPlan: checks every argument, then hands the launch to the backend's plan.
#include "runtime/matmul.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/choose/epilogue.hpp"
#include "runtime/choose/given.hpp"
#include "runtime/lora.hpp"
#include "runtime/matrix.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"

namespace q4 {

class [[gnu::visibility("hidden")]] MatmulPlan::Impl {
 public:
  std::shared_ptr<const QuantizedMatrix::Impl> matrix;
  std::unique_ptr<PlanBackend> plan;
  PlanOptions options;

  std::int64_t out_columns() const { return choose::is_gated(options.epilogue.activation) ? matrix->n / 2 : matrix->n; }
  void run(Stream stream, ConstRows x, Rows out, std::int64_t m, const RunInputs& inputs) const;
  void check_adapters(const RunInputs& inputs, EpilogueInputs& read) const;
};

Span span_of(const void* data, std::int64_t stride, std::int64_t cols, std::int64_t m, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  return {begin, begin + static_cast<std::uintptr_t>((m - 1) * stride + cols) * size};
}

std::int64_t check_rows(const char* call, const char* name, const void* data, std::int64_t stride, std::int64_t cols,
                        std::int64_t m, std::size_t alignment, std::int64_t stride_multiple) {
  check(data, "{}: {} is null; pass memory of the plan's device (on the CPU, host memory)", call, name);
  check(reinterpret_cast<std::uintptr_t>(data) % alignment == 0,
        "{}: {} = {} is not {}-byte aligned: copy it to aligned memory", call, name, data, alignment);
  if (stride == 0) stride = cols;
  constexpr std::int64_t kMostElements = std::int64_t{1} << 48;  // more than a process can address
  check(stride >= cols && stride % stride_multiple == 0,
        "{}: {} has row stride {} elements; it must be 0 (contiguous) or at least its {} columns and a multiple of {}",
        call, name, stride, cols, stride_multiple);
  check(stride <= kMostElements / m, "{}: {} has row stride {} elements and {} rows; together at most {} elements",
        call, name, stride, m, kMostElements);
  return stride;
}

namespace {

const MatmulPlan::Impl& require(const std::shared_ptr<const MatmulPlan::Impl>& impl, const char* call) {
  check(impl != nullptr, "{}: the plan is empty (default-constructed or moved from); construct it from a matrix", call);
  return *impl;
}

}  // namespace

void check_options(const PlanOptions& options, Device device) {
  constexpr const char* kCall = "MatmulPlan";
  check(options.max_m >= 1 && options.max_m <= INT32_MAX, "{}: max_m = {}; it must be in [1, {}]", kCall, options.max_m,
        INT32_MAX);
  check(options.min_m >= 1 && options.min_m <= options.max_m, "{}: min_m = {}; it must be in [1, max_m = {}]", kCall,
        options.min_m, options.max_m);
  check(options.activation == DType::kF16 || options.activation == DType::kBF16 || options.activation == DType::kF32,
        "{}: activation is {}; it must be fp16, bf16 or (on the CPU) fp32", kCall, to_string(options.activation));
  check(options.math <= Math::kInt8 && options.gather <= Gather::kGiven,
        "{}: math = {} or gather = {} is no value of its enumeration", kCall, static_cast<int>(options.math),
        static_cast<int>(options.gather));
  check(options.math != Math::kInt8 || (traits_of(device).quantizes_activations && options.reconstruct_from <= 0),
        "{}: math = int8 on {} with reconstruct_from = {}; only the CPU quantizes activations, and not for the BLAS: "
        "leave math as it is there",
        kCall, device.str(), options.reconstruct_from);
  check(options.reconstruct_from >= -1,
        "{}: reconstruct_from = {}; it must be 0 (chosen), -1 (never) or the first m that is reconstructed", kCall,
        options.reconstruct_from);
  check(options.epilogue.activation <= Activation::kRelu2Mul,
        "{}: epilogue.activation = {} is not a value of Activation", kCall,
        static_cast<int>(options.epilogue.activation));
  check(!options.epilogue.lora || (options.lora_rank >= 1 && options.lora_rank <= 256),
        "{}: lora_rank = {}; it must be in [1, 256]", kCall, options.lora_rank);
  check(traits_of(device).blas_finishes || choose::is_plain(options.epilogue) || options.reconstruct_from <= 0,
        "{}: reconstruct_from = {} with the epilogue '{}'; the BLAS of a GPU has none: leave reconstruct_from 0 or -1",
        kCall, options.reconstruct_from, choose::to_text(options.epilogue));
  check(options.gather != Gather::kGiven || !options.epilogue.lora,
        "{}: gather = given with epilogue.lora; adapters meet x as it comes: leave gather as it is", kCall);
  check(options.spare_units >= 0, "{}: spare_units = {}; it must be 0 or more", kCall, options.spare_units);
  check(options.norm_epsilon >= 0 && options.norm_epsilon <= 1e30f,
        "{}: norm_epsilon = {}; it must be 0 or more and finite", kCall, options.norm_epsilon);
  check(!options.norm || !options.epilogue.lora,
        "{}: norm with epilogue.lora; adapters meet x as it comes: normalize it before and leave norm false", kCall);
  check(!options.batch_invariant || (options.reconstruct_from <= 0 && options.tactic.empty()),
        "{}: batch_invariant excludes reconstruct_from = {} and tactic = '{}': one direct kernel serves every m", kCall,
        options.reconstruct_from, options.tactic);
}

const TuningRecord* find_tuned(const Runtime& runtime, const DeviceBackend& device, std::int64_t k, std::int64_t n,
                               std::int64_t group_size, bool act_order, const PlanOptions& options) {
  const auto& info = device.info();
  return runtime.impl().tuned(info.device,
                              tuning_key(info, tuning_digest(device.kernels_digest()), k, n, group_size, act_order,
                                         options.activation, "cold", choose::to_text(options.epilogue)));
}

MatmulPlan::MatmulPlan(const Runtime& runtime, const QuantizedMatrix& matrix, const PlanOptions& options) {
  const auto& m = require(matrix, "MatmulPlan");
  check(!m.restored, "MatmulPlan: QuantizedMatrix::restore() was called: the matrix has no weights any more");
  check_options(options, m.device->info().device);
  const bool gated = choose::is_gated(options.epilogue.activation);
  check(gated == m.shape.gate_up, "MatmulPlan: epilogue.activation = {} for a matrix loaded with gate_up = {}; {}",
        to_string(options.epilogue.activation), m.shape.gate_up,
        gated ? "load it with gate_up = true"
              : "its plans need an activation of gate and up, such as silu_mul: load it without gate_up for others");
  if (options.gather == Gather::kGiven) check_order(matrix, "MatmulPlan");
  const bool free_choice = options.tactic.empty() && !options.batch_invariant;
  const TuningRecord* const tuned = free_choice ? find_tuned(runtime, *m.device, m.k, m.n, m.group_size,
                                                             choose::as_read(m.shape, options).act_order, options)
                                                : nullptr;
  auto impl = std::make_shared<Impl>();
  impl->matrix = matrix.impl();
  impl->plan = m.device->plan(m.packed, options, tuned);
  impl->options = options;
  impl_ = std::move(impl);
}

void MatmulPlan::Impl::check_adapters(const RunInputs& inputs, EpilogueInputs& read) const {
  constexpr const char* kCall = "MatmulPlan::run";
  check(options.epilogue.lora || (!inputs.adapters && !inputs.adapter_of_row),
        "{}: adapters or adapter_of_row is set for a plan without adapters; set PlanOptions::epilogue.lora", kCall);
  if (!options.epilogue.lora) return;
  check(inputs.adapters && *inputs.adapters && inputs.adapter_of_row,
        "{}: adapters = {}, adapter_of_row = {}; the plan has epilogue.lora: pass a table and the number of each row's",
        kCall, static_cast<const void*>(inputs.adapters), static_cast<const void*>(inputs.adapter_of_row));
  check(reinterpret_cast<std::uintptr_t>(inputs.adapter_of_row) % 4 == 0,
        "{}: adapter_of_row = {} is not aligned to its 4 bytes an element", kCall,
        static_cast<const void*>(inputs.adapter_of_row));
  const auto& table = *inputs.adapters->impl();
  const AdaptersShape& shape = table.table->shape;
  check(table.device == matrix->device, "{}: the adapters are on {}, the matrix is on {}: make them for the matrix",
        kCall, table.device->info().device.str(), matrix->device->info().device.str());
  check(
      shape.k == matrix->k && shape.n == matrix->n && shape.gate_up == matrix->shape.gate_up,
      "{}: the adapters are of a {} x {} matrix with gate_up = {}, the plan's is {} x {} with gate_up = {}: make them "
      "for this one",
      kCall, shape.k, shape.n, shape.gate_up, matrix->k, matrix->n, matrix->shape.gate_up);
  check(shape.type == options.activation, "{}: the adapters are in {}, the activations in {}: make them alike", kCall,
        to_string(shape.type), to_string(options.activation));
  check(shape.max_rank <= options.lora_rank,
        "{}: the adapters' max_rank = {} exceeds lora_rank = {} of the plan; prepare a plan with a larger one", kCall,
        shape.max_rank, options.lora_rank);
  read.adapters = table.table.get(), read.adapter_of_row = inputs.adapter_of_row;
}

void MatmulPlan::Impl::run(Stream stream, ConstRows x, Rows out, std::int64_t m, const RunInputs& inputs) const {
  constexpr const char* kCall = "MatmulPlan::run";
  const auto& w = *matrix;
  check(m >= 0 && m <= options.max_m,
        "{}: m = {} is outside [0, max_m = {}] of the plan; prepare a plan with a larger max_m, or run in pieces",
        kCall, m, options.max_m);
  if (m == 0) return;
  check(m >= options.min_m, "{}: m = {} is below min_m = {} of the plan; prepare a plan with a smaller min_m", kCall, m,
        options.min_m);
  const DeviceTraits& traits = w.device->traits();
  const auto size = size_of(options.activation), alignment = std::max(size, traits.alignment);
  const auto x_stride = check_rows(kCall, "x", x.data, x.row_stride, w.k, m, alignment, traits.stride_multiple);
  const std::int64_t n = out_columns();
  const auto out_stride = check_rows(kCall, "out", out.data, out.row_stride, n, m, alignment, traits.stride_multiple);
  const Span a = span_of(x.data, x_stride, w.k, m, size), b = span_of(out.data, out_stride, n, m, size);
  check(a.end <= b.begin || b.end <= a.begin,
        "{}: out = {} overlaps x = {} ({} and {} bytes); give out memory of its own", kCall, out.data, x.data,
        b.end - b.begin, a.end - a.begin);
  check(reinterpret_cast<std::uintptr_t>(inputs.workspace) % 256 == 0, "{}: workspace = {} is not 256-byte aligned",
        kCall, inputs.workspace);
  EpilogueInputs read;
  const ConstRows& residual = inputs.residual;
  check(options.epilogue.residual || !residual.data,
        "{}: residual = {} for a plan without one; set PlanOptions::epilogue.residual", kCall, residual.data);
  if (options.epilogue.residual) {
    read.residual = residual.data;
    read.residual_stride =
        check_rows(kCall, "residual", residual.data, residual.row_stride, n, m, alignment, traits.stride_multiple);
    const Span r = span_of(residual.data, read.residual_stride, n, m, size);
    check((residual.data == out.data && read.residual_stride == out_stride) || r.end <= b.begin || b.end <= r.begin,
          "{}: residual = {} (row stride {}) overlaps out = {} (row stride {}) and is not the same rows; give it the "
          "same "
          "address and stride, or memory of its own",
          kCall, residual.data, read.residual_stride, out.data, out_stride);
  }
  check(options.norm == (inputs.norm_weight != nullptr),
        "{}: norm_weight = {} for a plan with norm = {}; a plan with PlanOptions::norm needs its weights, others take "
        "none",
        kCall, inputs.norm_weight, options.norm);
  check(reinterpret_cast<std::uintptr_t>(inputs.norm_weight) % alignment == 0,
        "{}: norm_weight = {} is not {}-byte aligned: copy it to aligned memory", kCall, inputs.norm_weight, alignment);
  read.norm_weight = inputs.norm_weight;
  check_adapters(inputs, read);
  plan->run(stream.native, x.data, x_stride, out.data, out_stride, m, inputs.workspace, read);
}

void MatmulPlan::run(Stream stream, ConstRows x, Rows out, std::int64_t m) const {
  run(stream, x, out, m, RunInputs{});
}

void MatmulPlan::run(Stream stream, ConstRows x, Rows out, std::int64_t m, void* workspace) const {
  const auto& impl = require(impl_, "MatmulPlan::run");
  check(workspace || impl.plan->workspace_bytes() == 0, "MatmulPlan::run: workspace is null; this plan needs {} bytes",
        impl.plan->workspace_bytes());
  impl.run(stream, x, out, m, {.workspace = workspace});
}

void MatmulPlan::run(Stream stream, ConstRows x, Rows out, std::int64_t m, const RunInputs& inputs) const {
  const auto& impl = require(impl_, "MatmulPlan::run");
  check(impl.options.own_workspace || inputs.workspace || impl.plan->workspace_bytes() == 0,
        "MatmulPlan::run: the plan was made with own_workspace = false; pass a workspace of {} bytes",
        impl.plan->workspace_bytes());
  impl.run(stream, x, out, m, inputs);
}

std::int64_t MatmulPlan::out_columns() const { return require(impl_, "MatmulPlan::out_columns").out_columns(); }

std::size_t MatmulPlan::workspace_bytes() const {
  return require(impl_, "MatmulPlan::workspace_bytes").plan->workspace_bytes();
}

std::int64_t MatmulPlan::max_m() const { return require(impl_, "MatmulPlan::max_m").options.max_m; }

std::string MatmulPlan::tactic(std::int64_t m) const {
  const auto& impl = require(impl_, "MatmulPlan::tactic");
  check(m >= impl.options.min_m && m <= impl.options.max_m,
        "MatmulPlan::tactic: m = {} is outside [min_m = {}, max_m = {}]", m, impl.options.min_m, impl.options.max_m);
  return impl.plan->tactic(m);
}

std::vector<std::string> MatmulPlan::tactics(std::int64_t m) const {
  const auto& impl = require(impl_, "MatmulPlan::tactics");
  check(m >= 1 && m <= impl.options.max_m, "MatmulPlan::tactics: m = {} is outside [1, max_m = {}]", m,
        impl.options.max_m);
  return impl.plan->tactics(m);
}

void column_remap(const Runtime& runtime, Device device, Stream stream, ConstRows x, std::int64_t x_cols, Rows x_new,
                  const std::int32_t* x_map, std::int64_t cols, std::int64_t rows) {
  constexpr const char* kCall = "column_remap";
  const auto backend = runtime.impl().open(device);
  check(rows >= 0 && cols >= 0 && x_cols >= 0, "{}: rows = {}, cols = {}, x_cols = {}; none may be negative", kCall,
        rows, cols, x_cols);
  if (rows == 0 || cols == 0) return;
  check(x_map, "{}: x_map is null; pass cols = {} int32", kCall, cols);
  const auto x_stride = check_rows(kCall, "x", x.data, x.row_stride, x_cols, rows, 2, 1);
  const auto new_stride = check_rows(kCall, "x_new", x_new.data, x_new.row_stride, cols, rows, 2, 1);
  const Span a = span_of(x.data, x_stride, x_cols, rows, 2), b = span_of(x_new.data, new_stride, cols, rows, 2);
  check(a.end <= b.begin || b.end <= a.begin, "{}: x_new = {} overlaps x = {}; give it memory of its own", kCall,
        x_new.data, x.data);
  if (backend->traits().host_addressable)
    for (std::int64_t c = 0; c < cols; ++c)
      check(x_map[c] >= 0 && x_map[c] < x_cols, "{}: x_map[{}] = {} is outside [0, x_cols = {})", kCall, c, x_map[c],
            x_cols);
  backend->column_remap(stream.native, x.data, x_stride, x_cols, x_new.data, new_stride, x_map, cols, rows);
}

}  // namespace q4
