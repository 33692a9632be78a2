// q4.moe and q4.grouped_matmul.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/experts.hpp"
#include "bindings/python/src/module.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

MoeActivation activation_of(const char* call, const std::string& text) {
  return choice<MoeActivation>(call, "activation", text,
                               {{"none", MoeActivation::kNone},
                                {"silu_mul", MoeActivation::kSiluMul},
                                {"gelu_mul", MoeActivation::kGeluMul},
                                {"gelu_tanh_mul", MoeActivation::kGeluTanhMul},
                                {"swiglu_clamp", MoeActivation::kSwigluClamp}});
}

/// A new array like x, or `out` if it was given, of rows of `columns`.
nb::object result_of(const char* call, nb::handle out, nb::handle x, const Array& from, std::int64_t columns) {
  if (!out.is_none()) return nb::borrow(out);
  std::vector<std::int64_t> shape(from.shape.begin(), from.shape.begin() + from.dims);
  shape.back() = columns;
  return empty_like(call, x, from, shape);
}

/// x and out of a call over experts on `device`, checked.
struct Operands {
  Operands(const char* call, nb::handle x, nb::handle out, const Array& from, Device device, std::int64_t k,
           std::int64_t columns)
      : x_rows(rows_of(call, from)), result(result_of(call, out, x, from, columns)) {
    check(!wants_gradient(x) && !wants_gradient(result),
          "{}: {} requires grad, but experts compute no gradient: call under torch.no_grad(), or pass {}.detach()",
          call, wants_gradient(x) ? "x" : "out", wants_gradient(x) ? "x" : "out");
    to = read_array(call, "out", result);
    out_rows = rows_of(call, to);
    for (const Array* a : {&from, &std::as_const(to)}) {
      check(!a->meta, "{}: {} is on the meta device and has no memory", call, a->name);
      check(a->device == device, "{}: {} is on {}, but the experts are on {}: move it there", call, a->name,
            a->device.str(), device.str());
    }
    check(from.dtype == DType::kF16 || from.dtype == DType::kBF16 || from.dtype == DType::kF32,
          "{}: x has dtype {}; it must be float16, bfloat16 or (on the CPU) float32", call, to_string(from.dtype));
    check(x_rows.cols == k, "{}: x has shape {}; its last dimension must be k = {} of the experts", call,
          from.shape_text(), k);
    check(out_rows.cols == columns && out_rows.rows == x_rows.rows, "{}: out has shape {}; it must be [{}, {}]", call,
          to.shape_text(), x_rows.rows, columns);
    check(to.dtype == from.dtype, "{}: out has dtype {}, x has {}; they must be the same", call, to_string(to.dtype),
          to_string(from.dtype));
    check(to.writable, "{}: out is read-only; pass memory that can be written", call);
  }
  RowsOf x_rows;
  nb::object result;
  Array to;
  RowsOf out_rows{};
};

/// A contiguous array of `rows` rows on the device.
const void* data_of(const char* call, const Array& array, DType type, Device device, std::int64_t rows) {
  check(array.dtype == type, "{}: {} has dtype {}; it must be {}", call, array.name, to_string(array.dtype),
        to_string(type));
  check(!array.meta && array.device == device, "{}: {} is on {}, but the experts are on {}: move it there", call,
        array.name, array.device.str(), device.str());
  const RowsOf shape = rows_of(call, array);
  check(shape.rows == rows || shape.rows * shape.cols == rows, "{}: {} has shape {}; it must have {} rows, as x", call,
        array.name, array.shape_text(), rows);
  check(shape.stride == 0 || shape.stride == shape.cols || shape.rows <= 1,
        "{}: {} has rows {} elements apart; it must be contiguous", call, array.name, shape.stride);
  return array.data;
}

nb::object moe(nb::handle x, nb::handle topk_ids, nb::handle topk_weights, const ExpertsPtr& w13, const ExpertsPtr& w2,
               const std::string& activation, const std::vector<std::int32_t>& expert_map, float alpha, float limit,
               bool batch_invariant, nb::handle out, nb::handle stream) {
  constexpr const char* kCall = "moe";
  const Array from = read_array(kCall, "x", x);
  const Array ids = read_array(kCall, "topk_ids", topk_ids);
  const Array weights = read_array(kCall, "topk_weights", topk_weights);
  const QuantizedExperts second = w2->weights();
  Operands all(kCall, x, out, from, w13->device, w13->weights().k(), second.n());
  const std::int64_t tokens = all.x_rows.rows;
  MoeOptions options;
  options.dtype = from.dtype, options.activation = activation_of(kCall, activation);
  options.alpha = alpha, options.limit = limit, options.batch_invariant = batch_invariant;
  options.expert_map = expert_map, options.own_workspace = false;
  options.max_tokens = tokens, options.topk = ids.dims > 0 ? ids.shape[static_cast<std::size_t>(ids.dims) - 1] : 0;
  const void* id_data = data_of(kCall, ids, DType::kI32, w13->device, tokens);
  const void* weight_data = data_of(kCall, weights, DType::kF32, w13->device, tokens);
  check(ids.size() == tokens * options.topk && weights.size() == ids.size(),
        "{}: topk_ids has shape {} and topk_weights {}; with {} rows of x both must be [{}, topk]", kCall,
        ids.shape_text(), weights.shape_text(), tokens, tokens);
  void* on = stream_of(kCall, stream, from);
  if (tokens == 0) return all.result;
  {
    const GilRelease release;
    const MoePlan plan = w13->moe_plan(second, options);
    const auto scratch = workspaces().get(w13->device, on);
    std::lock_guard lock(scratch->mutex);
    plan.run({on}, {from.data, all.x_rows.stride}, static_cast<const std::int32_t*>(id_data),
             static_cast<const float*>(weight_data), {all.to.data, all.out_rows.stride}, tokens,
             scratch->reserve(w13->device, plan.workspace_bytes()));
  }
  return all.result;
}

