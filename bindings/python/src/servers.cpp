// Handles, qweight in place, and kernels ahead of use.
#include "bindings/python/src/servers.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/runtime.hpp"

namespace q4::python {
namespace {

constexpr int kServerShift = 62, kEpochShift = 32;
constexpr const char* kNames[] = {"exllama_kernels", "exllamav2_kernels"};
constexpr const char* kMakers[] = {"make_q4", "make_q_matrix"};

/// A tensor's memory, in which a part of a matrix is now.
struct Taken {
  std::uintptr_t end;
  int role;  // of the tensor: its place in ServerTensors
  std::weak_ptr<Matrix> matrix;
  nb::object tensor;
};
/// By where it begins; the GIL guards it. Never destroyed: the interpreter may be gone before.
std::map<std::uintptr_t, Taken>& taken() {
  static auto* all = new std::map<std::uintptr_t, Taken>;
  return *all;
}
std::uintptr_t begin_of(const Array& a) { return reinterpret_cast<std::uintptr_t>(a.data); }
std::uintptr_t end_of(const Array& a) { return begin_of(a) + static_cast<std::size_t>(a.size()) * size_of(a.dtype); }

/// The matrix that took this tensor, or nothing where no other tensor may be in this memory. Throws where one is in a
/// part of it. `n`: columns of the matrix that is loaded.
std::shared_ptr<Matrix> find_taken(const char* call, const Array& tensor, int role, std::int64_t n) {
  const auto begin = begin_of(tensor), end = end_of(tensor);
  for (const auto& [at, other] : taken()) {
    if (end <= at || other.end <= begin) continue;
    const auto matrix = other.matrix.lock();
    if (!matrix) continue;
    check(at == begin && other.end == end && matrix->weights.n() == n && other.role == role,
          "{}: {} overlaps memory in which an earlier matrix was packed ({} x {}): pass the same tensor again, or set "
          "Q4_KEEP_QWEIGHT=1 before the first load",
          call, tensor.name, matrix->weights.k(), matrix->weights.n());
    return matrix;
  }
  return nullptr;
}

std::vector<std::uint8_t> host_bytes(DeviceBackend& device, const TensorView& view) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(view.rows * view.cols) * size_of(view.dtype));
  if (view.device)
    device.copy(bytes.data(), view.data, bytes.size(), CopyKind::kToHost);
  else if (!bytes.empty())
    std::memcpy(bytes.data(), view.data, bytes.size());
  return bytes;
}

/// The tensors beside qweight must be those that the matrix was made of; `same_memory`: they are, without looking.
void check_same(const char* call, const Matrix& matrix, const GptqTensors& tensors, bool same_memory) {
  const UnpackedMatrix before = matrix.weights.unpack();
  const auto device = runtime().impl().open(matrix.device);
  const auto same = [&](const char* name, const TensorView& now, const auto& then) {
    const auto bytes = host_bytes(*device, now);
    check((now.row_stride < 0 || now.row_stride == now.cols) && bytes.size() == then.size() * sizeof(then[0]) &&
              std::memcmp(bytes.data(), then.data(), bytes.size()) == 0,
          "{}: qweight was given before and packed in place, with other {}: pass the same tensors again, or set "
          "Q4_KEEP_QWEIGHT=1 before the first load",
          call, name);
  };
  if (!same_memory) same("qzeros", tensors.qzeros, before.qzeros), same("scales", tensors.scales, before.scales);
  if (tensors.g_idx && tensors.g_idx->dtype == DType::kI32 && !before.g_idx.empty())
    same("g_idx", *tensors.g_idx, before.g_idx);
}

bool keeps_qweight() {
  const std::string keep = setting("Q4_KEEP_QWEIGHT");
  check(keep.empty() || keep == "0" || keep == "1",
        "Q4_KEEP_QWEIGHT = '{}'; it must be 0 (qweight is packed in place) or 1 (it is left as it is)", keep);
  return keep == "1";
}

}  // namespace

std::int64_t Handles::add(std::shared_ptr<Matrix> matrix) {
  matrices_.push_back(std::move(matrix));
  return static_cast<std::int64_t>(server_) << kServerShift | epoch_ << kEpochShift |
         static_cast<std::int64_t>(matrices_.size());
}

