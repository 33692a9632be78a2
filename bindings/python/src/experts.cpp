// q4.Experts, q4.moe and q4.grouped_matmul.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <bit>
#include <list>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

/// Experts, and the plans that they begin: one for each set of options and power of two of rows. Thread-safe.
class Experts {
 public:
  explicit Experts(QuantizedExperts weights) : weights_(std::move(weights)), device(weights_.device()) {}

  QuantizedExperts weights() const {
    const std::lock_guard lock(mutex_);
    return weights_;
  }
  /// For an activation: experts that were made without gate_up are packed anew, once.
  QuantizedExperts gate_up() {
    const std::lock_guard lock(mutex_);
    if (weights_.gate_up()) return weights_;
    std::vector<UnpackedMatrix> unpacked;
    for (std::int64_t e = 0; e < weights_.experts(); ++e) unpacked.push_back(weights_.unpack(e));
    if (weights_.is_awq()) {
      std::vector<AwqTensors> all;
      for (const auto& u : unpacked) all.push_back(u.awq());
      weights_ = QuantizedExperts::from_awq(runtime(), device, all, {.gate_up = true});
    } else {
      std::vector<GptqTensors> all;
      for (const auto& u : unpacked) all.push_back(u.gptq());
      weights_ = QuantizedExperts::from_gptq(runtime(), device, all, {.gate_up = true});
    }
    return weights_;
  }

  /// The plan of a layer with this w2 for so many tokens.
  MoePlan moe_plan(const QuantizedExperts& w2, MoeOptions options) {
    return find(moe_plans_, w2.impl().get(), options, options.max_tokens,
                [&](const QuantizedExperts& w13) { return MoePlan(runtime(), w13, w2, options); });
  }
  GroupedPlan grouped_plan(GroupedOptions options) {
    return find(grouped_plans_, nullptr, options, options.max_rows,
                [&](const QuantizedExperts& e) { return GroupedPlan(runtime(), e, options); });
  }

 private:
  template <class Options, class Plan>
  struct Made {
    const void* other;
    Options options;
    std::int64_t rows;
    Plan plan;
  };

  static const std::vector<std::int32_t>& map_of(const MoeOptions& options) { return options.expert_map; }
  static std::vector<std::int32_t> map_of(const GroupedOptions&) { return {}; }
  static std::int64_t topk_of(const MoeOptions& options) { return options.topk; }
  static std::int64_t topk_of(const GroupedOptions&) { return 0; }
  template <class Options>
  static bool same_but_rows(const Options& a, const Options& b) {
    return a.dtype == b.dtype && a.activation == b.activation && a.alpha == b.alpha && a.limit == b.limit &&
           a.batch_invariant == b.batch_invariant && topk_of(a) == topk_of(b) && map_of(a) == map_of(b);
  }

  /// `rows` is the member of `options` that is rounded up to a power of two.
  template <class Options, class Plan, class Make>
  Plan find(std::list<Made<Options, Plan>>& plans, const void* other, Options& options, std::int64_t& rows, Make make) {
    const QuantizedExperts experts = options.activation == MoeActivation::kNone ? weights() : gate_up();
    rows = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
    const auto serving = [&]() -> const Plan* {
      for (const auto& made : plans)
        if (made.other == other && made.rows >= rows && same_but_rows(made.options, options)) return &made.plan;
      return nullptr;
    };
    {
      const std::lock_guard lock(mutex_);
      if (const Plan* plan = serving()) return *plan;
    }
    const RelaxedCapture relaxed(device);
    Plan plan = make(experts);  // may take seconds: no lock meanwhile
    const std::lock_guard lock(mutex_);
    if (const Plan* found = serving()) return *found;  // another thread was faster
    plans.push_back({other, options, rows, plan});
    return plan;
  }

  mutable ForkSafeMutex mutex_;
  QuantizedExperts weights_;
  std::list<Made<MoeOptions, MoePlan>> moe_plans_;
  std::list<Made<GroupedOptions, GroupedPlan>> grouped_plans_;

 public:
  const Device device;
};
using ExpertsPtr = std::shared_ptr<Experts>;

// ---- making ---------------------------------------------------------------------------------------------------------

/// The arrays of a list of experts, alive while they are read.
struct Read {
  std::list<Array> arrays;