nb::object grouped(nb::handle x, const ExpertsPtr& experts, nb::handle expert_ids, nb::handle offsets,
                   const std::string& activation, float alpha, float limit, bool batch_invariant, nb::handle out,
                   nb::handle stream) {
  constexpr const char* kCall = "grouped_matmul";
  check(expert_ids.is_none() != offsets.is_none(), "{}: expert_ids and offsets are both {}; pass one of them", kCall,
        expert_ids.is_none() ? "None" : "given");
  const Array from = read_array(kCall, "x", x);
  const bool sorted = expert_ids.is_none();
  const Array vector = read_array(kCall, sorted ? "offsets" : "expert_ids", sorted ? offsets : expert_ids);
  GroupedOptions options;
  options.dtype = from.dtype, options.activation = activation_of(kCall, activation);
  options.alpha = alpha, options.limit = limit, options.batch_invariant = batch_invariant;
  options.own_workspace = false;
  const QuantizedExperts weights = experts->weights();
  const std::int64_t columns = options.activation == MoeActivation::kNone ? weights.n() : weights.n() / 2;
  Operands all(kCall, x, out, from, experts->device, weights.k(), columns);
  options.max_rows = all.x_rows.rows;
  const auto* data = static_cast<const std::int32_t*>(
      data_of(kCall, vector, DType::kI32, experts->device, sorted ? weights.experts() + 1 : all.x_rows.rows));
  void* on = stream_of(kCall, stream, from);
  if (all.x_rows.rows == 0) return all.result;
  {
    const GilRelease release;
    const GroupedPlan plan = experts->grouped_plan(options);
    const auto scratch = workspaces().get(experts->device, on);
    std::lock_guard lock(scratch->mutex);
    void* workspace = scratch->reserve(experts->device, plan.workspace_bytes());
    const ConstRows from_rows{from.data, all.x_rows.stride};
    const Rows to_rows{all.to.data, all.out_rows.stride};
    if (sorted)
      plan.run_sorted({on}, from_rows, data, to_rows, all.x_rows.rows, workspace);
    else
      plan.run({on}, from_rows, data, to_rows, all.x_rows.rows, workspace);
  }
  return all.result;
}

void warmup_moe(const ExpertsPtr& w13, const ExpertsPtr& w2, std::int64_t max_tokens, std::int64_t topk,
                nb::handle dtype, const std::string& text, const std::optional<std::vector<std::int32_t>>& expert_map,
                float alpha, float limit, bool batch_invariant, nb::handle stream) {
  constexpr const char* kCall = "Experts.warmup";
  MoeOptions options;
  options.dtype = activation(kCall, dtype), options.activation = activation_of(kCall, text);
  options.alpha = alpha, options.limit = limit, options.batch_invariant = batch_invariant;
  if (expert_map) options.expert_map = *expert_map;
  options.own_workspace = false, options.max_tokens = max_tokens, options.topk = topk;
  check(max_tokens >= 1 && max_tokens <= INT32_MAX, "{}: max_tokens = {}; it must be in [1, {}]", kCall, max_tokens,
        INT32_MAX);
  Array here;
  here.device = w13->device;
  void* on = stream.is_none() ? torch_stream(w13->device) : stream_of(kCall, stream, here);
  const GilRelease release;
  const MoePlan plan = w13->moe_plan(w2->weights(), options);
  const auto scratch = workspaces().get(w13->device, on);
  std::lock_guard lock(scratch->mutex);
  scratch->reserve(w13->device, plan.workspace_bytes());
}

}  // namespace

void bind_moe(nb::module_& m) {
  m.def("_moe", &moe, "x"_a, "topk_ids"_a, "topk_weights"_a, "w13"_a, "w2"_a, "activation"_a, "expert_map"_a, "alpha"_a,
        "limit"_a, "batch_invariant"_a, "out"_a.none(), "stream"_a.none(), "q4.moe with int32 ids and fp32 weights.");
  nb::borrow<nb::class_<Experts>>(nb::type<Experts>())
      .def("warmup", &warmup_moe, "w2"_a, "max_tokens"_a, "topk"_a, "dtype"_a.none() = "float16",
           "activation"_a = "silu_mul", nb::kw_only(), "expert_map"_a = nb::none(), "alpha"_a = 1.702f,
           "limit"_a = 7.0f, "batch_invariant"_a = false, "stream"_a = nb::none(),
           "Of w13: makes the plan of q4.moe with this w2 for up to max_tokens tokens of topk experts each, and the "
           "workspace of the stream, so that such calls neither compile nor allocate. dtype is x's; the others as "
           "for q4.moe.");
  m.def("_grouped", &grouped, "x"_a, "experts"_a, "expert_ids"_a.none(), "offsets"_a.none(), "activation"_a, "alpha"_a,
        "limit"_a, "batch_invariant"_a, "out"_a.none(), "stream"_a.none(), "q4.grouped_matmul with int32 vectors.");
}

}  // namespace q4::python
