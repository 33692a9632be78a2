// From borrowed tensors to a validated MatrixSource: nothing unchecked goes further.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>
#include <string>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// Owns what the source had to be copied into.
struct CheckedSource {
  MatrixSource source;
  std::vector<std::uint8_t> host_codes;   ///< qweight, when it was strided or had to leave another memory
  Buffer device_codes;                    ///< the same on the device
  std::vector<std::int32_t> plain_g_idx;  ///< g_idx, where it says no more than the group size does
  bool small_on_device = false;           ///< scales and qzeros stay where they are, on the device
  bool zeros_detected = false;
  ZeroFormat zeros = ZeroFormat::kV1;
  std::vector<std::string> notes;  ///< what was unusual and is read nevertheless, for the log
};

/// `call` is named in errors.
CheckedSource check_gptq(const std::shared_ptr<DeviceBackend>& device, const GptqTensors& tensors, const char* call);
CheckedSource check_awq(const std::shared_ptr<DeviceBackend>& device, const AwqTensors& tensors, const char* call);

}  // namespace q4
