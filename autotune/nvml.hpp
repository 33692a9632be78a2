// NVML of one GPU, opened at run time. Its functions are declared where they are used: no header of it is required to build.
#pragma once

#include <dlfcn.h>

#include <memory>
#include <string>

namespace q4::autotune {

/// Null where the library is null or has no such function.
template <class F>
F* library_function(void* library, const char* name) {
  return library ? reinterpret_cast<F*>(::dlsym(library, name)) : nullptr;
}

class Nvml {
 public:
  Nvml() = default;
  /// `address`: "0000:1b:00.0". Without the library or the GPU, device() is null.
  explicit Nvml(const std::string& address, const std::string& file = "libnvidia-ml.so.1") {
    void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    const auto init = library_function<int()>(library, "nvmlInit_v2");
    const auto by_address = library_function<int(const char*, void**)>(library, "nvmlDeviceGetHandleByPciBusId_v2");
    if (!init || !by_address || init() != 0) return;
    library_ = std::shared_ptr<void>(library, [](void* l) {
      if (const auto shutdown = library_function<int()>(l, "nvmlShutdown")) shutdown();
    });
    if (by_address(address.c_str(), &device_) != 0) device_ = nullptr;
  }

  void* device() const { return device_; }  ///< nvmlDevice_t
  template <class F>
  F* function(const char* name) const {
    return library_function<F>(library_.get(), name);
  }

 private:
  std::shared_ptr<void> library_;
  void* device_ = nullptr;
};

}  // namespace q4::autotune
