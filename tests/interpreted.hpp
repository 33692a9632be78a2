// Interpreted AMD GPUs as devices of a Runtime: the unmodified HIP backend over tests/amdgpu, where no GPU is.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "on_device.hpp"
#include "paths.hpp"
#include "tests/amdgpu/disassemble.hpp"

namespace q4::test {

/// Environment variables for a scope.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& values) {
    for (const auto& [name, value] : values) {
      const char* old = std::getenv(name.c_str());
      before_.emplace_back(name, old ? std::optional<std::string>(old) : std::nullopt);
      ::setenv(name.c_str(), value.c_str(), 1);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_)
      value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
  }
  Environment(const Environment&) = delete;

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

/// Within it, a Runtime that is made finds the interpreted devices.
inline Environment stand_in() {
  const std::string library = q4::test::binary_dir() + "/lib/libq4-amdgpu.so";
  return Environment({{"Q4_HIP_RUNTIME", library},
                      {"Q4_ROCBLAS", library},
                      {"Q4_AMDGPU_TARGETS", "gfx90a,gfx1030,gfx1100,gfx942,gfx906"}});
}

/// One Runtime with every interpreted device. Others, made before or after, see none of them.
inline const Runtime& interpreted() {
  static const Runtime runtime = [] {
    const Environment here = stand_in();
    RuntimeOptions options;
    options.cache_dir = q4::test::binary_dir() + "/test-cache";
    Runtime made(options);
    made.devices();
    return made;
  }();
  return runtime;
}

/// The interpreted device, or nothing, with the reason shown.
inline std::optional<DeviceInfo> device(const std::string& target) {
  const auto listing = amdgpu::disassemble({}, target);
  if (!listing && listing.reason().starts_with("no llvm-objdump")) {
    skip(listing.reason());
    return std::nullopt;
  }
  for (const auto& info : interpreted().devices())
    if (info.device.kind == BackendKind::kHip && info.arch == target) {
      const auto ready = interpreted().impl().open(info.device)->ready();
      if (ready) return info;
      skip(target + ": " + ready.reason());
      return std::nullopt;
    }
  FAIL("the stand-in has no " << target);
  return std::nullopt;
}

}  // namespace q4::test
