// LoraAdapters: checks tensors and hands them to the backend's table as floats.
#include "runtime/lora.hpp"

#include <cmath>
#include <cstring>

#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/matrix.hpp"
#include "runtime/runtime.hpp"

namespace q4 {
namespace {

/// A tensor's elements, wherever it is.
std::vector<float> floats(const char* call, const char* name, const TensorView& t, DeviceBackend& device) {
  const auto size = size_of(t.dtype);
  const bool there = t.device && !traits_of(*t.device).host_addressable;
  check(!there || *t.device == device.info().device, "{}: {} is on {}; it must be on the host or on {}: copy it", call,
        name, t.device ? t.device->str() : "cpu", device.info().device.str());
  if (there)
    if (const auto reached = device.reachable(t.data); !reached)
      fail(ErrorCode::kInvalidArgument, "{}: {} = {} is said to be on {} and is {}", call, name, t.data,
           device.info().device.str(), reached.reason());
  const auto row = static_cast<std::size_t>(t.cols) * size;
  const auto stride = static_cast<std::size_t>(t.row_stride < 0 ? t.cols : t.row_stride) * size;
  std::vector<std::uint8_t> raw(row * static_cast<std::size_t>(t.rows));
  const auto* from = static_cast<const std::uint8_t*>(t.data);
  const bool contiguous = stride == row;
  const std::size_t pieces = contiguous ? 1 : static_cast<std::size_t>(t.rows), piece = raw.size() / pieces;
  for (std::size_t i = 0; i < pieces; ++i) {
    if (there)
      device.copy(raw.data() + i * piece, from + i * stride, piece, CopyKind::kToHost);
    else
      std::memcpy(raw.data() + i * piece, from + i * stride, piece);
  }
  std::vector<float> values(raw.size() / size);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    if (size == 4)
      std::memcpy(&values[i], raw.data() + 4 * i, 4);
    else
      std::memcpy(&bits, raw.data() + 2 * i, 2);
    if (t.dtype == DType::kF16) values[i] = float_from_half(bits);
    if (t.dtype == DType::kBF16) values[i] = float_from_bf16(bits);
  }
  return values;
}

void check_view(const char* call, const char* name, const TensorView& t) {
  check(t.dtype == DType::kF16 || t.dtype == DType::kBF16 || t.dtype == DType::kF32,
        "{}: {} has dtype {}; it must be fp16, bf16 or fp32: convert it first", call, name, to_string(t.dtype));
  check(t.data != nullptr, "{}: {} has null data; pass its memory", call, name);
  check(reinterpret_cast<std::uintptr_t>(t.data) % size_of(t.dtype) == 0,
        "{}: {} = {} is not aligned to its {} bytes an element: copy it", call, name, t.data, size_of(t.dtype));
  check(t.row_stride == -1 || (t.row_stride >= t.cols && t.row_stride <= INT32_MAX),
        "{}: {} has row stride {}; it must be -1 (contiguous) or in [its columns = {}, {}]", call, name, t.row_stride,
        t.cols, INT32_MAX);
}

LoraAdapters::Impl& at(const std::shared_ptr<LoraAdapters::Impl>& impl, const char* call, std::int64_t index) {
  check(impl != nullptr, "{}: the table is empty (default-constructed or moved from); construct it from a matrix",
        call);
  const auto adapters = impl->table->shape.adapters;
  check(index >= 0 && index < adapters, "{}: index = {} is outside [0, adapters = {}): make a larger table", call,
        index, adapters);
  return *impl;
}

const AdapterTable& table(const std::shared_ptr<LoraAdapters::Impl>& impl, const char* call) {
  check(impl != nullptr, "{}: the table is empty (default-constructed or moved from); construct it from a matrix",
        call);
  return *impl->table;
}

}  // namespace

LoraAdapters::LoraAdapters(const Runtime& runtime, const QuantizedMatrix& matrix, const LoraOptions& options) {
  constexpr const char* kCall = "LoraAdapters";
  constexpr std::int64_t kMostAdapters = 65536, kMostRank = 256;
  const auto& m = require(matrix, kCall);
  check(options.adapters >= 1 && options.adapters <= kMostAdapters, "{}: adapters = {}; it must be in [1, {}]", kCall,
        options.adapters, kMostAdapters);
  check(options.max_rank >= 1 && options.max_rank <= kMostRank, "{}: max_rank = {}; it must be in [1, {}]", kCall,
        options.max_rank, kMostRank);
  check(options.type == DType::kF16 || options.type == DType::kBF16 ||
            (m.device->traits().fp32_activations && options.type == DType::kF32),
        "{}: type is {}; it must be fp16, bf16 or (on the CPU) fp32, as the activations are", kCall,
        to_string(options.type));
  impl_ = std::make_shared<Impl>();
  impl_->runtime = runtime, impl_->device = m.device;
  impl_->table = m.device->make_adapters({m.k, m.n, m.shape.gate_up, options.adapters, options.max_rank, options.type});
  impl_->ranks.resize(static_cast<std::size_t>(options.adapters));
}

void LoraAdapters::set(std::int64_t index, const LoraTensors& t) {
  constexpr const char* kCall = "LoraAdapters::set";
  Impl& impl = at(impl_, kCall, index);
  const AdaptersShape& shape = impl.table->shape;
  check_view(kCall, "a", t.a), check_view(kCall, "b", t.b);
  const std::int64_t rank = t.a.rows;
  check(rank >= 1 && rank <= shape.max_rank, "{}: the rank is {} (rows of a); it must be in [1, max_rank = {}]", kCall,
        rank, shape.max_rank);
  check(t.a.cols == shape.k, "{}: a has shape [{}, {}]; it must be [rank, k = {}]", kCall, t.a.rows, t.a.cols, shape.k);
  check(t.b.rows == shape.n && t.b.cols == rank, "{}: b has shape [{}, {}]; with a of rank {} it must be [n = {}, {}]",
        kCall, t.b.rows, t.b.cols, rank, shape.n, rank);
  check(std::isfinite(t.scale), "{}: scale = {}; it must be finite", kCall, t.scale);
  impl.table->set(index, rank, floats(kCall, "a", t.a, *impl.device), floats(kCall, "b", t.b, *impl.device), t.scale);
  impl.ranks[static_cast<std::size_t>(index)] = rank;
}

void LoraAdapters::remove(std::int64_t index) {
  Impl& impl = at(impl_, "LoraAdapters::remove", index);
  impl.table->remove(index);
  impl.ranks[static_cast<std::size_t>(index)] = 0;
}

std::int64_t LoraAdapters::rank(std::int64_t index) const {
  return at(impl_, "LoraAdapters::rank", index).ranks[static_cast<std::size_t>(index)];
}
std::int64_t LoraAdapters::adapters() const { return table(impl_, "LoraAdapters::adapters").shape.adapters; }
std::int64_t LoraAdapters::max_rank() const { return table(impl_, "LoraAdapters::max_rank").shape.max_rank; }
std::size_t LoraAdapters::bytes() const { return table(impl_, "LoraAdapters::bytes").bytes(); }

}  // namespace q4
