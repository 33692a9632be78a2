// What a backend must provide. Adding one: a folder that implements Backend and DeviceBackend, and a line in runtime/backends.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <q4/device.hpp>
#include <q4/matmul.hpp>
#include <q4/tuning.hpp>
#include <string>
#include <vector>

#include "runtime/backends/adapters.hpp"
#include "runtime/backends/segments.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/memory.hpp"
#include "runtime/base/result.hpp"
#include "runtime/choose/shape.hpp"

namespace q4 {

/// A validated matrix on its way to a device: small tensors on the host in plain form, codes as they were given.
struct MatrixSource : MatrixShape {
  /// GPTQ's [k/8, n], or AWQ's [k, n/8] in its nibble order. Contiguous; in host memory, or on the target device if
  /// qweight_on_device.
  const std::uint32_t* qweight = nullptr;
  /// Instead of qweight, in host memory: columns side by side, `width` words of each row.
  struct Piece {
    const std::uint32_t* words = nullptr;
    std::int64_t width = 0, row_stride = 0;  ///< in words
  };
  std::vector<Piece> pieces;
  bool qweight_on_device = false;
  std::vector<std::uint8_t> zeros;    ///< [groups, n], 0..15, as they enter (q - zero)
  std::vector<std::uint16_t> scales;  ///< [groups, n] fp16 bits
  std::vector<float> bias;            ///< [n] or empty
  std::vector<std::int32_t> g_idx;    ///< [k] or empty (no act-order)
  /// Instead of `zeros` and `scales`: qzeros as words, zero = stored + zero_add, and fp16 [groups, n], both
  /// contiguous, where qweight is: on the device or on the host.
  const std::uint32_t* device_qzeros = nullptr;
  const std::uint16_t* device_scales = nullptr;
  int zero_add = 0;
  /// qweight's own memory, which the packed codes may take where they fit; then device_scales and device_qzeros, which
  /// scales and zeros may take.
  void* reuse = nullptr;
  std::size_t scratch_bytes = 64 << 20;  ///< device memory that packing may take for a time
  RowOrder order;
};

/// What a PackedMatrix was made of: its MatrixSource again, bit for bit, with memory of its own.
struct UnpackedSource {
  std::vector<std::uint32_t> qweight;
  std::vector<std::uint8_t> zeros;
  std::vector<std::uint16_t> scales;
  std::vector<std::int32_t> g_idx;  ///< empty without act-order
  std::vector<float> bias;
};

/// Weights in a backend's own layout and memory.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual std::size_t bytes() const = 0;
  virtual UnpackedSource unpack() const = 0;
  /// Other weights in the same places, after the earlier work of the stream and before its later work. `source` has the
  /// same numbers, row order's k and unit among them. Allocates what it needs before it writes anything.
  virtual void update(const MatrixSource& source, void* stream) = 0;
  virtual bool in_place() const { return false; }         ///< the codes are in MatrixSource::reuse
  virtual bool scales_in_place() const { return false; }  ///< scales and zeros are in device_scales and device_qzeros
  virtual void restore() {}  ///< in_place(): puts the tensors back there; unusable afterwards
};

/// What a plan's epilogue and norm read in one run; null where it does not.
struct EpilogueInputs {
  const void* residual = nullptr;
  std::int64_t residual_stride = 0;
  const AdapterTable* adapters = nullptr;  ///< one of make_adapters()'s
  const std::int32_t* adapter_of_row = nullptr;
  const void* norm_weight = nullptr;
};

/// One prepared multiplication; see MatmulPlan for what run() promises. Arguments are already checked: pointers
/// aligned, strides resolved, 1 <= m <= max_m. `workspace` null: the plan's own.
class PlanBackend {
 public:
  virtual ~PlanBackend() = default;
  virtual void run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride,
                   std::int64_t m, void* workspace, const EpilogueInputs& inputs = {}) const = 0;
  virtual std::size_t workspace_bytes() const = 0;
  virtual std::string tactic(std::int64_t m) const = 0;
  virtual std::vector<std::string> tactics(std::int64_t m) const = 0;
};

// Mixtures of experts: runtime/backends/experts.hpp.
struct ExpertsShape;
class PackedExperts;
struct MoeCall;
struct GroupedCall;
template <class Call>
class ExpertsPlanBackend;
struct MoeOptions;
struct GroupedOptions;

enum class CopyKind { kToDevice, kToHost, kOnDevice };

/// Work captured into a graph, for who measures it. Must not outlive its device.
class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
  /// Runs it once between two events and waits: the microseconds between them.
  virtual double replay() = 0;
};

/// One open device. Thread-safe. `stream` arguments are native handles, null: the default stream.
class DeviceBackend {
 public:
  virtual ~DeviceBackend() = default;
  virtual const DeviceInfo& info() const = 0;
  const DeviceTraits& traits() const { return traits_of(info().device); }

