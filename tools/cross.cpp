// A GPU that has a compiler and nothing else, under the library's own packing and plans.
#include "tools/cross.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <CLI/CLI.hpp>
#include <mutex>
#include <set>

#include "runtime/backends/cuda/driver.hpp"
#include "runtime/backends/hip/compiler.hpp"
#include "runtime/check.hpp"
#include "runtime/gpu/device.hpp"
#include "runtime/jit/kernel_table.hpp"
#include "runtime/row_order.hpp"
#include "tools/csv.hpp"

namespace q4::tools {
namespace {

/// Largest shared memory of a block and SMs, as the compute capability and the usual full part of each
/// have them. Only the H200's were read from a device; a wrong number of SMs makes defaults that no plan there asks
/// for.
const std::vector<Target>& known_targets() {
  constexpr int kRegisters = 65536;
  static const std::vector<Target> targets = [] {
    std::vector<Target> all = {
        {"sm_100a", "B200", {100, 148, 232448, kRegisters}},
        {"sm_90a", "H100 SXM, H200", {90, 132, 232448, kRegisters}},
        {"sm_90a", "H100 PCIe", {90, 114, 232448, kRegisters}},
        {"sm_89", "L40S", {89, 142, 101376, kRegisters}},
        {"sm_89", "RTX 4090", {89, 128, 101376, kRegisters}},
        {"sm_89", "L4", {89, 58, 101376, kRegisters}},
        {"sm_86", "A40, RTX A6000", {86, 84, 101376, kRegisters}},
        {"sm_86", "RTX 3090", {86, 82, 101376, kRegisters}},
        {"sm_86", "A10", {86, 72, 101376, kRegisters}},
        {"sm_80", "A100", {80, 108, 166912, kRegisters}},
        {"sm_75", "T4", {75, 40, 65536, kRegisters}},
    };
    for (const auto& amd : hip::targets())
      all.push_back({amd.name, amd.products, {0, amd.units, amd.lds_bytes, kRegisters}});
    return all;
  }();
  return targets;
}

/// One loaded function is as good as another: none is launched.
class CompileOnly : public gpu::Driver {
 public:
  explicit CompileOnly(const Target& target)
      : limits_(target.limits), amd_(target.arch.starts_with("gfx") ? hip::find_target(target.arch) : nullptr) {
    info_.device = {amd_ ? BackendKind::kHip : BackendKind::kCuda, 0};
    info_.name = target.name, info_.arch = target.arch, info_.compute_units = target.limits.units;
    info_.shared_bytes = static_cast<std::size_t>(target.limits.shared_bytes), info_.warp_size = amd_ ? amd_->wave : 32;
  }

  const DeviceInfo& info() const override { return info_; }
  Limits limits() const override { return limits_; }
  void* allocate(std::size_t) override { return memory_; }  // never read nor written
  void release(void*) noexcept override {}
  void copy(void*, const void*, std::size_t, CopyKind) override {}
  void fill(void*, int, std::size_t) override {}
  void synchronize() override {}
  std::vector<double> measure(const std::function<void(void*)>&, int) override { absent("measure"); }
  bool reachable(const void*, std::string&) const override { return true; }
  bool can_compile(std::string& problem) override {
    return amd_ ? hip_.knows(info_.arch, problem) : nvrtc_.get().knows(info_.arch, problem);
  }
  std::string compiler() override { return amd_ ? hip_.identity(info_.arch) : nvrtc_.get().identity(); }
  std::vector<std::string> options() const override { return amd_ ? hip::compile_options() : cuda::compile_options(); }
  std::vector<char> compile(const jit::Source& source) override {
    auto code =
        amd_ ? hip_.compile(source, info_.arch) : nvrtc_.get().compile(source, info_.arch, cuda::compile_options());
    ++compiled_;
    return code;
  }
  std::unique_ptr<gpu::Function> load(const std::vector<char>&, const std::string& name) override {
    std::lock_guard lock(mutex_);
    loaded_.insert(name);
    return std::make_unique<gpu::Function>();
  }
  void launch(const gpu::Function&, const gpu::LaunchShape&, void*, void**) const override {}
  gpu::TensorMapBytes encode(const gpu::TensorMapShape&) const override { return {}; }
  std::unique_ptr<gpu::Gemm> gemm(const gpu::GemmShape&) override {
    struct NoGemm : gpu::Gemm {
      void run(void*, std::int64_t, const void*, std::int64_t, const void*, std::int64_t, void*, std::int64_t,
               const void*, void*) const override {}
      std::size_t workspace_bytes() const override { return 0; }
    };
    return std::make_unique<NoGemm>();
  }

