// Memory and launches on one GPU of the HIP runtime.
#include "runtime/backends/hip/driver.hpp"

#include "runtime/backends/hip/capture.hpp"
#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

constexpr int kToDevice = 1, kToHost = 2, kOnDevice = 3;
constexpr int kPointerManaged = 8, kPointerOrdinal = 9;

struct HipFunction : gpu::Function {
  std::shared_ptr<const Api> api;
  int ordinal = 0;
  Module module = nullptr;
  FunctionHandle handle = nullptr;

  ~HipFunction() override {
    if (!module || api->process.left()) return;
    int before = 0;
    const bool moved = api->device_current(&before) == 0 && api->device_use(ordinal) == 0;
    api->module_unload(module);  // the runtime finds it by itself
    if (moved) api->device_use(before);
  }
};

}  // namespace

HipDriver::HipDriver(std::shared_ptr<const Api> api, std::shared_ptr<Compiler> compiler, DeviceInfo info, int registers)
    : api_(std::move(api)), compiler_(std::move(compiler)), info_(std::move(info)), registers_(registers) {}

HipDriver::~HipDriver() {
  if (!blas_) return;
  if (api_->process.left()) {  // it is the parent's
    new std::shared_ptr<const Rocblas>(std::move(blas_));
    return;
  }
  int before = 0;
  if (api_->device_current(&before) != 0 || api_->device_use(ordinal()) != 0) return;
  blas_.reset();
  api_->device_use(before);
}

Limits HipDriver::limits() const { return {0, info_.compute_units, static_cast<int>(info_.shared_bytes), registers_}; }

void* HipDriver::take(std::size_t bytes) {
  const Current current(*api_, ordinal());
  void* memory = nullptr;
  api_->check(api_->allocate(&memory, bytes ? bytes : 1),
              fmt::format("hipMalloc({} bytes) on {}", bytes, info_.device.str()).c_str());
  return memory;
}

void HipDriver::give(void* memory) noexcept {
  int before = 0;
  if (!memory || api_->process.left()) return;
  const bool moved = api_->device_current(&before) == 0 && api_->device_use(ordinal()) == 0;
  api_->release(memory);  // the runtime finds it by itself
  if (moved) api_->device_use(before);
}

void HipDriver::copy(void* to, const void* from, std::size_t bytes, CopyKind kind) {
  if (!bytes) return;
  const Current current(*api_, ordinal());
  const int direction = kind == CopyKind::kToDevice ? kToDevice : kind == CopyKind::kToHost ? kToHost : kOnDevice;
  api_->check(api_->copy(to, from, bytes, direction), "hipMemcpy");
  // It may return early; streams that do not wait for the default one would not see the bytes.
  api_->check(api_->stream_synchronize(nullptr), "hipStreamSynchronize");
}

void HipDriver::fill(void* memory, int byte, std::size_t bytes) {
  const Current current(*api_, ordinal());
  api_->check(api_->fill(memory, byte, bytes), "hipMemset");
  api_->check(api_->stream_synchronize(nullptr), "hipStreamSynchronize");
}

void HipDriver::synchronize() {
  const Current current(*api_, ordinal());
  api_->check(api_->device_synchronize(), "hipDeviceSynchronize");
}

std::unique_ptr<CapturedWork> HipDriver::capture(const std::function<void(void* stream)>& work) {
  return hip::capture(api_, ordinal(), work);
}

q4::Result<void> HipDriver::reachable(const void* memory) const {
  api_->process.check();
  // The memory types' values changed in 6.0, so they are not asked for: pinned host memory names the device that it was
  // pinned for and works there, ordinary host memory names none.
  int managed = 0, owner = -1;
  void* address = const_cast<void*>(memory);
  if (api_->pointer_attribute(&managed, kPointerManaged, address) == 0 && managed) return {};
  if (api_->pointer_attribute(&owner, kPointerOrdinal, address) != 0 || owner < 0)
    return Failure{"ordinary host memory"};
  if (owner == ordinal()) return {};
  return Failure{fmt::format("memory of hip:{}", owner)};
}

std::unique_ptr<gpu::Function> HipDriver::load(const std::vector<char>& code, const std::string& name) {
  const Current current(*api_, ordinal());
  auto function = std::make_unique<HipFunction>();
  function->api = api_, function->ordinal = ordinal();
  api_->check(api_->module_load(&function->module, code.data()), fmt::format("hipModuleLoadData({})", name).c_str());
  api_->check(api_->module_function(&function->handle, function->module, jit::entry(name).c_str()),
              "hipModuleGetFunction");
  return function;
}

void HipDriver::launch(const gpu::Function& function, const gpu::LaunchShape& shape, void* stream,
                       void** parameters) const {
  // The dispatch packet counts work items in 32 bits.
  const std::int64_t most = UINT32_MAX / shape.threads;
  if (shape.blocks < 1 || shape.blocks > most)
    fail(ErrorCode::kUnsupported, "launch: {} blocks of {} threads, at most {}: use a smaller m", shape.blocks,
         shape.threads, most);
  if (shape.cluster > 1) fail(ErrorCode::kInternal, "launch: clusters are for CUDA");
  const Current current(*api_, ordinal());
  api_->check(api_->launch(static_cast<const HipFunction&>(function).handle, static_cast<unsigned>(shape.blocks), 1, 1,
                           static_cast<unsigned>(shape.threads), 1, 1, static_cast<unsigned>(shape.shared_bytes),
                           static_cast<StreamHandle>(stream), parameters, nullptr),
              "hipModuleLaunchKernel");
}

gpu::TensorMapBytes HipDriver::encode(const gpu::TensorMapShape&) const {
  fail(ErrorCode::kUnsupported, "tensor maps are for CUDA");
}

std::unique_ptr<gpu::Gemm> HipDriver::gemm(const gpu::GemmShape& shape) {
  const Current current(*api_, ordinal());
  const std::lock_guard lock(blas_mutex_);
  if (!blas_) blas_ = std::make_shared<const Rocblas>();
  return Rocblas::gemm(blas_, api_, ordinal(), shape);
}

}  // namespace q4::hip
