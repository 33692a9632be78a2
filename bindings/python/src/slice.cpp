// q4.Slice; matrices loaded in slices or several as one.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;
using MatrixPtr = std::shared_ptr<Matrix>;
using Parts = std::vector<std::int64_t>;

/// The arrays that the tensors of a call refer to, and their names for messages.
struct Given {
  std::vector<Array> arrays;
  Device device;

  TensorView view(const char* call, nb::dict part, const char* name) {
    check(part.contains(name), "{}: a matrix has no '{}'; it must have qweight, qzeros and scales", call, name);
    arrays.push_back(read_array(call, name, part[name]));
    return view_of(call, arrays.back());
  }
  std::optional<TensorView> optional(const char* call, nb::dict part, const char* name) {
    if (!part.contains(name) || nb::handle(part[name]).is_none()) return std::nullopt;
    arrays.push_back(read_array(call, name, part[name]));
    if (arrays.back().meta || arrays.back().size() == 0) return std::nullopt;
    return view_of(call, arrays.back());
  }
};

template <class Tensors>
Tensors tensors_of(const char* call, Given& given, nb::dict part) {
  Tensors t;
  for (const auto& [key, unused] : part) {
    const std::string name = word(call, "a key of a matrix", key);
    constexpr bool gptq = std::is_same_v<Tensors, GptqTensors>;
    check(name == "qweight" || name == "qzeros" || name == "scales" || name == "bias" || name == "group_size" ||
              (gptq && (name == "g_idx" || name == "zeros")),
          "{}: a matrix has '{}'; it may have qweight, qzeros, scales, bias, group_size{}", call, name,
          gptq ? ", g_idx, zeros" : "");
  }
  t.qweight = given.view(call, part, "qweight");
  given.device = given.arrays.back().device;
  t.qzeros = given.view(call, part, "qzeros");
  t.scales = given.view(call, part, "scales");
  t.bias = given.optional(call, part, "bias");
  if (part.contains("group_size")) t.group_size = nb::cast<std::int64_t>(part["group_size"]);
  if constexpr (std::is_same_v<Tensors, GptqTensors>) {
    t.g_idx = given.optional(call, part, "g_idx");
    if (part.contains("zeros")) t.zeros = zero_format(call, word(call, "zeros", part["zeros"]));
  }
  return t;
}

template <class Tensors, class Fuse>
MatrixPtr fuse(const char* call, const std::vector<nb::dict>& parts, const std::optional<Slice>& slice,
               nb::handle device, bool gate_up, const Fuse& make) {
  Given given;
  std::vector<Tensors> tensors;
  for (const nb::dict& part : parts) tensors.push_back(tensors_of<Tensors>(call, given, part));
  MatrixOptions options;
  options.gate_up = gate_up;
  if (slice) options.slice = *slice;
  const Device chosen = read_device(call, device).value_or(given.device);
  if (!parts.empty()) finish_torch_stream(given.device);
  const GilRelease release;
  return std::make_shared<Matrix>(make(runtime(), chosen, tensors, options));
}

MatrixPtr fuse_gptq(const std::vector<nb::dict>& parts, const std::optional<Slice>& slice, nb::handle device,
                    bool gate_up) {
  return fuse<GptqTensors>("fuse_gptq", parts, slice, device, gate_up, &QuantizedMatrix::fuse_gptq);
}

MatrixPtr fuse_awq(const std::vector<nb::dict>& parts, const std::optional<Slice>& slice, nb::handle device,
                   bool gate_up) {
  return fuse<AwqTensors>("fuse_awq", parts, slice, device, gate_up, &QuantizedMatrix::fuse_awq);
}

std::vector<std::string> names_of(const char* call, nb::handle names) {
  std::vector<std::string> list;
  if (PyUnicode_Check(names.ptr())) return {nb::cast<std::string>(names)};
  if (!nb::try_cast(names, list))
    throw nb::type_error(
        fmt::format("{}: name = {}; it must be a str or a list of them", call, nb::repr(names).c_str()).c_str());
  return list;
}

LoadOptions options_of(const char* call, const std::optional<std::string>& zeros, const std::optional<Slice>& slice) {
  LoadOptions options;
  if (zeros) options.zeros = zero_format(call, *zeros);
  if (slice) options.slice = *slice;
  return options;
}

Device device_or_best(const char* call, nb::handle device) {
  const auto named = read_device(call, device);
  return named ? *named : runtime().best_device();
}

MatrixPtr load(const Checkpoint& checkpoint, nb::handle name, nb::handle device,
               const std::optional<std::string>& zeros, const std::optional<Slice>& slice, bool gate_up) {
  constexpr const char* kCall = "Checkpoint.load";
  const auto names = names_of(kCall, name);
  LoadOptions options = options_of(kCall, zeros, slice);
  options.gate_up = gate_up;
  const Device on = device_or_best(kCall, device);
  const GilRelease release;
  return std::make_shared<Matrix>(checkpoint.load(runtime(), on, names, options));
}

std::vector<MatrixPtr> shared(std::vector<QuantizedMatrix> matrices) {
  std::vector<MatrixPtr> list;
  for (auto& matrix : matrices) list.push_back(std::make_shared<Matrix>(std::move(matrix)));
  return list;
}

std::vector<MatrixPtr> load_together(const Checkpoint& checkpoint, const std::vector<std::string>& names,
                                     nb::handle device, const std::optional<std::string>& zeros,
                                     const std::optional<Slice>& slice) {
  constexpr const char* kCall = "Checkpoint.load_together";
  const LoadOptions options = options_of(kCall, zeros, slice);
  const Device on = device_or_best(kCall, device);
  const GilRelease release;
  return shared(checkpoint.load_together(runtime(), on, names, options));
}

