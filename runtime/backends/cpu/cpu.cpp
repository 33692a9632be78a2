// The CPU as a Backend with one device.
#include "runtime/backends/cpu/cpu.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "runtime/backends/context.hpp"
#include "runtime/backends/cpu/adapters.hpp"
#include "runtime/backends/cpu/blas.hpp"
#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/moe_plan.hpp"
#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/cpu/plan.hpp"
#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4 {
namespace cpu {
namespace {

std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "CPU";
}

std::size_t system_value(int name) {
  const long value = sysconf(name);
  return value > 0 ? std::size_t(value) : 0;
}

DeviceInfo describe(const char* isa, int threads) {
  DeviceInfo info;
  info.device = {BackendKind::kCpu, 0};
  info.name = model_name();
  info.arch = isa;
  info.compute_units = threads;
  info.memory_bytes = system_value(_SC_PHYS_PAGES) * system_value(_SC_PAGESIZE);
#if defined(_SC_LEVEL3_CACHE_SIZE)
  info.l2_bytes = std::max(system_value(_SC_LEVEL3_CACHE_SIZE), system_value(_SC_LEVEL2_CACHE_SIZE));
#endif
  info.fingerprint = fmt::format("{}, {}, {} threads, {} KiB cache, {} MiB", info.name, info.arch, threads,
                                 info.l2_bytes >> 10, info.memory_bytes >> 20);
  return info;
}

class CpuDevice final : public DeviceBackend {
 public:
  CpuDevice(const Kernels& kernels, int threads, const BackendContext& context)
      : kernels_(kernels), info_(describe(kernels.isa, threads)), pool_(threads, context.options.parallel_for) {
    ledger_->open(info_.device, context.options.allocator, context.seal, {allocate_aligned, std::free, true});
  }

  const DeviceInfo& info() const override { return info_; }
  MemoryLedger& ledger() override { return *ledger_; }
  void copy(void* to, const void* from, std::size_t bytes, CopyKind) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  void fill(void* memory, int byte, std::size_t bytes) override {
    if (bytes > 0) std::memset(memory, byte, bytes);
  }
  void synchronize() override {}
  Result<void> ready() override { return {}; }
  Result<void> reachable(const void*) const override { return {}; }

  std::unique_ptr<PackedMatrix> pack(const MatrixSource& source) override { return cpu::pack(source, pool_, ledger_); }
  std::unique_ptr<PlanBackend> plan(std::shared_ptr<const PackedMatrix> matrix, const PlanOptions& options,
                                    const TuningRecord* tuned) override {
    return std::make_unique<CpuPlan>(std::static_pointer_cast<const CpuMatrix>(std::move(matrix)), kernels_, pool_,
                                     ledger_, options, tuned);
  }

  std::string numerics(const MatrixShape&, const PlanOptions& options, const TuningRecord* tuned) override {
    const auto from = options.reconstruct_from != 0 ? options.reconstruct_from : tuned ? tuned->reconstruct_from : 0;
    return fmt::format("{} {} {}", from, options.batch_invariant, from < 0 ? "" : blas().name);
  }

  std::unique_ptr<PackedExperts> make_experts(const ExpertsShape& shape) override {
    return std::make_unique<CpuExperts>(shape, pool_, ledger_);
  }
  std::unique_ptr<MoePlanBackend> plan_moe(std::shared_ptr<const PackedExperts> w13,
                                           std::shared_ptr<const PackedExperts> w2, const MoeOptions& options,
                                           const TuningRecord*) override {
    return cpu::plan_moe(std::static_pointer_cast<const CpuExperts>(std::move(w13)),
                         std::static_pointer_cast<const CpuExperts>(std::move(w2)), options,
                         {kernels_, pool_, ledger_});
  }
  std::unique_ptr<GroupedPlanBackend> plan_grouped(std::shared_ptr<const PackedExperts> experts,
                                                   const GroupedOptions& options) override {
    return cpu::plan_grouped(std::static_pointer_cast<const CpuExperts>(std::move(experts)), options,
                             {kernels_, pool_, ledger_});
  }
  std::unique_ptr<AdapterTable> make_adapters(const AdaptersShape& shape) override {
    return std::make_unique<CpuAdapters>(shape);
  }

