// The SM clock of a GPU while it is measured, and its address, which is the same in every process.
#pragma once

#include <q4/device.hpp>
#include <string>

#include "autotune/nvml.hpp"

namespace q4::autotune {

/// Through libnvidia-ml.so.1 and libcuda.so.1, opened here; whatever is missing gives 0 or a weaker address. Clocks are
/// read, never set.
class DeviceClock {
 public:
  explicit DeviceClock(Device device);
  double sm_mhz() const;  ///< now; 0: unknown
  /// "0000:1b:00.0" for an NVIDIA GPU; else the device with what restricts its numbering: "hip:0 of 2,3".
  const std::string& address() const { return address_; }

 private:
  std::string address_;
  Nvml nvml_;
};

}  // namespace q4::autotune
