// MoePlan and GroupedPlan: check every argument, then hand the launch to the backend's plan.
#include <algorithm>
#include <q4/moe.hpp>

#include "runtime/base/check.hpp"
#include "runtime/experts.hpp"
#include "runtime/matmul.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"

namespace q4 {

const char* to_string(MoeActivation activation) noexcept {
  switch (activation) {
    case MoeActivation::kNone:
      return "none";
    case MoeActivation::kSiluMul:
      return "silu_mul";
    case MoeActivation::kGeluMul:
      return "gelu_mul";
    case MoeActivation::kGeluTanhMul:
      return "gelu_tanh_mul";
    case MoeActivation::kSwigluClamp:
      return "swiglu_clamp";
  }
  return "unknown";
}

class [[gnu::visibility("hidden")]] MoePlan::Impl {
 public:
  std::shared_ptr<const QuantizedExperts::Impl> w13, w2;
  std::unique_ptr<MoePlanBackend> plan;
  MoeOptions options;

  void run(Stream stream, ConstRows x, const std::int32_t* ids, const float* weights, Rows out, std::int64_t tokens,
           void* workspace) const;
};

class [[gnu::visibility("hidden")]] GroupedPlan::Impl {
 public:
  std::shared_ptr<const QuantizedExperts::Impl> experts;
  std::unique_ptr<GroupedPlanBackend> plan;
  GroupedOptions options;
  std::int64_t columns = 0;  ///< of out

