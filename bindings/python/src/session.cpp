// Plans and scratch memory behind the calls of both modules.
#include "bindings/python/src/session.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <exception>
#include <thread>

#include "bindings/python/src/torch_threads.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "runtime/runtime.hpp"

namespace q4::python {
namespace {

std::atomic<Runtime*> current{nullptr};
ForkSafeMutex making;

bool same_but_m(PlanOptions a, const PlanOptions& b) {
  return a.activation == b.activation && a.math == b.math && a.gather == b.gather &&
         a.reconstruct_from == b.reconstruct_from && a.batch_invariant == b.batch_invariant &&
         a.overlap_previous == b.overlap_previous && a.tactic == b.tactic && a.own_workspace == b.own_workspace &&
         a.epilogue == b.epilogue && a.lora_rank == b.lora_rank;
}

}  // namespace

namespace {
Runtime* make(RuntimeOptions options) {
  options.allocator = python_allocator();
  if (!options.parallel_for) options.parallel_for = torch_threads();
  return new Runtime(std::move(options));
}
}  // namespace

Runtime& runtime() {
  if (Runtime* made = current.load(std::memory_order_acquire)) return *made;
  const std::lock_guard lock(making);
  if (!current.load()) current.store(make({}));
  return *current.load();
}

void configure(RuntimeOptions options) { current.store(make(std::move(options))); }

Workspaces& workspaces() {
  static Workspaces* w = new Workspaces;  // never destroyed: see runtime()
  return *w;
}

namespace {
/// Memory that outlives the call. While PyTorch warms up or records a CUDA graph for torch.compile, what the calling thread
/// allocates goes to the graph's pool, and what is still held there afterwards is an error: so another thread allocates.
Buffer lasting(const std::shared_ptr<DeviceBackend>& backend, Device device, std::size_t bytes) {
  if (traits_of(device).host_addressable) return Buffer(backend, bytes);
  Buffer block;
  std::exception_ptr error;
  std::thread([&] {
    const RelaxedCapture relaxed(device);
    try {
      block = Buffer(backend, bytes);
    } catch (...) { error = std::current_exception(); }
  }).join();
  if (error) std::rethrow_exception(error);
  return block;
}
}  // namespace

void* Workspaces::Scratch::reserve(Device device, std::size_t wanted) {
  if (wanted > bytes) {
    const RelaxedCapture relaxed(device);
    const auto backend = runtime().impl().open(device);
    const std::size_t size = (std::max(wanted, 2 * bytes) + 255) / 256 * 256;
    Buffer block = lasting(backend, device, size);
    backend->fill(block.get(), 0, size);
    const std::lock_guard lock(growing_);
    memory.push_back(std::move(block));
    bytes = size;
  }
  return memory.empty() ? nullptr : memory.back().get();
}

std::shared_ptr<Workspaces::Scratch> Workspaces::get(Device device, void* stream) {
  std::lock_guard lock(mutex_);
  auto& found = scratch_[{{device.kind, device.ordinal}, stream}];
  if (!found) found = std::make_shared<Scratch>();
  return found;
}

void Workspaces::clear() {
  std::lock_guard lock(mutex_);
  for (const auto& [key, scratch] : scratch_)
    if (!scratch->memory.empty()) runtime().impl().open({key.first.first, key.first.second})->synchronize();
  scratch_.clear();
}

// cuThreadExchangeStreamCaptureMode of the driver that is already loaded.
RelaxedCapture::RelaxedCapture(Device device) {
  if (device.kind != BackendKind::kCuda) return;
  static const auto found = [] {
    void* driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    return driver ? reinterpret_cast<Exchange>(::dlsym(driver, "cuThreadExchangeStreamCaptureMode")) : nullptr;
  }();
  constexpr int kRelaxed = 2;
  mode_ = kRelaxed;
  if (found && found(&mode_) == 0) exchange_ = found;
}

RelaxedCapture::~RelaxedCapture() {
  if (exchange_) exchange_(&mode_);
}

const Matrix::Made* Matrix::serving(const PlanOptions& options) const {
  const Made* best = nullptr;
  for (const auto& made : plans_)
    if (made.options.max_m >= options.max_m && made.options.min_m <= options.min_m &&
        same_but_m(made.options, options) && (!best || made.options.max_m < best->options.max_m))
      best = &made;
  return best;
}

MatmulPlan Matrix::plan(PlanOptions options) {
  const auto rounded = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(options.max_m)));
  options.max_m = std::min<std::int64_t>(rounded, INT32_MAX);
  {
    const std::lock_guard lock(mutex_);
    if (const Made* made = serving(options)) return made->plan;
  }
  const RelaxedCapture relaxed(device);
  MatmulPlan plan(runtime(), weights, options);  // may take seconds: no lock meanwhile
  const std::lock_guard lock(mutex_);
  if (const Made* made = serving(options)) return made->plan;  // another thread was faster
  return plans_.emplace_back(Made{options, std::move(plan)}).plan;
}

