// Every backend of this build, best first.
#include "runtime/backends/backend.hpp"
#include "runtime/backends/cpu/cpu.hpp"
#include "runtime/backends/cuda/cuda.hpp"
#include "runtime/backends/hip/hip.hpp"
#include "runtime/base/check.hpp"

namespace q4 {

std::vector<std::unique_ptr<Backend>> make_backends(const BackendContext& context) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(cuda::make_cuda_backend(context));
  backends.push_back(hip::make_hip_backend(context));
  backends.push_back(make_cpu_backend(context));
  return backends;
}

const DeviceTraits& traits_of(BackendKind kind) {
  switch (kind) {
    case BackendKind::kCpu:
      return kCpuTraits;
    case BackendKind::kCuda:
      return cuda::kTraits;
    case BackendKind::kHip:
      return hip::kTraits;
  }
  fail(ErrorCode::kInvalidArgument, "{} is not a value of BackendKind", static_cast<int>(kind));
}

}  // namespace q4
