// cuBLASLt and rocBLAS through the GPU's driver, in 16 bits; the CPU's BLAS in fp32.
#include "autotune/dense.hpp"

#include "runtime/backends/cpu/blas.hpp"
#include "runtime/base/check.hpp"
#include "runtime/gpu/device.hpp"

namespace q4::autotune {
namespace {

Dense of_gpu(const std::shared_ptr<gpu::Driver>& driver, std::int64_t k, std::int64_t n, std::int64_t m, DType type) {
  if (type != DType::kF16 && type != DType::kBF16) return {};
  std::shared_ptr<const gpu::Gemm> gemm;
  try {
    gemm = driver->gemm({n, k, m, type == DType::kBF16, false});
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kUnsupported) return {};
    throw;
  }
  struct State {  // destroyed from the last to the first
    std::shared_ptr<gpu::Driver> driver;
    Buffer space;
    std::shared_ptr<const gpu::Gemm> gemm;
  };
  Buffer space(driver, gemm->workspace_bytes());
  auto state = std::make_shared<const State>(State{driver, std::move(space), std::move(gemm)});
  return [=](void* stream, const void* x, const void* w, void* out) {
    state->gemm->run(stream, m, x, k, w, n, out, n, nullptr, state->space.get());
  };
}

}  // namespace

Dense dense_blas(const std::shared_ptr<DeviceBackend>& device, std::int64_t k, std::int64_t n, std::int64_t m,
                 DType type) {
  if (const auto* gpu = dynamic_cast<const gpu::GpuDevice*>(device.get())) return of_gpu(gpu->driver(), k, n, m, type);
  if (type != DType::kF32 || !cpu::blas().available) return {};
  return [k, n, m](void*, const void* x, const void* w, void* out) {
    cpu::blas().multiply(m, n, k, static_cast<const float*>(x), k, static_cast<const float*>(w), n,
                         static_cast<float*>(out), n);
  };
}

}  // namespace q4::autotune
