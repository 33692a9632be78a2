// What a backend provides for LoRAX's own calls: rows times dense matrices that the rows name.
#pragma once

#include <cstdint>
#include <q4/device.hpp>

namespace q4 {

/// y[row] += scale x[row] W for rows of one type. All memory is the device's, contiguous, and already checked.
struct SegmentCall {
  DType type = DType::kF16;  ///< fp16 or bf16
  bool transposed = false;   ///< W is [out, in], else [in, out]
  void* y = nullptr;         ///< [m, out]
  const void* x = nullptr;   ///< [m, in]
  const void* w = nullptr;   ///< pointers [count], each to [layers, ...]
  /// A row's place in `w`, outside [0, count): none. Null: rows [begin[s], end[s]) have w[s].
  const std::int64_t* indices = nullptr;
  const std::int32_t *begin = nullptr, *end = nullptr;
  std::int64_t m = 0, in = 0, out = 0, layer = 0, count = 0;
  float scale = 1;
};

}  // namespace q4
