// Converts the small tensors.
#include "runtime/matrix_scales.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/backends/zeros.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"

namespace q4 {
namespace {

/// Calls each(row of the tensor, first column of the tensor, columns, index in source.scales and zeros).
template <class Each>
void for_rows(const MatrixSource& source, const RowSlice& rows, const std::vector<Extent>& extents, std::int64_t column,
              const Each& each) {
  for (std::size_t g = 0; g < rows.source_group.size(); ++g) {
    std::int64_t at = static_cast<std::int64_t>(g) * source.n + column;
    for (const Extent& e : extents) {
      if (rows.source_group[g] >= 0 && e.count > 0) each(rows.source_group[g], e.first, e.count, at);
      at += e.count + e.padding;
    }
  }
}

float value(DType type, const std::uint8_t* row, std::int64_t i) {
  std::uint16_t half;
  float single;
  if (type == DType::kF32) return std::memcpy(&single, row + 4 * i, 4), single;
  std::memcpy(&half, row + 2 * i, 2);
  return float_from_bf16(half);
}

}  // namespace

bool every_zero_is_8(const HostTensor& qzeros, std::int64_t rows, std::int64_t words) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto* row = qzeros.row<std::uint32_t>(r);
    if (!std::all_of(row, row + words, [](std::uint32_t word) { return word == 0x88888888u; })) return false;
  }
  return true;
}

void put_zeros(MatrixSource& source, const HostTensor& qzeros, const RowSlice& rows, const std::vector<Extent>& extents,
               std::int64_t column, ZeroFormat format) {
  for_rows(source, rows, extents, column,
           [&](std::int64_t row, std::int64_t first, std::int64_t columns, std::int64_t at) {
             const auto* words = qzeros.row<std::uint32_t>(row) + first / 8;
             if (source.awq)
               unpack_awq_zeros(words, columns, source.zeros.data() + at);
             else
               unpack_gptq_zeros(words, columns, format == ZeroFormat::kV1 ? 1 : 0, source.zeros.data() + at);
           });
}

std::optional<std::string> put_scales(MatrixSource& source, const TensorReader& reader, const TensorView& scales,
                                      const RowSlice& rows, const std::vector<Extent>& extents, std::int64_t column) {
  // With random fractions rounding is an error of 1.4e-4 to 2.8e-4 of the weights; more means that the range is not
  // fp16's.
  constexpr double kMostRounded = 3e-4;
  const HostTensor from = reader.on_host(scales);
  double difference = 0, norm = 0;
  float most = 0;
  for_rows(source, rows, extents, column,
           [&](std::int64_t row, std::int64_t first, std::int64_t columns, std::int64_t at) {
             if (scales.dtype == DType::kF16) {
               std::memcpy(source.scales.data() + at, from.row<std::uint16_t>(row) + first,
                           static_cast<std::size_t>(columns) * 2);
               return;
             }
             for (std::int64_t i = 0; i < columns; ++i) {
               const float scale = value(scales.dtype, from.row<std::uint8_t>(row), first + i);
               const std::uint16_t half = half_from_float(scale);
               source.scales[static_cast<std::size_t>(at + i)] = half;
               if (!std::isfinite(scale)) continue;
               const double off = double{float_from_half(half)} - double{scale};  // infinite where fp16 overflows
               difference += off * off;
               norm += double{scale} * double{scale};
               most = std::max(most, std::fabs(scale));
             }
           });
  if (difference == 0) return std::nullopt;
  const double error = std::sqrt(difference / norm);
  if (!(error <= kMostRounded)) {
    fail(ErrorCode::kUnsupported,
         "{}: scales in {} (the largest is {:.3g}) change the weights by {:.2g} of their size when they are rounded to "
         "fp16, which the kernels use and which holds 6e-5 to 65504 in full; at most {:.0g} is accepted: multiply the "
         "scales by a power of two and divide the layer's input by it",
         reader.call(), to_string(scales.dtype), most, error, kMostRounded);
  }
  return fmt::format("scales in {} are rounded to fp16, which the kernels use", to_string(scales.dtype));
}

}  // namespace q4
