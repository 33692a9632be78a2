// The few NVML and driver functions that this needs, declared by hand: neither header is required to build.
#include "autotune/device_clock.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "runtime/base/settings.hpp"

namespace q4::autotune {
namespace {

constexpr int kSmClock = 1;  // NVML_CLOCK_SM

template <class F>
F* function(void* library, const char* name) {
  return library ? reinterpret_cast<F*>(::dlsym(library, name)) : nullptr;
}

/// Empty when there is no driver.
std::string pci_address(int ordinal) {
  void* const cuda = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);  // stays open: the backend has it too
  const auto init = function<int(unsigned)>(cuda, "cuInit");
  const auto get = function<int(int*, int)>(cuda, "cuDeviceGet");
  const auto address = function<int(char*, int, int)>(cuda, "cuDeviceGetPCIBusId");
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
  void* const library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  const auto init = function<int()>(library, "nvmlInit_v2");
  const auto by_address = function<int(const char*, void**)>(library, "nvmlDeviceGetHandleByPciBusId_v2");
  if (!init || !by_address || init() != 0) return;
  nvml_ = std::shared_ptr<void>(library, [](void* l) {
    if (const auto shutdown = function<int()>(l, "nvmlShutdown")) shutdown();
  });
  if (by_address(pci.c_str(), &handle_) != 0) handle_ = nullptr;
}

double DeviceClock::sm_mhz() const {
  const auto clock = function<int(void*, int, unsigned*)>(nvml_.get(), "nvmlDeviceGetClockInfo");
  unsigned mhz = 0;
  return handle_ && clock && clock(handle_, kSmClock, &mhz) == 0 ? mhz : 0;
}

}  // namespace q4::autotune
