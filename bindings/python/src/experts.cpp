// q4.Experts.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <list>

#include "bindings/python/src/experts.hpp"
#include "bindings/python/src/module.hpp"
#include "runtime/backends/traits.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

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
  if (!traits_of(array.device).host_addressable) view.device = array.device;
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
}

}  // namespace q4::python
