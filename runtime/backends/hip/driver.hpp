// One GPU of the HIP runtime.
#pragma once

#include <memory>
#include <mutex>

#include "runtime/backends/hip/api.hpp"
#include "runtime/backends/hip/compiler.hpp"
#include "runtime/backends/hip/rocblas.hpp"
#include "runtime/gpu/driver.hpp"

namespace q4::hip {

class HipDriver : public gpu::Driver {
 public:
  HipDriver(std::shared_ptr<const Api> api, std::shared_ptr<Compiler> compiler, DeviceInfo info, int registers);
  ~HipDriver() override;

  const DeviceInfo& info() const override { return info_; }
  Limits limits() const override;
  void* take(std::size_t bytes) override;
  void give(void* memory) noexcept override;
  void copy(void* to, const void* from, std::size_t bytes, CopyKind kind) override;
  void fill(void* memory, int byte, std::size_t bytes) override;
  void synchronize() override;
  std::unique_ptr<CapturedWork> capture(const std::function<void(void* stream)>& work) override;
  q4::Result<void> reachable(const void* memory) const override;
  q4::Result<void> can_compile() override { return compiler_->knows(info_.arch); }
  std::string compiler() override { return compiler_->identity(info_.arch); }
  std::vector<std::string> options() const override { return compile_options(); }
  std::vector<char> compile(const jit::Source& source, std::string& log) override {
    return compiler_->compile(source, info_.arch, &log);
  }
  std::unique_ptr<gpu::Function> load(const std::vector<char>& code, const std::string& name) override;
  void launch(const gpu::Function& function, const gpu::LaunchShape& shape, void* stream,
              void** parameters) const override;
  gpu::TensorMapBytes encode(const gpu::TensorMapShape& shape) const override;  ///< kUnsupported
  std::unique_ptr<gpu::Gemm> gemm(const gpu::GemmShape& shape) override;

 private:
  int ordinal() const { return info_.device.ordinal; }

  std::shared_ptr<const Api> api_;
  std::shared_ptr<Compiler> compiler_;
  DeviceInfo info_;
  int registers_;
  std::mutex blas_mutex_;
  std::shared_ptr<const Rocblas> blas_;
};

}  // namespace q4::hip