std::size_t Handles::index(const char* call, std::int64_t handle) const {
  const auto mine = static_cast<std::size_t>(server_), other = 1 - mine;
  const std::int64_t epoch = handle >> kEpochShift & 0x3fffffff, at = (handle & 0xffffffff) - 1;
  check(handle < 0 || handle >> kServerShift != static_cast<std::int64_t>(other) || epoch == 0,
        "{}: handle {} is of {}; pass one that {} of {} returned", call, handle, kNames[other], kMakers[mine],
        kNames[mine]);
  const bool known = handle >> kServerShift == static_cast<std::int64_t>(mine);
  check(!known || epoch < 1 || epoch >= epoch_, "{}: handle {} is stale: cleanup() freed its matrix; call {} again",
        call, handle, kMakers[mine]);
  check(known && epoch == epoch_ && at >= 0 && at < static_cast<std::int64_t>(matrices_.size()),
        "{}: {} is not a valid handle; pass what {} returned", call, handle, kMakers[mine]);
  check(matrices_[static_cast<std::size_t>(at)] != nullptr,
        "{}: handle {} is stale: its matrix was freed; call {} again", call, handle, kMakers[mine]);
  return static_cast<std::size_t>(at);
}

const std::shared_ptr<Matrix>& Handles::find(const char* call, std::int64_t handle) const {
  return matrices_[index(call, handle)];
}

void Handles::remove(const char* call, std::int64_t handle) { unload({std::move(matrices_[index(call, handle)])}); }

std::vector<std::shared_ptr<Matrix>> Handles::clear() {
  ++epoch_;
  return std::exchange(matrices_, {});
}

std::shared_ptr<Matrix> load_for_server(const char* call, const ServerTensors& given, GptqTensors tensors) {
  const Array &codes = given.qweight, &zeros = given.qzeros, &scales = given.scales;
  const std::int64_t n = codes.shape[1];
  finish_torch_stream(codes.device);
  const auto before = find_taken(call, codes, 0, n), of_zeros = find_taken(call, zeros, 1, n),
             of_scales = find_taken(call, scales, 2, n);
  if (before) {
    const GilRelease release;
    check_same(call, *before, tensors, of_zeros == before && of_scales == before);
    return before;
  }
  MatrixOptions options;
  const bool writable = codes.writable && zeros.writable && scales.writable;
  if (!traits_of(codes.device).host_addressable && writable && !keeps_qweight()) options.storage = Storage::kReuse;
  std::shared_ptr<Matrix> matrix;
  {
    const GilRelease release;
    UnpackedMatrix zeros_were, scales_were;  // tensors that several layers share hold an earlier layer's now
    if (of_zeros) zeros_were = of_zeros->weights.unpack(), tensors.qzeros = zeros_were.gptq().qzeros;
    if (of_scales) scales_were = of_scales->weights.unpack(), tensors.scales = scales_were.gptq().scales;
    matrix = std::make_shared<Matrix>(QuantizedMatrix::from_gptq(runtime(), codes.device, tensors, options));
  }
  if (!matrix->weights.in_place()) return matrix;
  const Array* arrays[] = {&codes, &zeros, &scales};
  for (int role = 0; role < (matrix->weights.scales_in_place() ? 3 : 1); ++role)
    taken()[begin_of(*arrays[role])] = {end_of(*arrays[role]), role, matrix, nb::borrow(given.objects[role])};
  static const bool told = [] {
    runtime().impl().log(LogLevel::kWarning,
                         "qweight, qzeros and scales are packed in place, so that weights are held once: their content "
                         "changes until cleanup(); Q4_KEEP_QWEIGHT=1 keeps them (docs/migration.md)");
    return true;
  }();
  static_cast<void>(told);
  return matrix;
}

void unload(std::vector<std::shared_ptr<Matrix>> matrices) {
  std::sort(matrices.begin(), matrices.end());
  matrices.erase(std::unique(matrices.begin(), matrices.end()), matrices.end());
  std::vector<nb::object> released;  // tensors that nobody else may have
  for (auto it = taken().begin(); it != taken().end();) {
    const bool goes = std::any_of(matrices.begin(), matrices.end(), [&](const auto& matrix) {
      return matrix && matrix.use_count() == 1 && matrix == it->second.matrix.lock();
    });
    if (goes) released.push_back(std::move(it->second.tensor));
    it = goes ? taken().erase(it) : std::next(it);
  }
  {
    const GilRelease release;
    for (const auto& matrix : matrices) {
      if (!matrix || matrix.use_count() > 1) continue;
      try {
        if (!traits_of(matrix->device).host_addressable) runtime().impl().open(matrix->device)->synchronize();
        matrix->weights.restore();
      } catch (const Error& error) {
        runtime().impl().log(LogLevel::kWarning,
                             fmt::format("cleanup: the tensors of a {} x {} matrix were not restored: {}",
                                         matrix->weights.k(), matrix->weights.n(), error.what()));
      }
    }
    matrices.clear();
    runtime().trim();
  }
}