  std::size_t loaded() const {
    std::lock_guard lock(mutex_);
    return loaded_.size();
  }
  std::size_t compiled() const { return compiled_; }

 private:
  [[noreturn]] void absent(const char* call) const {
    fail(ErrorCode::kUnsupported, "{}: {} is a target to compile for, not a device", call, info_.arch);
  }

  DeviceInfo info_;
  Limits limits_;
  const hip::Target* amd_;  ///< null: NVIDIA
  alignas(256) std::byte memory_[256] = {};
  cuda::SharedNvrtc nvrtc_;
  hip::Compiler hip_;
  mutable std::mutex mutex_;
  std::set<std::string> loaded_;  ///< by name, which says everything that the source says
  std::atomic<std::size_t> compiled_ = 0;
};

/// Weights of that shape, all zero; with act-order, groups of the right sizes in another order.
MatrixSource blank(const autotune::Problem& p, bool bias) {
  MatrixSource source;
  source.k = p.k, source.n = p.n, source.groups = p.groups(), source.group_size = p.group;
  source.qweight_on_device = true;  // nobody looks
  source.zeros.resize(static_cast<std::size_t>(p.groups() * p.n));
  source.scales.resize(source.zeros.size());
  if (bias) source.bias.resize(static_cast<std::size_t>(p.n));
  if (p.act_order)
    for (std::int64_t r = 0; r < p.k; ++r) source.g_idx.push_back(static_cast<std::int32_t>((p.k - 1 - r) / p.group));
  source.order = make_row_order(p.k, p.group, p.groups(), source.g_idx);
  return source;
}

}  // namespace

std::vector<Target> parse_targets(const std::string& text) {
  std::vector<Target> chosen;
  for (const std::string& item : CLI::detail::split(text, ',')) {
    const auto slash = std::min(item.find('/'), item.size());
    std::string arch = item.substr(0, slash);
    if (arch == "sm_90" || arch == "sm_100") arch += 'a';  // what a device of that capability asks for
    const int units = slash < item.size() ? static_cast<int>(parse_whole(item.substr(slash + 1), "--target")) : 0;
    std::vector<std::string> names;
    const std::size_t before = chosen.size();
    for (const Target& target : known_targets()) {
      if (names.empty() || names.back() != target.arch) names.push_back(target.arch);
      if (target.arch != arch || (units && chosen.size() > before)) continue;
      chosen.push_back(target);
      if (units) chosen.back().limits.units = units, chosen.back().name = fmt::format("{} SMs", units);
    }
    check(chosen.size() > before, "--target = {}: '{}' is unknown; there are {}; sm_90a/114 means 114 SMs", text, item,
          fmt::join(names, ", "));
  }
  check(!chosen.empty(), "--target is empty; write sm_90a or sm_90a,sm_80");
  return chosen;
}

struct CrossCompiler::Impl {
  Impl(const Target& target, cache::KernelCache& cache)
      : context{RuntimeOptions{}, &cache}, driver(std::make_shared<CompileOnly>(target)), device(driver, context) {}
  BackendContext context;
  std::shared_ptr<CompileOnly> driver;
  gpu::GpuDevice device;
};

CrossCompiler::CrossCompiler(const Target& target, cache::KernelCache& cache)
    : impl_(std::make_unique<Impl>(target, cache)) {}
CrossCompiler::~CrossCompiler() = default;

void CrossCompiler::add(const autotune::Problem& problem, const CrossOptions& options) {
  MatrixSource source = blank(problem, options.bias);
  source.awq = true;  // its packing kernel too, for checkpoints of that kind
  impl_->device.pack(source);
  source.awq = false;
  const std::shared_ptr<const PackedMatrix> matrix = impl_->device.pack(source);
  PlanOptions plan;
  plan.max_m = options.max_m, plan.activation = options.activation;
  impl_->device.plan(matrix, plan, nullptr);
  if (options.tuning) {
    const DeviceInfo& info = impl_->driver->info();
    const TuningRecord* tuned = options.tuning->find({info.fingerprint, info.arch, info.compute_units, problem.k,
                                                      problem.n, problem.group, problem.act_order, options.activation});
    if (tuned && tuned->kernels == impl_->device.kernels_digest()) impl_->device.plan(matrix, plan, tuned), ++tuned_;
  }
  const std::int32_t map[8] = {};
  impl_->device.column_remap(nullptr, map, 8, 8, nullptr, 8, map, 8, 1);
}

std::size_t CrossCompiler::kernels() const { return impl_->driver->loaded(); }
std::size_t CrossCompiler::compiled() const { return impl_->driver->compiled(); }

}  // namespace q4::tools