  /// One of `ids` and `offsets` is used, and named `what`.
  void run(const char* call, const char* what, GroupedCall call_of, ConstRows x, Rows out) const;
};

namespace {

constexpr std::int64_t kMostSlots = 32;  // of a token

/// What both plans ask of their options and of the first (or only) experts.
void check_options(const char* call, Device device, const ExpertsShape& experts, const ExpertsPlanOptions& options) {
  const bool fp32 = options.dtype == DType::kF32 && traits_of(device).fp32_activations;
  check(options.dtype == DType::kF16 || options.dtype == DType::kBF16 || fp32,
        "{}: dtype is {} on {}; it must be fp16, bf16 or (on the CPU) fp32", call, to_string(options.dtype),
        device.str());
  check(options.activation <= MoeActivation::kSwigluClamp, "{}: activation = {} is not a value of MoeActivation", call,
        static_cast<int>(options.activation));
  const bool gated = options.activation != MoeActivation::kNone;
  check(!gated || experts.gate_up,
        "{}: activation is {}, which multiplies gate and up, but the experts were made without gate_up: make them with "
        "ExpertsOptions::gate_up",
        call, to_string(options.activation));
  check(gated || !experts.gate_up,
        "{}: activation is none, but the experts were made with gate_up and may have their columns in another order: "
        "make them without it",
        call);
  check(options.activation != MoeActivation::kSwigluClamp || options.limit > 0,
        "{}: limit = {} of swiglu_clamp must be above 0", call, options.limit);
}

void check_workspace(const char* call, const void* workspace, bool own, std::size_t bytes) {
  check(workspace || own || bytes == 0,
        "{}: the plan was made with own_workspace = false; pass a workspace of {} bytes", call, bytes);
  check(reinterpret_cast<std::uintptr_t>(workspace) % 256 == 0, "{}: workspace = {} is not 256-byte aligned", call,
        workspace);
}

/// A contiguous tensor of 4-byte elements.
void check_vector(const char* call, const char* name, const void* data) {
  check(data, "{}: {} is null; pass memory of the plan's device (on the CPU, host memory)", call, name);
  check(reinterpret_cast<std::uintptr_t>(data) % 4 == 0, "{}: {} = {} is not aligned to its 4 bytes an element", call,
        name, data);
}

void check_apart(const char* call, const Span& out, const char* name, const Span& other) {
  check(out.end <= other.begin || other.end <= out.begin, "{}: out overlaps {}; give it memory of its own", call, name);
}

/// x and out of `rows` rows, and the memory of out.
struct CheckedRows {
  CheckedRows(const char* call, const QuantizedExperts::Impl& experts, DType type, ConstRows x, std::int64_t k,
              Rows out, std::int64_t n, std::int64_t rows) {
    const DeviceTraits& traits = experts.device->traits();
    const auto size = size_of(type), alignment = std::max(size, traits.alignment);
    x_stride = check_rows(call, "x", x.data, x.row_stride, k, rows, alignment, traits.stride_multiple);
    out_stride = check_rows(call, "out", out.data, out.row_stride, n, rows, alignment, traits.stride_multiple);
    span = span_of(out.data, out_stride, n, rows, size);
    check_apart(call, span, "x", span_of(x.data, x_stride, k, rows, size));
  }
  std::int64_t x_stride, out_stride;
  Span span;
};

template <class Impl>
const Impl& require_plan(const std::shared_ptr<const Impl>& impl, const char* call) {
  check(impl != nullptr, "{}: the plan is empty (default-constructed or moved from); construct it from experts", call);
  return *impl;
}

void check_count(const char* call, const char* name, std::int64_t count, std::int64_t most) {
  check(count >= 1 && count <= most, "{}: {} = {} is outside [1, {}]", call, name, count, most);
}

}  // namespace

void check_moe(const char* call, Device device, const ExpertsShape& a, const ExpertsShape& b,
               const MoeOptions& options) {
  check_options(call, device, a, options);
  check(a.experts == b.experts, "{}: w13 has {} experts and w2 {}; they must have as many", call, a.experts, b.experts);
  const std::int64_t width = a.gate_up ? a.n / 2 : a.n;
  check(!b.gate_up, "{}: w2 was made with gate_up, which is for w13 alone", call);
  check(b.k == width, "{}: w2 has k = {}; the product with w13 gives it {} columns{}", call, b.k, width,
        a.gate_up ? " (half of n, as gate and up are multiplied)" : "");
  check(options.topk >= 1 && options.topk <= kMostSlots, "{}: topk = {}; it must be in [1, {}]", call, options.topk,
        kMostSlots);
  check(options.max_tokens >= 1 && options.max_tokens <= INT32_MAX / options.topk,
        "{}: max_tokens = {}; it must be in [1, {}] with topk = {}", call, options.max_tokens, INT32_MAX / options.topk,
        options.topk);
  for (std::size_t i = 0; i < options.expert_map.size(); ++i)
    check(options.expert_map[i] >= -1 && options.expert_map[i] < a.experts,
          "{}: expert_map[{}] = {}; it must be a place in [0, {}), or -1 for an expert of another rank", call, i,
          options.expert_map[i], a.experts);
}

const TuningRecord* find_tuned(const Runtime& runtime, const DeviceBackend& device, const ExpertsShape& w13,
                               const ExpertsShape& w2, const MoeOptions& options) {
  if (!options.tactic.empty() || options.batch_invariant || !device.traits().compiles) return nullptr;
  const auto& info = device.info();
  return runtime.impl().tuned(info.device, tuning_key(info, tuning_digest(device.kernels_digest()), w13.k, w2.n,
                                                      w13.group_size, w13.act_order || w2.act_order, options.dtype,
                                                      "cold", experts_text(w13.experts, options.topk, w2.k)));
}

MoePlan::MoePlan(const Runtime&, const QuantizedExperts& w13, const QuantizedExperts& w2, const MoeOptions& options) {
  constexpr const char* kCall = "MoePlan";
  const auto& first = require(w13, kCall);
  const auto& second = require(w2, kCall);
  check(first.device == second.device, "{}: w13 is on {} and w2 on {}, or they are of two Runtimes: load both with one",
        kCall, first.where().str(), second.where().str());
  check_moe(kCall, first.where(), first.shape(), second.shape(), options);
  auto impl = std::make_shared<Impl>();
  impl->w13 = w13.impl(), impl->w2 = w2.impl(), impl->options = options;
  impl->plan = first.device->plan_moe(first.packed, second.packed, options,
                                      find_tuned(first.runtime, *first.device, first.shape(), second.shape(), options));
  impl_ = std::move(impl);
}

void MoePlan::Impl::run(Stream stream, ConstRows x, const std::int32_t* ids, const float* weights, Rows out,
                        std::int64_t tokens, void* workspace) const {
  constexpr const char* kCall = "MoePlan::run";
  check(
      tokens >= 0 && tokens <= options.max_tokens,
      "{}: tokens = {} is outside [0, max_tokens = {}] of the plan; prepare a plan with a larger max_tokens, or run in "
      "pieces",
      kCall, tokens, options.max_tokens);
  if (tokens == 0) return;
  const CheckedRows rows(kCall, *w13, options.dtype, x, w13->shape().k, out, w2->shape().n, tokens);
  check_vector(kCall, "topk_ids", ids);
  check_vector(kCall, "topk_weights", weights);
  check_apart(kCall, rows.span, "topk_ids", span_of(ids, options.topk, options.topk, tokens, 4));
  check_apart(kCall, rows.span, "topk_weights", span_of(weights, options.topk, options.topk, tokens, 4));
  check_workspace(kCall, workspace, options.own_workspace, plan->workspace_bytes());
  plan->run({stream.native, x.data, rows.x_stride, ids, weights, out.data, rows.out_stride, tokens, workspace});
}

void MoePlan::run(Stream stream, ConstRows x, const std::int32_t* topk_ids, const float* topk_weights, Rows out,
                  std::int64_t tokens) const {
  require_plan(impl_, "MoePlan::run").run(stream, x, topk_ids, topk_weights, out, tokens, nullptr);
}

void MoePlan::run(Stream stream, ConstRows x, const std::int32_t* topk_ids, const float* topk_weights, Rows out,
                  std::int64_t tokens, void* workspace) const {
  const auto& impl = require_plan(impl_, "MoePlan::run");
  check(workspace || impl.plan->workspace_bytes() == 0, "MoePlan::run: workspace is null; this plan needs {} bytes",
        impl.plan->workspace_bytes());
  impl.run(stream, x, topk_ids, topk_weights, out, tokens, workspace);
}

std::size_t MoePlan::workspace_bytes() const {
  return require_plan(impl_, "MoePlan::workspace_bytes").plan->workspace_bytes();
}
std::int64_t MoePlan::max_tokens() const { return require_plan(impl_, "MoePlan::max_tokens").options.max_tokens; }
std::int64_t MoePlan::topk() const { return require_plan(impl_, "MoePlan::topk").options.topk; }
std::string MoePlan::tactic(std::int64_t tokens) const {
  const auto& impl = require_plan(impl_, "MoePlan::tactic");
  check_count("MoePlan::tactic", "tokens", tokens, impl.options.max_tokens);
  return impl.plan->tactic(tokens);
}
std::vector<std::string> MoePlan::tactics(std::int64_t tokens) const {
  const auto& impl = require_plan(impl_, "MoePlan::tactics");
  check_count("MoePlan::tactics", "tokens", tokens, impl.options.max_tokens);
  return impl.plan->tactics(tokens);
}

GroupedPlan::GroupedPlan(const Runtime&, const QuantizedExperts& experts, const GroupedOptions& options) {
  constexpr const char* kCall = "GroupedPlan";
  const auto& e = require(experts, kCall);
  check_options(kCall, e.where(), e.shape(), options);
  check(options.max_rows >= 1 && options.max_rows <= INT32_MAX, "{}: max_rows = {}; it must be in [1, {}]", kCall,
        options.max_rows, INT32_MAX);
  auto impl = std::make_shared<Impl>();
  impl->experts = experts.impl(), impl->options = options;
  impl->columns = e.shape().gate_up ? e.shape().n / 2 : e.shape().n;
  impl->plan = e.device->plan_grouped(e.packed, options);
  impl_ = std::move(impl);
}

void GroupedPlan::Impl::run(const char* call, const char* what, GroupedCall to, ConstRows x, Rows out) const {
  check(to.rows >= 0 && to.rows <= options.max_rows,
        "{}: rows = {} is outside [0, max_rows = {}] of the plan; prepare a plan with a larger max_rows, or run in "
        "pieces",
        call, to.rows, options.max_rows);
  if (to.rows == 0) return;
  const CheckedRows rows(call, *experts, options.dtype, x, experts->shape().k, out, columns, to.rows);
  const void* vector = to.ids ? to.ids : to.offsets;
  check_vector(call, what, vector);
  check_apart(call, rows.span, what, span_of(vector, 1, 1, to.ids ? to.rows : experts->shape().experts + 1, 4));
  check_workspace(call, to.workspace, options.own_workspace, plan->workspace_bytes());
  to.x = x.data, to.x_stride = rows.x_stride, to.out = out.data, to.out_stride = rows.out_stride;
  plan->run(to);
}

void GroupedPlan::run(Stream stream, ConstRows x, const std::int32_t* expert_ids, Rows out, std::int64_t rows,
                      void* workspace) const {
  GroupedCall call;
  call.stream = stream.native, call.ids = expert_ids, call.rows = rows, call.workspace = workspace;
  require_plan(impl_, "GroupedPlan::run").run("GroupedPlan::run", "expert_ids", call, x, out);
}

void GroupedPlan::run_sorted(Stream stream, ConstRows x, const std::int32_t* offsets, Rows out, std::int64_t rows,
                             void* workspace) const {
  GroupedCall call;
  call.stream = stream.native, call.offsets = offsets, call.rows = rows, call.workspace = workspace;
  require_plan(impl_, "GroupedPlan::run_sorted").run("GroupedPlan::run_sorted", "offsets", call, x, out);
}

std::size_t GroupedPlan::workspace_bytes() const {
  return require_plan(impl_, "GroupedPlan::workspace_bytes").plan->workspace_bytes();
}
std::int64_t GroupedPlan::max_rows() const { return require_plan(impl_, "GroupedPlan::max_rows").options.max_rows; }
std::string GroupedPlan::tactic(std::int64_t rows) const {
  const auto& impl = require_plan(impl_, "GroupedPlan::tactic");
  check_count("GroupedPlan::tactic", "rows", rows, impl.options.max_rows);
  return impl.plan->tactic(rows);
}
std::vector<std::string> GroupedPlan::tactics(std::int64_t rows) const {
  const auto& impl = require_plan(impl_, "GroupedPlan::tactics");
  check_count("GroupedPlan::tactics", "rows", rows, impl.options.max_rows);
  return impl.plan->tactics(rows);
}

}  // namespace q4
