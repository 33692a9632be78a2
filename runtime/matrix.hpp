// What a QuantizedMatrix handle points to.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>

#include "runtime/backends/backend.hpp"

namespace q4 {

class QuantizedMatrix::Impl {
 public:
  Runtime runtime;  ///< keeps caches and backends alive
  std::shared_ptr<DeviceBackend> device;
  std::shared_ptr<const PackedMatrix> packed;
  std::int64_t k = 0, n = 0, group_size = 0, groups = 0;
  bool act_order = false, has_bias = false, detected = false;
  ZeroFormat zeros = ZeroFormat::kV1;
};

/// What every use of a handle begins with.
const QuantizedMatrix::Impl& require(const QuantizedMatrix& matrix, const char* call);

}  // namespace q4
