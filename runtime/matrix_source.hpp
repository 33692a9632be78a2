// From borrowed tensors to a validated MatrixSource: nothing unchecked goes further.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>
#include <q4/slice.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// Owns what the source had to be copied into.
struct CheckedSource {
  MatrixSource source;
  std::vector<std::uint8_t> host_codes;   ///< qweight, where it had to be padded
  Buffer device_codes;                    ///< the same on the device, where it was in pieces
  std::vector<std::int32_t> plain_g_idx;  ///< g_idx, where it says no more than the group size does
  bool small_stay = false;                ///< scales and qzeros are MatrixSource::device_scales and device_qzeros
  bool zeros_detected = false;
  ZeroFormat zeros = ZeroFormat::kV1;
  std::vector<std::string> notes;  ///< what was unusual and is read nevertheless, for the log
};

/// A matrix of which the slice alone is there: qweight, qzeros and scales have its columns only, and qweight has its
/// rows only. k and n are those of the whole; 0: all of it is there.
struct CutFrom {
  std::int64_t k = 0, n = 0;
};

/// The slice of each matrix, side by side as one. `call` is named in errors. `cuts`: empty, or one for each.
CheckedSource check_gptq(const std::shared_ptr<DeviceBackend>& device, std::span<const GptqTensors> parts,
                         const Slice& slice, const char* call, std::span<const CutFrom> cuts = {});
CheckedSource check_awq(const std::shared_ptr<DeviceBackend>& device, std::span<const AwqTensors> parts,
                        const Slice& slice, const char* call);

}  // namespace q4