void Matrix::multiply(const PlanOptions& options, Workspaces& workspaces, void* stream, ConstRows x, Rows out,
                      std::int64_t m, RunInputs inputs) {
  if (m == 0) return;
  PlanOptions wanted = options;
  wanted.max_m = m, wanted.own_workspace = false;
  const MatmulPlan plan = this->plan(wanted);
  const auto scratch = workspaces.get(device, stream);
  std::lock_guard lock(scratch->mutex);
  inputs.workspace = scratch->reserve(device, plan.workspace_bytes());
  plan.run({stream}, x, out, m, inputs);
}

std::int64_t check_operands(const char* call, const Matrix& matrix, const Array& x, const RowsOf& x_rows,
                            const Array& out, const RowsOf& out_rows, std::int64_t columns) {
  const auto k = matrix.weights.k(), n = columns ? columns : matrix.weights.n();
  for (const Array* a : {&x, &out}) {
    check(!a->meta, "{}: {} is on the meta device and has no memory", call, a->name);
    check(a->device == matrix.device, "{}: {} is on {}, but the matrix is on {}: move it there", call, a->name,
          a->device.str(), matrix.device.str());
  }
  check(x.dtype == DType::kF16 || x.dtype == DType::kBF16 || x.dtype == DType::kF32,
        "{}: x has dtype {}; it must be float16, bfloat16 or (on the CPU) float32", call, to_string(x.dtype));
  check(x_rows.cols == k, "{}: x has shape {}; its last dimension must be k = {} of the matrix", call, x.shape_text(),
        k);
  check(out_rows.cols == n && out_rows.rows == x_rows.rows,
        "{}: out has shape {}; with {} rows of x it must be [{}, {}]", call, out.shape_text(), x_rows.rows, x_rows.rows,
        n);
  check(out.dtype == x.dtype, "{}: out has dtype {}, x has {}; they must be the same", call, to_string(out.dtype),
        to_string(x.dtype));
  check(out.writable, "{}: out is read-only; pass memory that can be written", call);
  return x_rows.rows;
}

ConstRows check_residual(const char* call, const Array& residual, const Array& out) {
  check(!residual.meta && residual.device == out.device && residual.dtype == out.dtype,
        "{}: residual is {} on {}{}; out is {} on {}: make them alike", call, to_string(residual.dtype),
        residual.device.str(), residual.meta ? " (meta)" : "", to_string(out.dtype), out.device.str());
  bool same = residual.dims == out.dims;
  for (int i = 0; same && i < out.dims; ++i) same = residual.shape[i] == out.shape[i];
  check(same, "{}: residual has shape {}; it must be that of the result, {}", call, residual.shape_text(),
        out.shape_text());
  return {residual.data, rows_of(call, residual).stride};
}

void* stream_of(const char* call, nb::handle stream, const Array& x) {
  if (stream.is_none()) return current_stream(x);
  nb::object number = nb::borrow(stream);
  for (const char* name : {"cuda_stream", "ptr"})
    if (nb::hasattr(stream, name)) number = stream.attr(name);
  if (!PyLong_Check(number.ptr()))
    throw nb::type_error(fmt::format("{}: stream is {}; it must be None, an int, or a stream of torch or CuPy", call,
                                     nb::str(stream.type()).c_str())
                             .c_str());
  return reinterpret_cast<void*>(PyLong_AsSize_t(number.ptr()));
}

}  // namespace q4::python