  TensorView view(const char* call, const char* name, nb::handle object) {
    return view_of(call, arrays.emplace_back(read_array(call, name, object)));
  }
  std::optional<TensorView> optional(const char* call, const char* name, nb::handle object) {
    if (object.is_none()) return std::nullopt;
    const Array& array = arrays.emplace_back(read_array(call, name, object));
    return array.meta || array.size() == 0 ? std::nullopt : std::optional(view_of(call, array));
  }
  /// The device that was named, else where the first array is; waits for what torch computes there.
  Device target(const char* call, nb::handle device) const {
    const Device first = arrays.front().device;
    const Device chosen = read_device(call, device).value_or(first);
    finish_torch_stream(first);
    return chosen;
  }
};

/// Item i of an expert's tuple, or None behind its end.
nb::object item(nb::handle tensors, std::size_t i) {
  return i < nb::len(tensors) ? nb::object(tensors[i]) : nb::none();
}

void check_tuple(const char* call, nb::handle tensors, std::size_t index, std::size_t most, const char* names) {
  if (!PyTuple_Check(tensors.ptr()) && !PyList_Check(tensors.ptr()))
    throw nb::type_error(
        fmt::format("{}: expert {} is {}; it must be a tuple ({})", call, index, nb::str(tensors.type()).c_str(), names)
            .c_str());
  check(nb::len(tensors) >= 3 && nb::len(tensors) <= most, "{}: expert {} has {} tensors; it must be ({})", call, index,
        nb::len(tensors), names);
}

ExpertsPtr from_gptq(nb::sequence experts, std::int64_t group_size, const std::string& zeros, bool gate_up,
                     const std::optional<Slice>& slice, nb::handle device) {
  constexpr const char* kCall = "Experts.from_gptq";
  Read read;
  std::vector<GptqTensors> all;
  for (const nb::handle tensors : experts) {
    check_tuple(kCall, tensors, all.size(), 5, "qweight, qzeros, scales[, g_idx[, bias]]");
    all.push_back({read.view(kCall, "qweight", tensors[0]), read.view(kCall, "qzeros", tensors[1]),
                   read.view(kCall, "scales", tensors[2]), read.optional(kCall, "g_idx", item(tensors, 3)),
                   read.optional(kCall, "bias", item(tensors, 4)), group_size, zero_format(kCall, zeros)});
  }
  check(!all.empty(), "{}: there are no experts; pass one tuple of tensors for each", kCall);
  const Device chosen = read.target(kCall, device);
  const GilRelease release;
  return std::make_shared<Experts>(
      QuantizedExperts::from_gptq(runtime(), chosen, all, {.gate_up = gate_up, .slice = slice.value_or(Slice())}));
}

ExpertsPtr from_awq(nb::sequence experts, std::int64_t group_size, bool gate_up, nb::handle device) {
  constexpr const char* kCall = "Experts.from_awq";
  Read read;
  std::vector<AwqTensors> all;
  for (const nb::handle tensors : experts) {
    check_tuple(kCall, tensors, all.size(), 4, "qweight, qzeros, scales[, bias]");
    all.push_back({read.view(kCall, "qweight", tensors[0]), read.view(kCall, "qzeros", tensors[1]),
                   read.view(kCall, "scales", tensors[2]), read.optional(kCall, "bias", item(tensors, 3)), group_size});
  }
  check(!all.empty(), "{}: there are no experts; pass one tuple of tensors for each", kCall);
  const Device chosen = read.target(kCall, device);
  const GilRelease release;
  return std::make_shared<Experts>(QuantizedExperts::from_awq(runtime(), chosen, all, {.gate_up = gate_up}));
}

/// [E, ...] as rows of its last dimension.
TensorView stacked_view(const char* call, Read& read, const char* name, nb::handle object, int dims) {
  const Array& array = read.arrays.emplace_back(read_array(call, name, object));
  check(array.dims == dims && !array.meta, "{}: {} has shape {}; it must have {} dimensions, experts first", call, name,
        array.shape_text(), dims);
  const RowsOf rows = rows_of(call, array);
  TensorView view{array.data, array.dtype, rows.rows, rows.cols, rows.stride == 0 ? -1 : rows.stride};
  if (array.device.kind != BackendKind::kCpu) view.device = array.device;
  return view;
}

