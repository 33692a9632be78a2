// Checks views, and copies what is on a device.
#include "runtime/tensor_reader.hpp"

#include <cstring>

#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"

namespace q4 {
namespace {

constexpr std::int64_t kLargest = INT32_MAX;

}  // namespace

void TensorReader::check_view(const TensorView& view, const char* name, std::initializer_list<DType> types) const {
  std::string accepted;
  bool known = false;
  for (const auto type : types) {
    known |= type == view.dtype;
    accepted += (accepted.empty() ? "" : " or ") + std::string(to_string(type));
  }
  check(known, "{}: {} has dtype {}; it must be {}: convert it first", call_, name, to_string(view.dtype), accepted);
  check(view.rows >= 0 && view.cols >= 0 && view.rows <= kLargest && view.cols <= kLargest,
        "{}: {} has shape [{}, {}]; extents must be in [0, {}]", call_, name, view.rows, view.cols, kLargest);
  check(view.data || view.rows * view.cols == 0, "{}: {} has null data and shape [{}, {}]; pass its memory", call_,
        name, view.rows, view.cols);
  check(reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.dtype) == 0,
        "{}: {} = {} is not aligned to its {} bytes an element: copy it", call_, name, view.data, size_of(view.dtype));
  check(view.row_stride == -1 || (view.row_stride >= view.cols && view.row_stride <= kLargest),
        "{}: {} has row stride {} elements; it must be -1 (contiguous) or in [its columns = {}, {}]", call_, name,
        view.row_stride, view.cols, kLargest);
  check(!on_device(view) || *view.device == device_->info().device,
        "{}: {} is on {}; it must be on the host or on {}: copy it", call_, name,
        view.device ? view.device->str() : "cpu", device_->info().device.str());
  if (!on_device(view) || !view.data) return;
  if (const auto reached = device_->reachable(view.data); !reached)
    fail(ErrorCode::kInvalidArgument, "{}: {} = {} is said to be on {} and is {}", call_, name, view.data,
         view.device->str(), reached.reason());
}

std::vector<std::uint8_t> TensorReader::bytes(const TensorView& view) const {
  const auto size = size_of(view.dtype), row = static_cast<std::size_t>(view.cols) * size;
  const auto stride = static_cast<std::size_t>(TensorReader::stride(view)) * size;
  std::vector<std::uint8_t> out(row * static_cast<std::size_t>(view.rows));
  const auto* from = static_cast<const std::uint8_t*>(view.data);
  const auto copy = [&](std::size_t to, std::size_t at, std::size_t count) {
    if (count == 0) return;
    if (on_device(view))
      device_->copy(out.data() + to, from + at, count, CopyKind::kToHost);
    else
      std::memcpy(out.data() + to, from + at, count);
  };
  if (stride == row)
    copy(0, 0, out.size());
  else
    for (std::size_t r = 0; r < static_cast<std::size_t>(view.rows); ++r) copy(r * row, r * stride, row);
  return out;
}

std::vector<float> TensorReader::floats(const TensorView& view) const {
  const auto raw = bytes(view);
  std::vector<float> out(raw.size() / size_of(view.dtype));
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t half = 0;
    if (view.dtype == DType::kF32)
      std::memcpy(&out[i], raw.data() + 4 * i, 4);
    else
      std::memcpy(&half, raw.data() + 2 * i, 2),
          out[i] = view.dtype == DType::kF16 ? float_from_half(half) : float_from_bf16(half);
  }
  return out;
}

HostTensor TensorReader::on_host(const TensorView& view) const {
  const auto size = static_cast<std::int64_t>(size_of(view.dtype));
  if (!on_device(view)) return {static_cast<const std::uint8_t*>(view.data), stride(view) * size, {}};
  HostTensor host{nullptr, view.cols * size, bytes(view)};
  host.data = host.copy.data();
  return host;
}

}  // namespace q4
