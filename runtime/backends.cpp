// Every backend of this build, best first.
#include "runtime/backends/backend.hpp"
#include "runtime/backends/cpu/cpu.hpp"
#include "runtime/backends/cuda/cuda.hpp"
#include "runtime/backends/hip/hip.hpp"

namespace q4 {

std::vector<std::unique_ptr<Backend>> make_backends(const BackendContext& context) {
  std::vector<std::unique_ptr<Backend>> backends;
  backends.push_back(cuda::make_cuda_backend(context));
  backends.push_back(hip::make_hip_backend(context));
  backends.push_back(make_cpu_backend(context));
  return backends;
}

}  // namespace q4
