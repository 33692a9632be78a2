// Checked access to borrowed tensors, wherever they are.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <q4/matrix.hpp>
#include <string>
#include <utility>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// Whether a tensor is given and has elements, also before its extents are checked.
inline bool present(const std::optional<TensorView>& view) { return view && view->rows != 0 && view->cols != 0; }

/// A tensor's elements in host memory: where they are, or a copy of what is on a device.
struct HostTensor {
  const std::uint8_t* data = nullptr;
  std::int64_t row_bytes = 0;  ///< from one row to the next
  std::vector<std::uint8_t> copy;

  template <class Element>
  const Element* row(std::int64_t r) const {
    return reinterpret_cast<const Element*>(data + r * row_bytes);
  }
};

/// The checks that every tensor gets. `call`, such as "QuantizedMatrix::from_gptq", begins the texts.
class TensorReader {
 public:
  TensorReader(std::string call, std::shared_ptr<DeviceBackend> device)
      : call_(std::move(call)), device_(std::move(device)) {}

  void check_view(const TensorView& view, const char* name, std::initializer_list<DType> types) const;
  static bool on_device(const TensorView& view) { return view.device && !traits_of(*view.device).host_addressable; }
  static bool contiguous(const TensorView& view) { return view.row_stride < 0 || view.row_stride == view.cols; }
  static std::int64_t stride(const TensorView& view) { return view.row_stride < 0 ? view.cols : view.row_stride; }

  HostTensor on_host(const TensorView& view) const;
  std::vector<std::uint8_t> bytes(const TensorView& view) const;  ///< contiguous, on the host
  std::vector<float> floats(const TensorView& view) const;        ///< of fp16, bf16 or fp32

  const char* call() const { return call_.c_str(); }
  const std::shared_ptr<DeviceBackend>& device() const { return device_; }

 private:
  std::string call_;
  std::shared_ptr<DeviceBackend> device_;
};

}  // namespace q4