std::vector<MatrixPtr> load_all(const Checkpoint& checkpoint, nb::handle device,
                                const std::optional<std::vector<std::string>>& names,
                                const std::optional<std::string>& zeros, const std::optional<Slice>& slice,
                                nb::object progress) {
  constexpr const char* kCall = "Checkpoint.load_all";
  LoadOptions options = options_of(kCall, zeros, slice);
  const Device on = device_or_best(kCall, device);
  std::optional<nb::python_error> raised;
  if (!progress.is_none())
    options.progress = [&](std::uint64_t done, std::uint64_t total) {
      const GilAcquire gil;
      try {
        progress(done, total);
      } catch (nb::python_error& error) {
        raised.emplace(std::move(error));
        fail(ErrorCode::kInternal, "progress raised");  // ends the call; `raised` is what the caller sees
      }
    };
  std::vector<MatrixPtr> list;
  try {
    const GilRelease release;
    if (!names || !names->empty())
      list = shared(checkpoint.load_all(runtime(), on, names.value_or(std::vector<std::string>()), options));
  } catch (const Error&) {
    if (raised) throw std::move(*raised);
    throw;
  }
  return list;
}

Slice with(Slice slice, std::int64_t unit, const Parts& parts, bool share, bool pad) {
  slice.unit = unit, slice.parts = parts, slice.share = share, slice.pad = pad;
  return slice;
}

std::string describe(const Slice& s) {
  constexpr const char* kNames[] = {"whole", "columns", "rows"};
  std::string more = s.unit == 8 ? "" : fmt::format(", unit={}", s.unit);
  if (!s.parts.empty()) more += fmt::format(", parts=[{}]", fmt::join(s.parts, ", "));
  return fmt::format("q4.Slice.{}({}, {}{}{}{})", kNames[static_cast<int>(s.along) % 3], s.rank, s.world, more,
                     s.share ? ", share=True" : "", s.pad ? ", pad=True" : "");
}

}  // namespace

void bind_slice(nb::module_& m) {
  nb::class_<Slice>(m, "Slice", "What one of several ranks holds of a matrix: some of its columns, or of its rows.")
      .def_static(
          "columns",
          [](int rank, int world, std::int64_t unit, const Parts& parts, bool share, bool pad) {
            return with(Slice::columns(rank, world), unit, parts, share, pad);
          },
          "rank"_a, "world"_a, nb::kw_only(), "unit"_a = 8, "parts"_a = Parts(), "share"_a = false, "pad"_a = false,
          "Columns (out_features) and their bias, in units of `unit` that stay together. parts: columns of each matrix "
          "that was fused into one; each is divided by itself. share: ranks share units where there are too few. pad: "
          "zero columns where units do not divide.")
      .def_static(
          "rows",
          [](int rank, int world, std::int64_t unit, bool pad) {
            return with(Slice::rows(rank, world), unit, {}, false, pad);
          },
          "rank"_a, "world"_a, nb::kw_only(), "unit"_a = 8, "pad"_a = false,
          "Rows (in_features); the results of all ranks add up, and rank 0 has the bias.")
      .def_static(
          "heads", &Slice::heads, "rank"_a, "world"_a, "head"_a, "fused"_a = Parts(),
          "Columns by whole heads of `head` columns, which ranks may share. fused: heads of each matrix that was "
          "fused into one.")
      .def_ro("rank", &Slice::rank)
      .def_ro("world", &Slice::world)
      .def("__repr__", &describe);
  m.def("fuse_gptq", &fuse_gptq, "parts"_a, nb::kw_only(), "slice"_a = nb::none(), "device"_a = nb::none(),
        "gate_up"_a = false,
        "One matrix of several of one input, their columns side by side: a list of dicts with the arguments of "
        "Matrix.from_gptq. Unsupported where their groups or g_idx differ. slice: of each. gate_up: they are the gates "
        "and the ups, for plans whose activation multiplies them.");
  m.def("fuse_awq", &fuse_awq, "parts"_a, nb::kw_only(), "slice"_a = nb::none(), "device"_a = nb::none(),
        "gate_up"_a = false, "The same of matrices as Matrix.from_awq takes them.");
}

void bind_loads(nb::class_<Checkpoint>& checkpoint) {
  checkpoint
      .def(
          "load", &load, "name"_a, "device"_a = nb::none(), nb::kw_only(), "zeros"_a = nb::none(),
          "slice"_a = nb::none(), "gate_up"_a = false,
          "Loads a matrix to a device (None: the best one). name: also a list of matrices of one input, which become "
          "one, their columns side by side; Unsupported where their groups, g_idx or packings differ. zeros: overrides "
          "the checkpoint's claim. slice: a q4.Slice, of which alone the bytes are read. "
          "gate_up: gates, then ups, for plans whose activation multiplies them.")
      .def("load_together", &load_together, "names"_a, "device"_a = nb::none(), nb::kw_only(), "zeros"_a = nb::none(),
           "slice"_a = nb::none(),
           "A list with the one matrix that load(names) gives, or, where they cannot be one, each of them.")
      .def("load_all", &load_all, "device"_a = nb::none(), nb::kw_only(), "names"_a = nb::none(),
           "zeros"_a = nb::none(), "slice"_a = nb::none(), "progress"_a = nb::none(),
           "A list of a matrix for each name; None: for each of .matrices that can be loaded. progress(done, total): "
           "bytes, before the first and after each.");
}

}  // namespace q4::python
