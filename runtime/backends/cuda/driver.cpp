// Memory and launches on one GPU.
#include "runtime/backends/cuda/driver.hpp"

#include "runtime/backends/cuda/capture.hpp"
#include "runtime/base/check.hpp"

namespace q4::cuda {
namespace {

constexpr int kAttributeRegisters = 82, kFunctionDynamicShared = 8;
constexpr int kLaunchCluster = 4, kLaunchProgrammatic = 6;
constexpr int kPointerMemoryType = 2, kPointerManaged = 8, kPointerOrdinal = 9;
constexpr unsigned kMemoryHost = 1;
constexpr Result kUnreadable[] = {200, 209, 222};  // INVALID_IMAGE, NO_BINARY_FOR_GPU, UNSUPPORTED_PTX_VERSION

DevicePointer address(const void* p) { return reinterpret_cast<DevicePointer>(p); }

struct CudaFunction : gpu::Function {
  std::shared_ptr<const Api> api;
  Context context = nullptr;
  Module module = nullptr;
  FunctionHandle handle = nullptr;

  ~CudaFunction() override {
    if (!module || api->process.left()) return;
    const Pushed pushed(*api, context);
    api->module_unload(module);
  }
};

/// cuBLASLt works in whatever context is current: this makes it the device's.
class GemmInContext : public gpu::Gemm {
 public:
  GemmInContext(std::shared_ptr<const Api> api, Context context, std::unique_ptr<gpu::Gemm> gemm)
      : api_(std::move(api)), context_(context), gemm_(std::move(gemm)) {}
  ~GemmInContext() override {
    if (api_->process.left()) {
      static_cast<void>(gemm_.release());
      return;
    }
    const Pushed pushed(*api_, context_);
    gemm_.reset();
  }
  void run(void* stream, std::int64_t m, const void* x, std::int64_t x_stride, const void* w, std::int64_t w_stride,
           void* out, std::int64_t out_stride, const void* bias, void* workspace) const override {
    const Current current(*api_, context_);
    gemm_->run(stream, m, x, x_stride, w, w_stride, out, out_stride, bias, workspace);
  }
  std::size_t workspace_bytes() const override { return gemm_->workspace_bytes(); }

