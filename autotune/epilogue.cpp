// Makes adapters and residuals out of a workload's activations, and says what an epilogue gives.
#include "autotune/epilogue.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include "autotune/rig.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/choose/epilogue.hpp"

namespace q4::autotune {
namespace {

constexpr std::size_t kColdBytes = std::size_t{128} << 20;  // of all tables: more than twice the caches that there are
constexpr std::size_t kStep = 4099;                         // between the beginnings of two adapters' values

double activated(Activation a, double v) {
  switch (choose::kind_of(a)) {
    case kSilu:
      return v / (1 + std::exp(-v));
    case kGeluTanh:
      return v / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case kGeluErf:
      return v / 2 * std::erfc(-v / std::sqrt(2.0));
    case kRelu2:
      return v > 0 ? v * v : 0;
    default:
      return v;
  }
}

}  // namespace

std::string EpilogueChoice::text() const { return choose::to_text(epilogue()); }

void parse_epilogue(const std::string& text, EpilogueChoice& choice) {
  std::string_view left = text;
  bool known = !left.empty();
  while (known && !left.empty()) {
    const auto end = std::min(left.find('+'), left.size());
    known = choose::add_part(choice.rest, left.substr(0, end)) && end + 1 != left.size();
    left.remove_prefix(std::min(end + 1, left.size()));
  }
  check(known && !choice.rest.lora,
        "--epilogue = {}: it must be an activation (silu, gelu_tanh, gelu, relu2, or one of them with _mul), residual, "
        "or both: silu_mul+residual; adapters are --lora's",
        text);
}

void parse_lora(const std::string& text, EpilogueChoice& choice) {
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, choice.adapters);
  const bool comma = first.ec == std::errc() && first.ptr != end && *first.ptr == ',';
  const auto second = comma ? std::from_chars(first.ptr + 1, end, choice.rank) : first;
  check(comma && second.ec == std::errc() && second.ptr == end && choice.adapters >= 1 && choice.adapters <= 65536 &&
            choice.rank >= 1 && choice.rank <= 256,
        "--lora = {}: it must be ADAPTERS,RANK with 1 to 65536 adapters of a rank in 1 to 256: 8,16", text);
}

EpilogueData::EpilogueData(const Runtime& runtime, std::shared_ptr<DeviceBackend> backend,
                           const QuantizedMatrix& matrix, std::size_t copies, const Workload& workload,
                           const EpilogueChoice& choice, std::int64_t max_m)
    : backend_(std::move(backend)),
      workload_(workload),
      choice_(choice),
      k_(workload.problem().k),
      n_(workload.problem().n),
      outs_(choice.gated() ? n_ / 2 : n_),
      scale_(0.02f / std::sqrt(static_cast<float>(std::max<std::int64_t>(choice.rank, 1)))) {
  const auto x = workload.x();
  const auto size = size_of(workload.activation());
  const auto largest =
      static_cast<std::size_t>(std::max(choice.rank * std::max(k_, n_), n_ * max_m)) + 2 * kStep * 1024;
  while (source_.size() < largest * size) source_.insert(source_.end(), x.begin(), x.end());
  if (choice.adapters == 0) return;
  const auto bytes = static_cast<std::size_t>(choice.adapters * choice.rank * (k_ + n_)) * size;
  const std::size_t count = std::clamp<std::size_t>(kColdBytes / bytes + 1, 1, copies);
  while (tables_.size() < count) {
    LoraAdapters& table = tables_.emplace_back(
        runtime, matrix,
        LoraOptions{.adapters = choice.adapters, .max_rank = choice.rank, .type = workload.activation()});
    for (std::int64_t i = 0; i < choice.adapters; ++i)
      table.set(i, {{source_.data() + a_begin(i) * size, workload.activation(), choice.rank, k_},
                    {source_.data() + b_begin(i) * size, workload.activation(), n_, choice.rank},
                    scale_});
  }
}

std::size_t EpilogueData::a_begin(std::int64_t adapter) const {
  return static_cast<std::size_t>(2 * adapter % 2048 + 1) * kStep;
}
std::size_t EpilogueData::b_begin(std::int64_t adapter) const {
  return static_cast<std::size_t>(2 * adapter % 2048) * kStep;
}

double EpilogueData::value(std::size_t at) const {
  const DType type = workload_.activation();
  const std::byte* from = source_.data() + at * size_of(type);
  std::uint16_t bits;
  float f;
  if (type == DType::kF32) return std::memcpy(&f, from, 4), f;
  std::memcpy(&bits, from, 2);
  return type == DType::kBF16 ? float_from_bf16(bits) : float_from_half(bits);
}

void EpilogueData::give(Variant& variant, std::int64_t m) const {
  if (choice_.adapters > 0) {
    variant.adapters = tables_;
    std::vector<std::int32_t> numbers;
    for (std::int64_t r = 0; r < m; ++r) numbers.push_back(static_cast<std::int32_t>(r % choice_.adapters));
    variant.adapter_of_row = Buffer(backend_, numbers.size() * 4);
    backend_->copy(variant.adapter_of_row.get(), numbers.data(), numbers.size() * 4, CopyKind::kToDevice);
  }
  if (choice_.rest.residual) {
    const auto bytes = static_cast<std::size_t>(m * outs_) * size_of(workload_.activation());
    variant.residual = Buffer(backend_, bytes);
    backend_->copy(variant.residual.get(), source_.data(), bytes, CopyKind::kToDevice);
  }
}

Workload::Finish EpilogueData::finish() const {
  return [this](std::int64_t row, std::span<const std::int64_t> columns, std::span<double> sums) {
    if (choice_.adapters > 0) add_adapter(row, columns, sums);
    const Activation activation = choice_.rest.activation;
    const std::size_t half = sums.size() / 2;
    for (std::size_t c = 0; c < sums.size(); ++c) {
      if (choice_.gated() && c == half) break;
      sums[c] = activated(activation, sums[c]) * (choice_.gated() ? sums[half + c] : 1);
      if (choice_.rest.residual) sums[c] += value(static_cast<std::size_t>(row * outs_ + columns[c]));
    }
  };
}

void EpilogueData::add_adapter(std::int64_t row, std::span<const std::int64_t> columns, std::span<double> sums) const {
  const std::int64_t adapter = row % choice_.adapters;
  const auto x = static_cast<std::size_t>(row % workload_.period() * k_);  // the source begins with x
  for (std::int64_t rank = 0; rank < choice_.rank; ++rank) {
    double low = 0;
    for (std::int64_t i = 0; i < k_; ++i)
      low += value(x + static_cast<std::size_t>(i)) * value(a_begin(adapter) + static_cast<std::size_t>(rank * k_ + i));
    for (std::size_t c = 0; c < columns.size(); ++c)
      sums[c] += scale_ * low * value(b_begin(adapter) + static_cast<std::size_t>(columns[c] * choice_.rank + rank));
  }
}

}  // namespace q4::autotune