  virtual MemoryLedger& ledger() = 0;  ///< of all of the device's memory, which Buffers own
  virtual void trim() {}               ///< frees what loads keep for the next load
  virtual void copy(void* to, const void* from, std::size_t bytes, CopyKind kind) = 0;  ///< synchronous
  virtual void fill(void* memory, int byte, std::size_t bytes) = 0;                     ///< synchronous
  virtual void synchronize() = 0;
  /// Whether matrices can be packed and plans made here: a GPU needs a compiler that knows it.
  virtual Result<void> ready() = 0;
  /// Whether kernels of this device can use `memory`; else what it is.
  virtual Result<void> reachable(const void* memory) const = 0;
  /// What `work` launches on the stream that it is given, which nothing executes yet. Null where there are no graphs:
  /// calling the work is all there is.
  virtual std::unique_ptr<CapturedWork> capture(const std::function<void(void* stream)>& /*work*/) { return nullptr; }

  virtual std::unique_ptr<PackedMatrix> pack(const MatrixSource& source) = 0;
  /// `matrix` is one of pack()'s, and remembers the shape. `tuned` may be null.
  virtual std::unique_ptr<PlanBackend> plan(std::shared_ptr<const PackedMatrix> matrix, const PlanOptions& options,
                                            const TuningRecord* tuned) = 0;
  /// Memory for experts of this shape, without content. A device without kernels for them throws kUnsupported, here and
  /// in the plans.
  virtual std::unique_ptr<PackedExperts> make_experts(const ExpertsShape& shape);
  /// The arguments are make_experts()'s of this device, and options that are already checked against them. `tuned` may be
  /// null.
  virtual std::unique_ptr<ExpertsPlanBackend<MoeCall>> plan_moe(std::shared_ptr<const PackedExperts> w13,
                                                                std::shared_ptr<const PackedExperts> w2,
                                                                const MoeOptions& options, const TuningRecord* tuned);
  virtual std::unique_ptr<ExpertsPlanBackend<GroupedCall>> plan_grouped(std::shared_ptr<const PackedExperts> experts,
                                                                        const GroupedOptions& options);
  virtual std::unique_ptr<AdapterTable> make_adapters(const AdaptersShape& shape) = 0;
  /// One for each kernel that a matrix of these rows and plans of it load: finds or compiles it, keeps it loaded, and
  /// never throws. None where nothing is compiled.
  struct WarmupJob {
    std::string kernel;  ///< equal kernels have equal texts
    std::function<CacheEvent()> run;
  };
  virtual std::vector<WarmupJob> warmup(const MatrixShape& /*shape*/, const PlanOptions& /*options*/,
                                        const TuningRecord* /*tuned*/) {
    return {};
  }
  /// The same of experts of these shapes and plans of them.
  virtual std::vector<WarmupJob> warmup(const ExpertsShape& /*w13*/, const ExpertsShape& /*w2*/,
                                        const MoeOptions& /*options*/, const TuningRecord* /*tuned*/) {
    return {};
  }
  /// What decides the bits of such plans' results beside the device's architecture and kernels_digest(), as text.
  virtual std::string numerics(const MatrixShape& shape, const PlanOptions& options, const TuningRecord* tuned) = 0;
  /// A host x_map is already checked; one in device memory is bounded by the kernel: an entry outside [0, x_cols) gives
  /// 0.
  virtual void column_remap(void* stream, const void* x, std::int64_t x_stride, std::int64_t x_cols, void* x_new,
                            std::int64_t x_new_stride, const std::int32_t* x_map, std::int64_t cols,
                            std::int64_t rows) = 0;
  /// Asynchronous on a GPU.
  virtual void multiply_segments(void* stream, const SegmentCall& call) = 0;
  /// What tuning records of this device are measured with: one digest, or "name:digest" of each kernel, so that a record
  /// is stale only when a kernel of its own tactics changed.
  virtual std::string kernels_digest() const = 0;
  /// Why tactics of a record cannot be used: one text for each that this version does not know.
  virtual std::vector<std::string> unknown_tactics(const TuningRecord& /*record*/) const { return {}; }
};

/// What a backend gets from the Runtime that opens it.
struct BackendContext;

/// A family of devices. Enumerating never throws: what is missing is in status().
class Backend {
 public:
  virtual ~Backend() = default;
  virtual BackendKind kind() const = 0;
  virtual BackendStatus status() = 0;
  virtual std::vector<DeviceInfo> devices() = 0;
  virtual std::shared_ptr<DeviceBackend> open(int ordinal) = 0;  ///< 0 <= ordinal < devices().size()
};

/// The list. `context` outlives the backends.
std::vector<std::unique_ptr<Backend>> make_backends(const BackendContext& context);

}  // namespace q4
