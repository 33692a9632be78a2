// What a QuantizedMatrix handle points to.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>
#include <span>

#include "runtime/backends/backend.hpp"
#include "runtime/matrix_source.hpp"

namespace q4 {

class [[gnu::visibility("hidden")]] QuantizedMatrix::Impl {
 public:
  /// Other weights, after checking that they fit.
  void update(CheckedSource to, void* stream, const char* call);

  Runtime runtime;  ///< keeps caches and backends alive
  std::shared_ptr<DeviceBackend> device;
  std::shared_ptr<PackedMatrix> packed;
  std::int64_t k = 0, n = 0, group_size = 0, groups = 0;
  MatrixShape shape;
  bool act_order = false, has_bias = false, detected = false;
  ZeroFormat zeros = ZeroFormat::kV1;
  bool awq = false;
  bool restored = false;
  std::vector<std::int32_t> order;        ///< RowOrder::source; empty: rows are in order
  std::vector<std::int32_t> plain_g_idx;  ///< one that was given and says no more than the group size does
};

/// Matrices side by side as one; `cuts` as for check_gptq().
QuantizedMatrix make_matrix(const Runtime& runtime, Device device, std::span<const GptqTensors> tensors,
                            std::span<const CutFrom> cuts, const Slice& slice, bool gate_up, const char* call);
QuantizedMatrix make_matrix(const Runtime& runtime, Device device, std::span<const AwqTensors> tensors,
                            const Slice& slice, bool gate_up, const char* call);

/// What every use of a handle begins with.
const QuantizedMatrix::Impl& require(const QuantizedMatrix& matrix, const char* call);

}  // namespace q4
