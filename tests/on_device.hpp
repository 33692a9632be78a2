// Multiplying on any device from host memory, as tests need it.
#pragma once

#include <memory>
#include <q4/q4.hpp>

#include "paths.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "runtime/backends/backend.hpp"
#include "runtime/runtime.hpp"

namespace q4::test {

/// A Runtime for the whole test binary: kernels are compiled once. Nothing is read from or written to the user's cache.
inline const Runtime& shared_runtime() {
  static const Runtime runtime = [] {
    RuntimeOptions options;
    options.cache_dir = q4::test::binary_dir() + "/test-cache";
    return Runtime(options);
  }();
  return runtime;
}

/// The devices that can multiply here; the others are shown as skipped.
inline std::vector<DeviceInfo> ready_devices() {
  std::vector<DeviceInfo> ready;
  for (const auto& info : shared_runtime().devices()) {
    if (const auto usable = shared_runtime().impl().open(info.device)->ready(); usable)
      ready.push_back(info);
    else
      skip(info.device.str() + ": " + usable.reason());
  }
  return ready;
}

/// out = x @ W on the plan's device, through copies; `out` keeps its host poison where nothing is written.
inline void multiply(const Runtime& runtime, Device device, const MatmulPlan& plan, const HostRows& x, HostRows& out) {
  auto backend = runtime.impl().open(device);
  const Buffer device_x(backend, x.bytes() + 16), device_out(backend, out.bytes() + 16);
  if (x.bytes()) backend->copy(device_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
  if (out.bytes()) backend->copy(device_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
  plan.run({}, {device_x.get(), x.row_stride()}, {device_out.get(), out.row_stride()}, x.rows());
  backend->synchronize();
  if (out.bytes()) backend->copy(out.data(), device_out.get(), out.bytes(), CopyKind::kToHost);
}

}  // namespace q4::test
