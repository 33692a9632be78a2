// Array: what a Python object says of its memory, by torch's attributes or by DLPack. No framework is imported.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <optional>
#include <q4/q4.hpp>
#include <string>

namespace q4::python {

namespace nb = nanobind;

/// A borrowed array: valid as long as the Python object that it was read from (`keep` holds what DLPack exported).
struct Array {
  const char* name = "";  ///< of the argument, for texts
  void* data = nullptr;
  DType dtype = DType::kF16;
  Device device;
  int dims = 0;
  std::array<std::int64_t, 8> shape{}, stride{};  ///< strides in elements
  bool writable = true;
  bool torch = false;  ///< a torch.Tensor
  bool meta = false;   ///< without memory (torch's meta device)
  nb::object keep;

  std::int64_t size() const;
  std::string shape_text() const;  ///< "[2, 64]"
};

/// Reads an argument. TypeError when it is no array; kInvalidArgument for an element type that q4 has not.
Array read_array(const char* call, const char* name, nb::handle object);

/// An array of any rank as rows of its last dimension; one dimension is one row. kInvalidArgument where the rows are
/// not evenly spaced or their elements not adjacent.
struct RowsOf {
  std::int64_t rows, cols, stride;  ///< stride in elements; 0: contiguous
};
RowsOf rows_of(const char* call, const Array& array);

/// The array as the library wants tensors of a matrix. Any rank up to 2; a vector is one row.
TensorView view_of(const char* call, const Array& array);

/// torch, if this process has imported it; null otherwise.
nb::handle loaded_torch();
/// Whether torch needs to see what happens to this tensor: gradients, forward-mode derivatives, tracing, dispatch modes
/// (fake tensors, export), torch.func and subclasses. Then only an operator of torch's may compute with it. Cheap; no
/// array: false.
bool watched(nb::handle object);
/// Whether torch would compute a gradient of this tensor.
bool wants_gradient(nb::handle object);
/// The stream that is current in the array's framework (torch, CuPy); null is the device's default stream.
void* current_stream(const Array& array);
/// torch's current stream for a device, null if torch is not loaded; cheap enough for every call.
void* torch_stream(Device device);
/// Waits until the work that torch has queued on its current stream is done, so that tensors can be read.
void finish_torch_stream(Device device);

/// A device from what Python calls one: None (empty), an int (negative: the CPU), "cuda:0", torch.device, torch's
/// "cuda" (its current device).
std::optional<Device> read_device(const char* call, nb::handle object);

/// A new array of x's framework, dtype and device.
nb::object empty_like(const char* call, nb::handle x, const Array& array, const std::vector<std::int64_t>& shape);

}  // namespace q4::python