ExpertsPtr from_stacked(nb::handle qweight, nb::handle qzeros, nb::handle scales, nb::handle g_idx, nb::handle bias,
                        std::int64_t group_size, const std::string& zeros, bool gate_up, nb::handle device) {
  constexpr const char* kCall = "Experts.from_stacked";
  Read read;
  GptqTensors t{stacked_view(kCall, read, "qweight", qweight, 3),
                stacked_view(kCall, read, "qzeros", qzeros, 3),
                stacked_view(kCall, read, "scales", scales, 3),
                {},
                {},
                group_size,
                zero_format(kCall, zeros)};
  const std::int64_t experts = read.arrays.front().shape[0];
  for (const Array& array : read.arrays)
    check(array.shape[0] == experts, "{}: {} has shape {}; qweight has {} experts", kCall, array.name,
          array.shape_text(), experts);
  if (!g_idx.is_none()) t.g_idx = stacked_view(kCall, read, "g_idx", g_idx, 2);
  if (!bias.is_none()) t.bias = stacked_view(kCall, read, "bias", bias, 2);
  const Device chosen = read.target(kCall, device);
  const GilRelease release;
  return std::make_shared<Experts>(QuantizedExperts::from_stacked(runtime(), chosen, experts, t, {.gate_up = gate_up}));
}

ExpertsPtr from_checkpoint(nb::handle checkpoint, nb::handle patterns, std::int64_t first, std::int64_t count,
                           bool gate_up, const std::optional<Slice>& slice, nb::handle device) {
  constexpr const char* kCall = "Experts.from_checkpoint";
  const Checkpoint opened =
      nb::isinstance<Checkpoint>(checkpoint) ? nb::cast<Checkpoint>(checkpoint) : open_checkpoint(checkpoint);
  ExpertNames names;
  if (PyUnicode_Check(patterns.ptr()))
    names.patterns = {nb::cast<std::string>(patterns)};
  else
    names.patterns = nb::cast<std::vector<std::string>>(patterns);
  names.first = first, names.count = count;
  const auto named = read_device(kCall, device);
  const GilRelease release;
  return std::make_shared<Experts>(QuantizedExperts::load(runtime(), named ? *named : runtime().best_device(), opened,
                                                          names,
                                                          {.gate_up = gate_up, .slice = slice.value_or(Slice())}));
}

nb::dict unpack(const ExpertsPtr& experts, std::int64_t expert) {
  UnpackedMatrix tensors;
  {
    const GilRelease release;
    tensors = experts->weights().unpack(expert);
  }
  return dict_of(tensors);
}

void update(const ExpertsPtr& experts, std::int64_t expert, nb::handle qweight, nb::handle qzeros, nb::handle scales,
            nb::handle g_idx, nb::handle bias, std::int64_t group_size, const std::string& zeros) {
  constexpr const char* kCall = "Experts.update";
  Read read;
  GptqTensors t{read.view(kCall, "qweight", qweight),
                read.view(kCall, "qzeros", qzeros),
                read.view(kCall, "scales", scales),
                read.optional(kCall, "g_idx", g_idx),
                read.optional(kCall, "bias", bias),
                group_size,
                zero_format(kCall, zeros)};
  void* stream = current_stream(read.arrays.front());
  QuantizedExperts weights = experts->weights();
  check(!weights.is_awq() || !t.g_idx, "{}: g_idx was given, but AWQ experts have none: pass None", kCall);
  const GilRelease release;
  if (weights.is_awq())
    weights.update(expert, AwqTensors{t.qweight, t.qzeros, t.scales, t.bias, group_size}, {stream});
  else
    weights.update(expert, t, {stream});
}

// ---- computing ------------------------------------------------------------------------------------------------------

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
  const GilRelease release;
  if (tokens == 0) return all.result;
  const MoePlan plan = w13->moe_plan(second, options);
  const auto scratch = workspaces().get(w13->device, on);
  std::lock_guard lock(scratch->mutex);
  plan.run({on}, {from.data, all.x_rows.stride}, static_cast<const std::int32_t*>(id_data),
           static_cast<const float*>(weight_data), {all.to.data, all.out_rows.stride}, tokens,
           scratch->reserve(w13->device, plan.workspace_bytes()));
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
  const GilRelease release;
  if (all.x_rows.rows == 0) return all.result;
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
  return all.result;
}

std::string describe(const Experts& experts) {
  const QuantizedExperts w = experts.weights();
  return fmt::format("q4.Experts({}, k={}, n={}, group_size={}{}{}{}, device='{}')", w.experts(), w.k(), w.n(),
                     w.group_size(), w.act_order() ? ", act_order" : "", w.has_bias() ? ", bias" : "",
                     w.gate_up() ? ", gate_up" : "", experts.device.str());
}

}  // namespace