  void column_remap(void*, const void* x, std::int64_t x_stride, std::int64_t x_cols, void* x_new,
                    std::int64_t x_new_stride, const std::int32_t* x_map, std::int64_t cols,
                    std::int64_t rows) override {
    pool_.run(rows, [&](std::int64_t row, int) {
      const auto* from = static_cast<const std::uint16_t*>(x) + row * x_stride;
      auto* to = static_cast<std::uint16_t*>(x_new) + row * x_new_stride;
      for (std::int64_t col = 0; col < cols; ++col)
        to[col] = x_map[col] >= 0 && x_map[col] < x_cols ? from[x_map[col]] : 0;
    });
  }

  void multiply_segments(void*, const SegmentCall& call) override {
    const bool bf16 = call.type == DType::kBF16;
    const auto value = [&](std::uint16_t bits) { return bf16 ? float_from_bf16(bits) : float_from_half(bits); };
    const auto* w = static_cast<const std::uint16_t* const*>(call.w);
    pool_.run(call.m, [&](std::int64_t row, int) {
      const auto* x = static_cast<const std::uint16_t*>(call.x) + row * call.in;
      auto* y = static_cast<std::uint16_t*>(call.y) + row * call.out;
      const auto add = [&](const std::uint16_t* matrix) {
        matrix += call.layer * call.in * call.out;
        for (std::int64_t o = 0; o < call.out; ++o) {
          float sum = 0;
          for (std::int64_t i = 0; i < call.in; ++i)
            sum += value(x[i]) * value(matrix[call.transposed ? o * call.in + i : i * call.out + o]);
          const float v = value(y[o]) + call.scale * sum;
          y[o] = bf16 ? bf16_from_float(v) : half_from_float(v);
        }
      };
      if (call.indices) {
        if (call.indices[row] >= 0 && call.indices[row] < call.count) add(w[call.indices[row]]);
        return;
      }
      for (std::int64_t s = 0; s < call.count; ++s)
        if (row >= call.begin[s] && row < call.end[s]) add(w[s]);
    });
  }

  std::string kernels_digest() const override { return jit::cpu_sources_digest(); }

 private:
  Kernels kernels_;
  DeviceInfo info_;
  ThreadPool pool_;
  std::shared_ptr<MemoryLedger> ledger_ = std::make_shared<MemoryLedger>();  // what it gave out keeps it
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendContext& context) : context_(context) {}

  BackendKind kind() const override { return BackendKind::kCpu; }

  BackendStatus status() override {
    BackendStatus status;
    status.kind = BackendKind::kCpu;
    try {
      status.components.emplace_back("instruction set", kernels().isa);
      status.available = true;
    } catch (const Error& error) { status.reason = error.what(); }
    std::string all;
    for (const char* name : kernel_names()) all += (all.empty() ? "" : " ") + std::string(name);
    status.components.emplace_back("instruction sets of this build", all);
    status.components.emplace_back("threads", std::to_string(threads()));
    status.components.emplace_back("blas", blas().name);
    return status;
  }

  std::vector<DeviceInfo> devices() override {
    try {
      return {describe(kernels().isa, threads())};
    } catch (const Error&) {
      return {};  // status() says why
    }
  }

  std::shared_ptr<DeviceBackend> open(int) override {
    return std::make_shared<CpuDevice>(kernels(), threads(), context_);
  }

 private:
  Kernels kernels() const {
    const std::string& isa = context_.options.cpu_isa;
    return select_kernels((isa.empty() ? setting("Q4_CPU_ISA") : isa).c_str());
  }
  int threads() const { return context_.options.cpu_threads > 0 ? context_.options.cpu_threads : usable_threads(); }

  const BackendContext& context_;
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(const BackendContext& context) {
  return std::make_unique<cpu::CpuBackend>(context);
}

}  // namespace q4
