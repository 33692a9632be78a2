// One NVIDIA GPU.
#pragma once

#include <memory>
#include <mutex>

#include "runtime/backends/cuda/api.hpp"
#include "runtime/backends/cuda/cublaslt.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/gpu/driver.hpp"
#include "runtime/gpu/heap.hpp"

namespace q4::cuda {

/// The compiler that the devices of one Runtime share: opened by the first that needs it.
class SharedNvrtc {
 public:
  Nvrtc& get() {
    std::call_once(once_, [&] { nvrtc_ = std::make_unique<Nvrtc>(); });
    return *nvrtc_;
  }

 private:
  std::once_flag once_;
  std::unique_ptr<Nvrtc> nvrtc_;
};

/// How every kernel is compiled.
std::vector<std::string> compile_options();

/// Uses the device's primary context, the one that the CUDA runtime, PyTorch and others use too.
class CudaDriver : public gpu::Driver {
 public:
  CudaDriver(std::shared_ptr<const Api> api, std::shared_ptr<SharedNvrtc> nvrtc, DeviceInfo info,
             int compute_capability);
  ~CudaDriver() override;

  const DeviceInfo& info() const override { return info_; }
  Limits limits() const override;
  void* take(std::size_t bytes) override;
  void give(void* memory) noexcept override;
  void copy(void* to, const void* from, std::size_t bytes, CopyKind kind) override;
  void fill(void* memory, int byte, std::size_t bytes) override;
  void* take_pinned(std::size_t bytes) override;
  void give_pinned(void* memory) noexcept override;
  void begin_copy(void* to, const void* pinned, std::size_t bytes, int lane) override;
  void finish_copy(int lane) override;
  void cross() override;
  void synchronize() override;
  std::unique_ptr<CapturedWork> capture(const std::function<void(void* stream)>& work) override;
  q4::Result<void> reachable(const void* memory) const override;
  q4::Result<void> can_compile() override;
  std::string compiler() override;
  std::vector<std::string> options() const override { return compile_options(); }
  std::vector<char> compile(const jit::Source& source, std::string& log) override;
  std::unique_ptr<gpu::Function> load(const std::vector<char>& code, const std::string& name) override;
  void launch(const gpu::Function& function, const gpu::LaunchShape& shape, void* stream,
              void** parameters) const override;
  gpu::TensorMapBytes encode(const gpu::TensorMapShape& shape) const override;
  std::unique_ptr<gpu::Gemm> gemm(const gpu::GemmShape& shape) override;

 private:
  int attribute(int id) const;
  /// A stream of begin_copy(), which lanes share, and an event after what was begun in it.
  struct CopyStream {
    StreamHandle stream = nullptr;
    EventHandle begun = nullptr;
  };
  /// Where a copy is in line, and its event.
  struct Lane {
    StreamHandle stream;
    EventHandle arrived;
  };
  EventHandle make_event();
  Lane lane(int number);

  std::shared_ptr<const Api> api_;
  std::shared_ptr<SharedNvrtc> nvrtc_;
  DeviceInfo info_;
  int compute_capability_;  ///< 90 for 9.0
  DeviceHandle device_ = 0;
  Context context_ = nullptr;
  gpu::Heap heap_;
  std::mutex lanes_mutex_;
  std::vector<CopyStream> copy_streams_;
  std::vector<EventHandle> arrived_;  ///< one a lane
  EventHandle launched_ = nullptr;    ///< of cross(), in the default stream
  std::mutex blas_mutex_;
  std::shared_ptr<const CublasLt> blas_;
};

}  // namespace q4::cuda
