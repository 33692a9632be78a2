// q4.LoraAdapters.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "bindings/python/src/arguments.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

struct Adapters {
  std::shared_ptr<Matrix> matrix;
  LoraAdapters table;
  DType type;
};

void set(Adapters& self, std::int64_t index, nb::handle a, nb::handle b, float scale) {
  constexpr const char* kCall = "LoraAdapters.set";
  const Array from_a = read_array(kCall, "a", a), from_b = read_array(kCall, "b", b);
  for (const Array* array : {&from_a, &from_b})
    check(array->dims == 2 && !array->meta, "{}: {} has shape {}{}; it must have two dimensions and memory", kCall,
          array->name, array->shape_text(), array->meta ? " on the meta device" : "");
  const LoraTensors tensors{view_of(kCall, from_a), view_of(kCall, from_b), scale};
  finish_torch_stream(self.matrix->device);
  const GilRelease release;
  self.table.set(index, tensors);
}

}  // namespace

LoraAdapters adapters_of(const char* call, nb::handle adapters) {
  Adapters* found = nullptr;
  if (!nb::try_cast(adapters, found) || !found)
    throw nb::type_error(
        fmt::format("{}: adapters is {}; it must be a q4.LoraAdapters", call, nb::str(adapters.type()).c_str())
            .c_str());
  return found->table;
}

const std::int32_t* adapter_numbers(const char* call, const Array& numbers, const Array& out, std::int64_t m) {
  check(numbers.dtype == DType::kI32, "{}: adapter_of_row has dtype {}; it must be int32", call,
        to_string(numbers.dtype));
  check(!numbers.meta && numbers.device == out.device, "{}: adapter_of_row is on {}, x on {}: move it there", call,
        numbers.meta ? "meta" : numbers.device.str(), out.device.str());
  check(numbers.dims == 1 && numbers.size() == m && (m <= 1 || numbers.stride[0] == 1),
        "{}: adapter_of_row has shape {}; it must be contiguous, with the {} rows of x", call, numbers.shape_text(), m);
  return static_cast<const std::int32_t*>(numbers.data);
}

void bind_lora(nb::module_& m) {
  nb::class_<Adapters>(m, "LoraAdapters",
                       "A table of LoRA adapters of one matrix, on its device, for matmul(adapters=, adapter_of_row=). "
                       "Captured graphs read it when they are replayed.")
      .def(
          "__init__",
          [](Adapters* self, const std::shared_ptr<Matrix>& matrix, std::int64_t adapters, std::int64_t max_rank,
             nb::handle dtype) {
            LoraOptions options;
            options.adapters = adapters, options.max_rank = max_rank;
            options.type = activation("LoraAdapters", dtype);
            new (self) Adapters{matrix, LoraAdapters(runtime(), matrix->weights, options), options.type};
          },
          "W"_a, nb::kw_only(), "adapters"_a = 8, "max_rank"_a = 64, "dtype"_a = "float16",
          "adapters: places of the table. max_rank: of an adapter, at most 256. dtype: of x, as a str or a dtype of "
          "NumPy or torch.")
      .def("set", &set, "index"_a, "a"_a.none(), "b"_a.none(), "scale"_a = 1.0f,
           "Adds or replaces adapter `index`: x @ W + scale (x @ a.T) @ b.T for a [rank, k] and b [n, rank], as PEFT "
           "has them, in float16, bfloat16 or float32. Read during the call, which waits for the device.")
      .def(
          "remove",
          [](Adapters& self, std::int64_t index) {
            const GilRelease release;
            self.table.remove(index);
          },
          "index"_a, "Its rows then get what x @ W gives. Waits for the device.")
      .def(
          "rank", [](const Adapters& self, std::int64_t index) { return self.table.rank(index); }, "index"_a,
          "0: there is none.")
      .def("__len__", [](const Adapters& self) { return self.table.adapters(); })
      .def_prop_ro("max_rank", [](const Adapters& self) { return self.table.max_rank(); })
      .def_prop_ro("dtype", [](const Adapters& self) { return std::string(to_string(self.type)); })
      .def_prop_ro(
          "nbytes", [](const Adapters& self) { return self.table.bytes(); }, "Device memory of the adapters.");
}

}  // namespace q4::python