// ---- kernels ahead of use -------------------------------------------------------------------------------------------
CompileAhead& compile_ahead() {
  static auto* one = new CompileAhead;  // never destroyed: see runtime()
  return *one;
}

void CompileAhead::rows(Device device, std::int64_t rows) {
  if (!traits_of(device).compiles) return;
  const std::lock_guard lock(mutex_);
  auto& most = rows_[{device.kind, device.ordinal}];
  most = std::max<std::int64_t>(most, std::min<std::int64_t>(rows, INT32_MAX / 2));
  start();
}

void CompileAhead::shape(const Matrix& matrix, const PlanOptions& options) {
  if (!traits_of(matrix.device).compiles) return;
  const auto& w = matrix.weights;
  const WarmupShape shape{w.k(), w.n(), w.group_size(), w.act_order(), w.has_bias(), false, w.scales_in_place()};
  const std::lock_guard lock(mutex_);
  for (const auto& known : shapes_)
    if (known.device == matrix.device && known.shape == shape &&
        known.options.reconstruct_from == options.reconstruct_from && known.options.math == options.math &&
        known.options.gather == options.gather)
      return;
  shapes_.push_back({matrix.device, shape, options});
  start();
}

void CompileAhead::start() {
  if (process_ != getpid()) {  // a child of fork() has no such thread
    if (thread_.joinable()) new std::thread(std::move(thread_));
    process_ = getpid(), running_ = false;
  }
  if (running_ || stopping_) return;
  if (thread_.joinable()) thread_.join();  // it has ended
  running_ = true;
  thread_ = std::thread([this] { work(); });
}

void CompileAhead::work() {
  constexpr std::int64_t kDecodeRows = 8;  // before prepare_buffers says how many
  for (;;) {
    std::vector<WarmupShape> shapes;
    WarmupOptions options;
    {
      std::unique_lock lock(mutex_);
      for (auto& known : shapes_) {
        const auto said = rows_.find({known.device.kind, known.device.ordinal});
        const auto most = static_cast<std::int64_t>(std::bit_ceil(
            static_cast<std::uint64_t>(said == rows_.end() ? kDecodeRows : std::max(said->second, kDecodeRows))));
        const bool together =
            shapes.empty() || (known.device == *options.device && most == options.plan.max_m &&
                               known.options.reconstruct_from == options.plan.reconstruct_from &&
                               known.options.math == options.plan.math && known.options.gather == options.plan.gather);
        if (known.done >= most || !together) continue;
        options.device = known.device, options.plan = known.options, options.plan.max_m = most;
        shapes.push_back(known.shape);
        known.done = most;
      }
      if (shapes.empty() || stopping_) {
        running_ = false;
        changed_.notify_all();
        return;
      }
    }
    options.cancel = [this] {
      const std::lock_guard lock(mutex_);
      return stopping_;
    };
    try {
      runtime().warmup(shapes, options);
    } catch (const std::exception& error) {  // the call that needs the kernel will say it again
      runtime().impl().log(LogLevel::kWarning, std::string("kernels could not be compiled ahead: ") + error.what());
    }
  }
}

void CompileAhead::finish() {
  std::unique_lock lock(mutex_);
  if (process_ != getpid()) return;
  changed_.wait(lock, [this] { return !running_; });
}

void CompileAhead::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (process_ != getpid()) return;
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  stopping_ = false;
}

void check_half_rows(const char* call, const Array& x, const Array& out) {
  for (const Array* a : {&x, &out}) {
    check(a->dtype == DType::kF16, "{}: {} has dtype {}; it must be float16", call, a->name, to_string(a->dtype));
    check(a->dims == 2, "{}: {} has shape {}; it must have two dimensions: use view(-1, {})", call, a->name,
          a->shape_text(), a == &x ? "k" : "n");
  }
}

void serve(const char* call, const std::shared_ptr<Matrix>& matrix, const Array& x, const Array& out,
           const PlanOptions& options, Workspaces& workspaces) {
  const RowsOf x_rows = rows_of(call, x), out_rows = rows_of(call, out);
  const auto m = check_operands(call, *matrix, x, x_rows, out, out_rows);
  if (m == 0) return;
  void* stream = torch_stream(matrix->device);
  PlanOptions wanted = options;  // a plan for this power of two alone: it waits for no other kernel
  wanted.min_m = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(m))) / 2 + 1;
  const auto kept = matrix;
  const GilRelease release;
  kept->multiply(wanted, workspaces, stream, {x.data, x_rows.stride}, {out.data, out_rows.stride}, m);
}

}  // namespace q4::python
