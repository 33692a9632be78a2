// What others do on a device while nothing of ours runs there: whoever measures beside them measures them too.
#pragma once

#include <q4/device.hpp>
#include <string>

#include "autotune/nvml.hpp"

namespace q4::autotune {

struct Neighbours {
  double share = -1;  ///< of the device's time, or of the processors that a plan would use, 0 to 1; negative: unknown
  std::string who;    ///< "process 4711 holds 20.1 GB"; empty where that is unknown
  bool disturb() const { return share > 0.15; }
  std::string text() const;  ///< "others use 37% of it (process 4711 holds 20.1 GB)"
};

/// Of two texts of /proc/stat, some time apart: what is lacking of `units` idle processors. Negative: not to be told.
double lacking_processors(const std::string& before, const std::string& after, int units);

class NeighbourWatch {
 public:
  /// `address`: of a GPU, DeviceClock::address(). Both libraries and files may be missing: then nothing is known.
  NeighbourWatch(const DeviceInfo& device, const std::string& address, const std::string& nvml = "libnvidia-ml.so.1",
                 const std::string& stat = "/proc/stat");
  /// Takes 0.1 to 0.3 s. What this process and its children use is counted too where they are not idle.
  Neighbours look() const;

 private:
  Neighbours on_cpu() const;
  Neighbours on_gpu() const;
  DeviceInfo device_;
  std::string stat_;
  Nvml nvml_;
};

}  // namespace q4::autotune
