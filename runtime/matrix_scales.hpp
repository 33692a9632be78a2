// Scales and zeros of a slice, in the plain form of MatrixSource.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/slice.hpp"
#include "runtime/tensor_reader.hpp"

namespace q4 {

/// Whether every nibble of int32 [rows, words] is 8; stops at the first that is not.
bool every_zero_is_8(const HostTensor& qzeros, std::int64_t rows, std::int64_t words);

/// Columns `extents` of qzeros (of the groups of `rows`), as they enter (q - zero), from `column` of source.zeros on.
void put_zeros(MatrixSource& source, const HostTensor& qzeros, const RowSlice& rows, const std::vector<Extent>& extents,
               std::int64_t column, ZeroFormat format);

/// The same of scales, rounded to fp16, which the kernels use. fp16 scales are taken as they are, NaN included. Others
/// give a note, or kUnsupported where rounding changes the weights by more than fp16 is expected to.
std::optional<std::string> put_scales(MatrixSource& source, const TensorReader& reader, const TensorView& scales,
                                      const RowSlice& rows, const std::vector<Extent>& extents, std::int64_t column);

}  // namespace q4