void bind_experts(nb::module_& m) {
  const auto none = nb::none();
  const auto number = [](auto member) { return [member](const Experts& self) { return (self.weights().*member)(); }; };
  nb::class_<Experts>(m, "Experts", nb::is_weak_referenceable(),
                      "E matrices W[k, n] of 4-bit weights as one allocation on one device, for q4.moe.")
      .def_static(
          "from_gptq", &from_gptq, "experts"_a, nb::kw_only(), "group_size"_a = 0, "zeros"_a = "auto",
          "gate_up"_a = false, "slice"_a = none, "device"_a = none,
          "From a list of (qweight, qzeros, scales[, g_idx[, bias]]), one tuple an expert, as "
          "Matrix.from_gptq takes them. gate_up: the columns are gate, then up, for q4.moe with an activation; "
          "experts that were made without it are packed anew at their first use as w13. slice: a q4.Slice, what a rank "
          "holds of each (columns of w13, rows of w2).")
      .def_static("from_awq", &from_awq, "experts"_a, nb::kw_only(), "group_size"_a = 0, "gate_up"_a = false,
                  "device"_a = none, "From a list of (qweight, qzeros, scales[, bias]) in AWQ's \"gemm\" layout.")
      .def_static("from_stacked", &from_stacked, "qweight"_a, "qzeros"_a, "scales"_a, "g_idx"_a = none, "bias"_a = none,
                  nb::kw_only(), "group_size"_a = 0, "zeros"_a = "auto", "gate_up"_a = false, "device"_a = none,
                  "From int32 qweight [E, k/8, n], int32 qzeros [E, groups, n/8], scales [E, groups, n], g_idx [E, k] "
                  "and bias [E, n].")
      .def_static("from_checkpoint", &from_checkpoint, "checkpoint"_a, "patterns"_a, nb::kw_only(), "first"_a = 0,
                  "count"_a = -1, "gate_up"_a = false, "slice"_a = none, "device"_a = none,
                  "The matrices of a q4.Checkpoint or its path whose names are the pattern with {} replaced by first, "
                  "first + 1, ...; a pair of patterns: gate and up, whose columns are joined. count -1: every one "
                  "that follows.")
      .def("unpack", &unpack, "expert"_a, "The tensors of one expert, as Matrix.unpack() gives them.")
      .def("update", &update, "expert"_a, "qweight"_a, "qzeros"_a, "scales"_a, "g_idx"_a = none, "bias"_a = none,
           nb::kw_only(), "group_size"_a = 0, "zeros"_a = "auto",
           "Other weights of the same shape for one expert, in the same memory.")
      .def("__repr__", &describe)
      .def("__len__", number(&QuantizedExperts::experts))
      .def_prop_ro("k", number(&QuantizedExperts::k), "Rows of each matrix: in_features.")
      .def_prop_ro("n", number(&QuantizedExperts::n), "Columns of each matrix, gate and up together.")
      .def_prop_ro("group_size", number(&QuantizedExperts::group_size), "Rows of a group.")
      .def_prop_ro("groups", number(&QuantizedExperts::groups))
      .def_prop_ro("act_order", number(&QuantizedExperts::act_order), "Of one expert at least.")
      .def_prop_ro("has_bias", number(&QuantizedExperts::has_bias))
      .def_prop_ro("gate_up", number(&QuantizedExperts::gate_up))
      .def_prop_ro("nbytes", number(&QuantizedExperts::bytes), "Device memory of the weights.")
      .def_prop_ro(
          "device", [](const Experts& self) { return self.device.str(); }, "\"cpu\", \"cuda:0\".");
  m.def("_moe", &moe, "x"_a, "topk_ids"_a, "topk_weights"_a, "w13"_a, "w2"_a, "activation"_a, "expert_map"_a, "alpha"_a,
        "limit"_a, "batch_invariant"_a, "out"_a.none(), "stream"_a.none(), "q4.moe with int32 ids and fp32 weights.");
  m.def("_grouped", &grouped, "x"_a, "experts"_a, "expert_ids"_a.none(), "offsets"_a.none(), "activation"_a, "alpha"_a,
        "limit"_a, "batch_invariant"_a, "out"_a.none(), "stream"_a.none(), "q4.grouped_matmul with int32 vectors.");
}

}  // namespace q4::python
