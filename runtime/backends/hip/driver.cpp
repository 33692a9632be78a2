// Memory, launches and measuring on one GPU of the HIP runtime.
#include "runtime/backends/hip/driver.hpp"

#include <chrono>
#include <thread>

#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

constexpr int kToDevice = 1, kToHost = 2, kOnDevice = 3;
constexpr int kPointerManaged = 8, kPointerOrdinal = 9;
constexpr unsigned kNonBlocking = 1;
constexpr int kCaptureThreadLocal = 1;

// measure() rests after work longer than this, as on CUDA.
constexpr float kRestAfterMs = 0.5f;
constexpr std::chrono::milliseconds kRest{60};

struct HipFunction : gpu::Function {
  std::shared_ptr<const Api> api;
  int ordinal = 0;
  Module module = nullptr;
  FunctionHandle handle = nullptr;

  ~HipFunction() override {
    if (!module || api->process.left()) return;
    int before = 0;
    if (api->device_current(&before) != 0 || api->device_use(ordinal) != 0) return;
    api->module_unload(module);
    api->device_use(before);
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
  if (!memory || api_->process.left() || api_->device_current(&before) != 0 || api_->device_use(ordinal()) != 0) return;
  api_->release(memory);
  api_->device_use(before);
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

std::vector<double> HipDriver::measure(const std::function<void(void* stream)>& work, int runs) {
  const Current current(*api_, ordinal());
  const auto ok = [&](Result result, const char* call) { api_->check(result, call); };
  StreamHandle stream;
  ok(api_->stream_create(&stream, kNonBlocking), "hipStreamCreate");
  const std::shared_ptr<void> own_stream(stream, [&](void*) { api_->stream_destroy(stream); });
  ok(api_->capture_begin(stream, kCaptureThreadLocal), "hipStreamBeginCapture");
  Graph graph = nullptr;
  try {
    work(stream);
  } catch (...) {
    api_->capture_end(stream, &graph);
    if (graph) api_->graph_destroy(graph);
    throw;
  }
  ok(api_->capture_end(stream, &graph), "hipStreamEndCapture");
  const std::shared_ptr<void> own_graph(graph, [&](void*) { api_->graph_destroy(graph); });
  GraphExec exec;
  ok(api_->graph_instantiate(&exec, graph, nullptr, nullptr, 0), "hipGraphInstantiate");
  const std::shared_ptr<void> own_exec(exec, [&](void*) { api_->graph_exec_destroy(exec); });
  EventHandle begin, end;
  ok(api_->event_create(&begin), "hipEventCreate");
  const std::shared_ptr<void> own_begin(begin, [&](void*) { api_->event_destroy(begin); });
  ok(api_->event_create(&end), "hipEventCreate");
  const std::shared_ptr<void> own_end(end, [&](void*) { api_->event_destroy(end); });

  std::vector<double> times;
  for (int run = -1; run < runs; ++run) {  // the first is not counted
    ok(api_->event_record(begin, stream), "hipEventRecord");
    ok(api_->graph_launch(exec, stream), "hipGraphLaunch");
    ok(api_->event_record(end, stream), "hipEventRecord");
    ok(api_->event_synchronize(end), "hipEventSynchronize");
    float milliseconds = 0;
    ok(api_->event_elapsed(&milliseconds, begin, end), "hipEventElapsedTime");
    if (run >= 0) times.push_back(milliseconds * 1e3);
    if (milliseconds > kRestAfterMs) std::this_thread::sleep_for(kRest);
  }
  return times;
}

bool HipDriver::reachable(const void* memory, std::string& problem) const {
  api_->process.check();
  // The memory types' values changed in 6.0, so they are not asked for: pinned host memory names the device that it was
  // pinned for and works there, ordinary host memory names none.
  int managed = 0, owner = -1;
  void* address = const_cast<void*>(memory);
  if (api_->pointer_attribute(&managed, kPointerManaged, address) == 0 && managed) return true;
  if (api_->pointer_attribute(&owner, kPointerOrdinal, address) != 0 || owner < 0)
    return problem = "ordinary host memory", false;
  if (owner == ordinal()) return true;
  return problem = fmt::format("memory of hip:{}", owner), false;
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
