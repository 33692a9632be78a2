// What CUDA and HIP must provide; everything above (packing, plans, caching) is written once, in this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <q4/device.hpp>
#include <string>
#include <vector>

#include "kernels/device_limits.h"
#include "runtime/backends/backend.hpp"
#include "runtime/base/memory.hpp"
#include "runtime/choose/launch.hpp"
#include "runtime/jit/source.hpp"

namespace q4::gpu {

/// A loaded kernel. Destroying it unloads its module.
class Function {
 public:
  virtual ~Function() = default;
};

using q4::LaunchShape;

/// A GEMM out[m, n] = x[m, k] w[k, n] (+ bias[n]) of 16-bit types with fp32 sums, all row-major.
struct GemmShape {
  std::int64_t n = 0, k = 0;
  std::int64_t typical_m = 1;  ///< the algorithm is chosen for this m and serves any
  bool bf16 = false, bias = false;
};
class Gemm {
 public:
  virtual ~Gemm() = default;
  virtual void run(void* stream, std::int64_t m, const void* x, std::int64_t x_stride, const void* w,
                   std::int64_t w_stride, void* out, std::int64_t out_stride, const void* bias,
                   void* workspace) const = 0;
  virtual std::size_t workspace_bytes() const = 0;
};

/// A tensor-copy descriptor (CUtensorMap), encoded for one call.
struct alignas(64) TensorMapBytes {
  std::uint64_t words[16];
};
/// A row-major 16-bit matrix seen in boxes of `box_rows` x `box_cols`, zero fill outside; 128-byte swizzle, 64-byte for
/// 32 columns.
struct TensorMapShape {
  const void* data;
  std::int64_t rows, cols, row_stride;
  int box_rows, box_cols;
  bool bf16;
};

/// One device of one vendor. Thread-safe; every call makes its context current and leaves the caller's as it was.
class Driver {
 public:
  virtual ~Driver() = default;
  virtual const DeviceInfo& info() const = 0;
  virtual Limits limits() const = 0;

  /// All memory goes through the ledger, which the device opens with take() and give() as its own functions.
  MemoryLedger& ledger() { return ledger_; }
  virtual void* take(std::size_t bytes) = 0;
  virtual void give(void* memory) noexcept = 0;
  virtual void copy(void* to, const void* from, std::size_t bytes, CopyKind kind) = 0;
  virtual void fill(void* memory, int byte, std::size_t bytes) = 0;
  /// Host memory that copies to the device read by themselves; null: this driver gives none.
  virtual void* take_pinned(std::size_t /*bytes*/) { return nullptr; }
  virtual void give_pinned(void* /*memory*/) noexcept {}
  /// Begins a copy of pinned memory to the device in a lane, a small number from 0; the lane is free again when
  /// finish_copy() returns.
  virtual void begin_copy(void* /*to*/, const void* /*pinned*/, std::size_t /*bytes*/, int /*lane*/) {}
  virtual void finish_copy(int /*lane*/) {}
  /// What is launched in the default stream from now on begins when every copy begun before is there, and copies begun
  /// from now on when what was launched before has ended. The host does not wait.
  virtual void cross() {}
  virtual void synchronize() = 0;
  virtual std::unique_ptr<CapturedWork> capture(const std::function<void(void* stream)>& work) = 0;
  /// Whether `memory` can be used by kernels on this device: a pointer of this device, managed or registered memory.
  /// Else the reason is what it is. Costs well under a microsecond and is allowed during capture.
  virtual Result<void> reachable(const void* memory) const = 0;

  /// Whether the run-time compiler is there and knows this device; else what to do.
  virtual Result<void> can_compile() = 0;
  /// Identity of the compiler for cache keys: "nvrtc 13.0.88 libnvrtc.so.13". Loads it. Throws kUnsupported if absent.
  virtual std::string compiler() = 0;
  /// Canonical options, part of the cache key.
  virtual std::vector<std::string> options() const = 0;
  /// Exact code for this device (cubin, code object). `log`: the compiler's messages, warnings included. Throws
  /// kCompile with the log.
  virtual std::vector<char> compile(const jit::Source& source, std::string& log) = 0;
  virtual std::unique_ptr<Function> load(const std::vector<char>& code, const std::string& name) = 0;
  /// `parameters[i]` points to the i-th kernel parameter.
  virtual void launch(const Function& function, const LaunchShape& shape, void* stream, void** parameters) const = 0;
  virtual TensorMapBytes encode(const TensorMapShape& shape) const = 0;
  virtual std::unique_ptr<Gemm> gemm(const GemmShape& shape) = 0;  ///< throws kUnsupported if no BLAS is there

 private:
  MemoryLedger ledger_;
};

}  // namespace q4::gpu
