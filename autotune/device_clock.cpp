// The few NVML and driver functions that this needs, declared by hand: neither header is required to build.
#include "autotune/device_clock.hpp"

#include <cstdlib>

#include "runtime/base/settings.hpp"

namespace q4::autotune {
namespace {

constexpr int kSmClock = 1;  // NVML_CLOCK_SM

/// Empty when there is no driver.
std::string pci_address(int ordinal) {
  void* const cuda = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // stays open: the backend has it too
  const auto init = library_function<int(unsigned)>(cuda, "cuInit");
  const auto get = library_function<int(int*, int)>(cuda, "cuDeviceGet");
  const auto address = library_function<int(char*, int, int)>(cuda, "cuDeviceGetPCIBusId");
  int device = 0;
  char text[64] = {};
  if (!init || !get || !address || init(0) != 0 || get(&device, ordinal) != 0) return {};
  return address(text, sizeof(text), device) == 0 ? text : "";
}

}  // namespace

DeviceClock::DeviceClock(Device device) : address_(device.str()) {
  const char* const variable = device.kind == BackendKind::kCuda  ? "CUDA_VISIBLE_DEVICES"
                               : device.kind == BackendKind::kHip ? "HIP_VISIBLE_DEVICES"
                                                                  : nullptr;
  if (variable && is_set(variable)) address_ += " of " + setting(variable);
  if (device.kind != BackendKind::kCuda) return;
  const std::string pci = pci_address(device.ordinal);
  if (pci.empty()) return;
  address_ = pci;
  nvml_ = Nvml(pci);
}

double DeviceClock::sm_mhz() const {
  const auto clock = nvml_.function<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo");
  unsigned mhz = 0;
  return nvml_.device() && clock && clock(nvml_.device(), kSmClock, &mhz) == 0 ? mhz : 0;
}

}  // namespace q4::autotune
