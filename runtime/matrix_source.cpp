// Checks tensors and brings the small ones to the host.
#include "runtime/matrix_source.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/group_index.hpp"

namespace q4 {
namespace {

constexpr std::int64_t kLargest = INT32_MAX;

/// The checks that every tensor gets. `call` is "QuantizedMatrix::from_gptq".
class Reader {
 public:
  Reader(const char* call, std::shared_ptr<DeviceBackend> device) : call_(call), device_(std::move(device)) {}

  void check_view(const TensorView& view, const char* name, std::initializer_list<DType> types) const {
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
          "{}: {} = {} is not aligned to its {} bytes an element: copy it", call_, name, view.data,
          size_of(view.dtype));
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

  bool on_device(const TensorView& view) const { return view.device && !traits_of(*view.device).host_addressable; }

  /// Contiguous bytes on the host.
  std::vector<std::uint8_t> bytes(const TensorView& view) const {
    const auto size = size_of(view.dtype), row = static_cast<std::size_t>(view.cols) * size;
    const auto stride = static_cast<std::size_t>(view.row_stride < 0 ? view.cols : view.row_stride) * size;
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

  /// Elements as floats, from fp16, bf16 or fp32.
  std::vector<float> floats(const TensorView& view) const {
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

  /// Contiguous in the memory of the device.
  bool stays(const TensorView& view) const {
    return on_device(view) && (view.row_stride < 0 || view.row_stride == view.cols);
  }

  /// qweight, contiguous, where the backend wants it: in its own memory if it is there, else on the host.
  void place_codes(CheckedSource& to, const TensorView& view) const {
    const bool contiguous = view.row_stride < 0 || view.row_stride == view.cols;
    to.source.qweight = static_cast<const std::uint32_t*>(view.data);
    to.source.qweight_on_device = on_device(view);
    if (contiguous) return;
    if (!on_device(view)) {
      to.host_codes = bytes(view);
      to.source.qweight = reinterpret_cast<const std::uint32_t*>(to.host_codes.data());
      return;
    }
    const auto row = static_cast<std::size_t>(view.cols) * 4, stride = static_cast<std::size_t>(view.row_stride) * 4;
    to.device_codes = Buffer(device_, row * static_cast<std::size_t>(view.rows));
    auto* const memory = to.device_codes.as<std::uint8_t>();
    for (std::size_t r = 0; r < static_cast<std::size_t>(view.rows); ++r)
      device_->copy(memory + r * row, static_cast<const std::uint8_t*>(view.data) + r * stride, row,
                    CopyKind::kOnDevice);
    to.source.qweight = reinterpret_cast<const std::uint32_t*>(memory);
  }

  const char* call() const { return call_; }

 private:
  const char* call_;
  std::shared_ptr<DeviceBackend> device_;
};

/// `plain` receives one that means no act-order, as it is.
GroupIndex read_g_idx(const Reader& reader, const TensorView& view, const MatrixSource& s,
                      std::vector<std::int32_t>& plain) {
  reader.check_view(view, "g_idx", {DType::kI32, DType::kI64});
  check(view.rows * view.cols == s.k && (view.rows == 1 || view.cols == 1),
        "{}: g_idx has shape [{}, {}]; it must have k = {} elements", reader.call(), view.rows, view.cols, s.k);
  const auto raw = reader.bytes(view);
  GroupIndex index = read_group_index(reader.call(), view.dtype, raw.data(), s.k, s.group_size, s.groups);
  if (index.rows.empty()) {
    plain.resize(static_cast<std::size_t>(s.k));
    for (std::size_t r = 0; r < plain.size(); ++r) std::memcpy(&plain[r], raw.data() + r * size_of(view.dtype), 4);
  }
  return index;
}

/// To fp16, which the kernels use. fp16 scales are taken as they are, NaN included. Others are rounded: with random
/// fractions that is an error of 1.4e-4 to 2.8e-4 of the weights; more means that their range is not fp16's.
void convert_scales(const Reader& reader, CheckedSource& to, const TensorView& scales) {
  constexpr double kMostRounded = 3e-4;
  if (scales.dtype == DType::kF16) {
    const auto raw = reader.bytes(scales);
    to.source.scales.resize(raw.size() / 2);
    if (!raw.empty()) std::memcpy(to.source.scales.data(), raw.data(), raw.size());
    return;
  }
  const std::vector<float> wide = reader.floats(scales);
  to.source.scales.reserve(wide.size());
  double difference = 0, norm = 0;
  float most = 0;
  for (const float scale : wide) {
    const std::uint16_t half = half_from_float(scale);
    to.source.scales.push_back(half);
    if (!std::isfinite(scale)) continue;
    difference += std::pow(double{float_from_half(half)} - double{scale}, 2);  // infinite where fp16 overflows
    norm += std::pow(double{scale}, 2);
    most = std::max(most, std::fabs(scale));
  }
  if (difference == 0) return;
  const double error = std::sqrt(difference / norm);
  if (!(error <= kMostRounded)) {
    fail(ErrorCode::kUnsupported,
         "{}: scales in {} (the largest is {:.3g}) change the weights by {:.2g} of their size when they are rounded to "
         "fp16, which the kernels use and which holds 6e-5 to 65504 in full; at most {:.0g} is accepted: multiply the "
         "scales by a power of two and divide the layer's input by it",
         reader.call(), to_string(scales.dtype), most, error, kMostRounded);
  }
  to.notes.push_back(fmt::format("scales in {} are rounded to fp16, which the kernels use", to_string(scales.dtype)));
}

/// Shapes, groups, scales and bias: what both formats share. k and n are already set.
void check_common(const Reader& reader, CheckedSource& to, const TensorView& qzeros, const TensorView& scales,
                  const std::optional<TensorView>& bias, std::int64_t group_size,
                  const std::optional<TensorView>& g_idx) {
  auto& s = to.source;
  const char* call = reader.call();
  check(s.k >= 8 && s.n >= 8, "{}: W is {} x {} (k x n); both must be at least 8", call, s.k, s.n);
  check(s.k % 8 == 0 && s.k <= kLargest, "{}: k = {} must be a multiple of 8 of at most {}: pad W and x with zero rows",
        call, s.k, kLargest);
  check(s.n % 8 == 0 && s.n <= kLargest, "{}: n = {} must be a multiple of 8 of at most {}: pad W with zero columns",
        call, s.n, kLargest);
  s.groups = scales.rows;
  check(s.groups >= 1 && scales.cols == s.n, "{}: scales has shape [{}, {}]; it must be [groups, n = {}]", call,
        scales.rows, scales.cols, s.n);
  check(qzeros.rows == s.groups && qzeros.cols == s.n / 8,
        "{}: qzeros has shape [{}, {}]; with {} groups of scales and n = {} it must be [{}, {}]", call, qzeros.rows,
        qzeros.cols, s.groups, s.n, s.groups, s.n / 8);
  check(group_size >= -1 && group_size <= kLargest,
        "{}: group_size = {}; it must be -1 (one group), 0 (derive) or a positive multiple of 8", call, group_size);
  s.group_size = group_size == -1 ? s.k : group_size == 0 ? (s.k + s.groups - 1) / s.groups : group_size;
  if (g_idx && g_idx->rows * g_idx->cols > 0) {
    GroupIndex index = read_g_idx(reader, *g_idx, s, to.plain_g_idx);
    s.g_idx = std::move(index.rows);
    s.act_order = !s.g_idx.empty();
    if (!index.note.empty()) to.notes.push_back(std::move(index.note));
  }
  if (!s.act_order) {
    check(group_size != -1 || s.groups == 1, "{}: group_size = -1 means one group, but scales has {} rows", call,
          s.groups);
    check(s.group_size % 8 == 0,
          "{}: group size {} (k = {}, {} groups) is no multiple of 8; pass group_size if the last group is shorter",
          call, s.group_size, s.k, s.groups);
    check((s.k + s.group_size - 1) / s.group_size == s.groups,
          "{}: k = {} rows in groups of {} make {} groups, but scales has {} rows", call, s.k, s.group_size,
          (s.k + s.group_size - 1) / s.group_size, s.groups);
  }
  // Scales and zeros of a matrix without act-order may stay on the device that they are packed on.
  to.small_on_device = !s.act_order && scales.dtype == DType::kF16 && reader.stays(scales) && reader.stays(qzeros);
  if (to.small_on_device)
    s.device_scales = static_cast<const std::uint16_t*>(scales.data),
    s.device_qzeros = static_cast<const std::uint32_t*>(qzeros.data);
  else
    convert_scales(reader, to, scales);
  if (bias && bias->rows * bias->cols > 0) {
    reader.check_view(*bias, "bias", {DType::kF16, DType::kBF16, DType::kF32});
    check(bias->rows * bias->cols == s.n && (bias->rows == 1 || bias->cols == 1),
          "{}: bias has shape [{}, {}]; it must have n = {} elements", call, bias->rows, bias->cols, s.n);
    s.bias = reader.floats(*bias);
    s.has_bias = true;
  }
}

/// Each stored zero, a byte each, unpacked per nibble (a word-wise +0x11111111 would carry).
std::vector<std::uint8_t> unpack_zeros(const Reader& reader, const TensorView& qzeros, bool awq) {
  const auto raw = reader.bytes(qzeros);
  std::vector<std::uint8_t> zeros;
  zeros.reserve(raw.size() * 2);
  for (std::size_t w = 0; w < raw.size() / 4; ++w) {
    std::uint32_t word;
    std::memcpy(&word, raw.data() + 4 * w, 4);
    for (int c = 0; c < 8; ++c) zeros.push_back(word >> (4 * (awq ? (c & 1) * 4 + c / 2 : c)) & 15u);
  }
  return zeros;
}

}  // namespace

CheckedSource check_gptq(const std::shared_ptr<DeviceBackend>& device, const GptqTensors& t, const char* call) {
  const Reader reader(call, device);
  CheckedSource to;
  auto& s = to.source;
  reader.check_view(t.qweight, "qweight", {DType::kI32});
  reader.check_view(t.qzeros, "qzeros", {DType::kI32});
  reader.check_view(t.scales, "scales", {DType::kF16, DType::kBF16, DType::kF32});
  s.k = t.qweight.rows * 8, s.n = t.qweight.cols;
  check_common(reader, to, t.qzeros, t.scales, t.bias, t.group_size, t.g_idx);
  const bool read = !to.small_on_device || t.zeros == ZeroFormat::kAuto;
  if (read) s.zeros = unpack_zeros(reader, t.qzeros, false);
  check(t.zeros <= ZeroFormat::kV2, "{}: zeros = {} is no value of ZeroFormat", reader.call(),
        static_cast<int>(t.zeros));
  to.zeros = t.zeros;
  if (t.zeros == ZeroFormat::kAuto) {
    to.zeros_detected = std::all_of(s.zeros.begin(), s.zeros.end(), [](auto z) { return z == 8; });
    to.zeros = to.zeros_detected ? ZeroFormat::kV2 : ZeroFormat::kV1;
  }
  s.zero_add = to.zeros == ZeroFormat::kV1 ? 1 : 0;
  if (to.zeros == ZeroFormat::kV1)
    for (auto& zero : s.zeros) zero = (zero + 1) & 15;
  reader.place_codes(to, t.qweight);
  s.order = arrange(s, s.g_idx);
  return to;
}

CheckedSource check_awq(const std::shared_ptr<DeviceBackend>& device, const AwqTensors& t, const char* call) {
  const Reader reader(call, device);
  CheckedSource to;
  auto& s = to.source;
  reader.check_view(t.qweight, "qweight", {DType::kI32});
  reader.check_view(t.qzeros, "qzeros", {DType::kI32});
  reader.check_view(t.scales, "scales", {DType::kF16, DType::kBF16, DType::kF32});
  s.awq = true;
  s.k = t.qweight.rows, s.n = t.qweight.cols * 8;
  check_common(reader, to, t.qzeros, t.scales, t.bias, t.group_size, std::nullopt);
  if (!to.small_on_device) s.zeros = unpack_zeros(reader, t.qzeros, true);
  to.zeros = ZeroFormat::kV2;
  reader.place_codes(to, t.qweight);
  s.order = arrange(s, {});
  return to;
}

}  // namespace q4