 private:
  std::shared_ptr<const Api> api_;
  Context context_;
  std::unique_ptr<gpu::Gemm> gemm_;
};

}  // namespace

std::vector<std::string> compile_options() { return {"-std=c++20", "--ptxas-options=-v"}; }

CudaDriver::CudaDriver(std::shared_ptr<const Api> api, std::shared_ptr<SharedNvrtc> nvrtc, DeviceInfo info,
                       int compute_capability)
    : api_(std::move(api)), nvrtc_(std::move(nvrtc)), info_(std::move(info)), compute_capability_(compute_capability) {
  api_->check(api_->device_get(&device_, info_.device.ordinal), "cuDeviceGet");
  api_->check(api_->context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

CudaDriver::~CudaDriver() {
  if (api_->process.left()) {  // all of this is the parent's
    if (blas_) new std::shared_ptr<const CublasLt>(std::move(blas_));
    return;
  }
  if (blas_ || !copy_streams_.empty()) {
    const Pushed pushed(*api_, context_);
    blas_.reset();
    for (const EventHandle event : arrived_) api_->event_destroy(event);
    for (const auto& [stream, begun] : copy_streams_) api_->event_destroy(begun), api_->stream_destroy(stream);
    if (launched_) api_->event_destroy(launched_);
  }
  api_->context_release(device_);
}

int CudaDriver::attribute(int id) const {
  int value = 0;
  api_->check(api_->device_attribute(&value, id, device_), "cuDeviceGetAttribute");
  return value;
}

Limits CudaDriver::limits() const {
  return {compute_capability_, info_.compute_units, static_cast<int>(info_.shared_bytes),
          attribute(kAttributeRegisters)};
}

void* CudaDriver::take(std::size_t bytes) {
  const Current current(*api_, context_);
  const auto allocate = [&](std::size_t size) {
    DevicePointer memory = 0;
    api_->check(api_->allocate(&memory, size ? size : 1),
                fmt::format("cuMemAlloc({} bytes) on {}", bytes, info_.device.str()).c_str());
    return reinterpret_cast<void*>(memory);
  };
  return gpu::Heap::serves(bytes) ? heap_.take(bytes, allocate) : allocate(bytes);
}

void CudaDriver::give(void* memory) noexcept {
  if (!memory || api_->process.left()) return;
  const Pushed pushed(*api_, context_);
  const auto settle = [&] { api_->context_synchronize(); };  // as cuMemFree does: other streams may be reading it
  const auto release = [&](void* block) { api_->release(address(block)); };
  if (!heap_.give(memory, settle, release)) release(memory);
}

void CudaDriver::copy(void* to, const void* from, std::size_t bytes, CopyKind kind) {
  if (!bytes) return;
  const Current current(*api_, context_);
  switch (kind) {
    case CopyKind::kToDevice:
      // It may return before pageable memory has arrived; streams that do not wait for the default one would not see
      // it.
      api_->check(api_->copy_to_device(address(to), from, bytes), "cuMemcpyHtoD");
      return api_->check(api_->stream_synchronize(nullptr), "cuStreamSynchronize");
    case CopyKind::kToHost:
      return api_->check(api_->copy_to_host(to, address(from), bytes), "cuMemcpyDtoH");
    case CopyKind::kOnDevice:
      api_->check(api_->copy_on_device(address(to), address(from), bytes), "cuMemcpyDtoD");
      return api_->check(api_->stream_synchronize(nullptr), "cuStreamSynchronize");
  }
}

void CudaDriver::fill(void* memory, int byte, std::size_t bytes) {
  const Current current(*api_, context_);
  api_->check(api_->fill(address(memory), static_cast<unsigned char>(byte), bytes), "cuMemsetD8");
  api_->check(api_->stream_synchronize(nullptr), "cuStreamSynchronize");
}

void* CudaDriver::take_pinned(std::size_t bytes) {
  constexpr unsigned kPortable = 1;
  const Current current(*api_, context_);
  void* memory = nullptr;
  return api_->allocate_pinned(&memory, bytes, kPortable) == 0 ? memory : nullptr;
}

void CudaDriver::give_pinned(void* memory) noexcept {
  if (api_->process.left()) return;
  const Pushed pushed(*api_, context_);
  api_->release_pinned(memory);
}

EventHandle CudaDriver::make_event() {
  constexpr unsigned kDisableTiming = 2;
  EventHandle event = nullptr;
  api_->check(api_->event_create(&event, kDisableTiming), "cuEventCreate");
  return event;
}

CudaDriver::Lane CudaDriver::lane(int number) {
  constexpr std::size_t kStreams = 2;  // the bus takes one copy at a time; more streams are slower
  constexpr unsigned kNonBlocking = 1;
  const auto index = static_cast<std::size_t>(number);
  const std::lock_guard lock(lanes_mutex_);
  while (copy_streams_.size() < kStreams) {
    CopyStream& made = copy_streams_.emplace_back();
    try {
      made.begun = make_event();
      api_->check(api_->stream_create(&made.stream, kNonBlocking), "cuStreamCreate");
    } catch (...) {
      if (made.begun) api_->event_destroy(made.begun);
      copy_streams_.pop_back();
      throw;
    }
  }
  while (arrived_.size() <= index) {
    arrived_.reserve(arrived_.size() + 1);
    arrived_.push_back(make_event());
  }
  return {copy_streams_[index % kStreams].stream, arrived_[index]};
}

void CudaDriver::begin_copy(void* to, const void* pinned, std::size_t bytes, int number) {
  const Current current(*api_, context_);
  const Lane lane = this->lane(number);
  api_->check(api_->copy_begin(address(to), pinned, bytes, lane.stream), "cuMemcpyHtoDAsync");
  api_->check(api_->event_record(lane.arrived, lane.stream), "cuEventRecord");
}

void CudaDriver::finish_copy(int number) {
  const Current current(*api_, context_);
  api_->check(api_->event_synchronize(lane(number).arrived), "cuEventSynchronize");
}

void CudaDriver::cross() {
  const Current current(*api_, context_);
  const std::lock_guard lock(lanes_mutex_);
  if (!launched_) launched_ = make_event();
  api_->check(api_->event_record(launched_, nullptr), "cuEventRecord");
  for (const auto& [stream, begun] : copy_streams_) {
    api_->check(api_->event_record(begun, stream), "cuEventRecord");
    api_->check(api_->stream_wait(nullptr, begun, 0), "cuStreamWaitEvent");
    api_->check(api_->stream_wait(stream, launched_, 0), "cuStreamWaitEvent");
  }
}

void CudaDriver::synchronize() {
  const Current current(*api_, context_);
  api_->check(api_->context_synchronize(), "cuCtxSynchronize");
}

std::unique_ptr<CapturedWork> CudaDriver::capture(const std::function<void(void* stream)>& work) {
  return cuda::capture(api_, context_, work);
}

q4::Result<void> CudaDriver::reachable(const void* memory) const {
  api_->process.check();
  unsigned type = 0;
  int managed = 0, ordinal = -1;
  constexpr Result kUnknownPointer = 1;  // CUDA_ERROR_INVALID_VALUE; every other one is a failure of the call
  const auto ask = [&](void* value, int attribute) {
    const Result result = api_->pointer_attribute(value, attribute, address(memory));
    if (result != kUnknownPointer) api_->check(result, "cuPointerGetAttribute");
    return result == 0;
  };
  if (!ask(&type, kPointerMemoryType)) return Failure{"ordinary host memory"};
  ask(&managed, kPointerManaged);
  if (managed || type == kMemoryHost) return {};  // pinned host memory is slow, but it works
  ask(&ordinal, kPointerOrdinal);
  if (ordinal == info_.device.ordinal) return {};
  return Failure{fmt::format("memory of cuda:{}", ordinal)};
}

q4::Result<void> CudaDriver::can_compile() { return nvrtc_->get().knows(info_.arch); }

std::string CudaDriver::compiler() {
  auto& nvrtc = nvrtc_->get();
  return nvrtc.available() ? nvrtc.identity() : "no nvrtc";
}

std::vector<char> CudaDriver::compile(const jit::Source& source, std::string& log) {
  return nvrtc_->get().compile(source, info_.arch, compile_options(), &log);
}

std::unique_ptr<gpu::Function> CudaDriver::load(const std::vector<char>& code, const std::string& name) {
  const Current current(*api_, context_);
  auto function = std::make_unique<CudaFunction>();
  function->api = api_, function->context = context_;
  const Result loaded = api_->module_load(&function->module, code.data());
  for (const Result unreadable : kUnreadable)
    if (loaded == unreadable)
      fail(ErrorCode::kUnsupported,
           "cuModuleLoadData({}): {}; the driver is of CUDA {}, and what compiled this kernel may be newer or have "
           "compiled it for another GPU: update the driver, or compile with an NVRTC no newer than it ($Q4_NVRTC)",
           name, api_->describe(loaded), info_.driver);
  api_->check(loaded, fmt::format("cuModuleLoadData({})", name).c_str());
  api_->check(api_->module_function(&function->handle, function->module, jit::entry(name).c_str()),
              "cuModuleGetFunction");
  api_->check(api_->function_set(function->handle, kFunctionDynamicShared, static_cast<int>(info_.shared_bytes)),
              "cuFuncSetAttribute");
  return function;
}

void CudaDriver::launch(const gpu::Function& function, const gpu::LaunchShape& shape, void* stream,
                        void** parameters) const {
  const auto& f = static_cast<const CudaFunction&>(function);
  if (shape.blocks < 1 || shape.blocks > INT32_MAX)
    fail(ErrorCode::kUnsupported, "launch: {} blocks, at most {}: use a smaller m", shape.blocks, INT32_MAX);
  LaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = kLaunchCluster;
    attributes[count++].value.cluster = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.overlap_previous) {
    attributes[count].id = kLaunchProgrammatic;
    attributes[count++].value.flag = 1;
  }
  const LaunchConfig config{static_cast<unsigned>(shape.blocks),
                            1,
                            1,
                            static_cast<unsigned>(shape.threads),
                            1,
                            1,
                            static_cast<unsigned>(shape.shared_bytes),
                            static_cast<StreamHandle>(stream),
                            attributes,
                            count};
  const Current current(*api_, context_);
  api_->check(api_->launch(&config, f.handle, parameters, nullptr), "cuLaunchKernelEx");
}

gpu::TensorMapBytes CudaDriver::encode(const gpu::TensorMapShape& s) const {
  constexpr int kFloat16 = 6, kBfloat16 = 9, kSwizzle64 = 2, kSwizzle128 = 3, kPromote256 = 3;
  const Current current(*api_, context_);
  gpu::TensorMapBytes map;
  const std::uint64_t extents[2] = {static_cast<std::uint64_t>(s.cols), static_cast<std::uint64_t>(s.rows)};
  const std::uint64_t strides[1] = {static_cast<std::uint64_t>(s.row_stride) * 2};
  const unsigned box[2] = {static_cast<unsigned>(s.box_cols), static_cast<unsigned>(s.box_rows)}, steps[2] = {1, 1};
  if (!api_->tensor_map_encode)
    fail(ErrorCode::kUnsupported, "cuTensorMapEncodeTiled: this driver has none; update it");
  api_->check(
      api_->tensor_map_encode(&map, s.bf16 ? kBfloat16 : kFloat16, 2, const_cast<void*>(s.data), extents, strides, box,
                              steps, 0, s.box_cols * 2 <= 64 ? kSwizzle64 : kSwizzle128, kPromote256, 0),
      "cuTensorMapEncodeTiled");
  return map;
}

std::unique_ptr<gpu::Gemm> CudaDriver::gemm(const gpu::GemmShape& shape) {
  const Current current(*api_, context_);
  std::lock_guard lock(blas_mutex_);
  if (!blas_) blas_ = std::make_shared<const CublasLt>();
  return std::make_unique<GemmInContext>(api_, context_, CublasLt::gemm(blas_, shape));
}

}  // namespace q4::cuda
