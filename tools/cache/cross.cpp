// The library's own planning for a GPU that is not here, and the compiler for what it asks for.
#include "tools/cache/cross.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <set>

#include "runtime/backends/cuda/driver.hpp"
#include "runtime/backends/hip/compiler.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/jobs.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/moe_plan.hpp"
#include "runtime/matmul.hpp"
#include "runtime/tuning_key.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

/// Largest shared memory of a block and SMs, as the compute capability and the usual full part of each
/// have them. Only the H200's were read from a device; a wrong number of SMs makes defaults that no plan there asks
/// for.
std::vector<Target> known_targets() {
  constexpr int kRegisters = 65536;
  std::vector<Target> targets = {
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
    targets.push_back({amd.name, amd.products, {0, amd.units, amd.lds_bytes, kRegisters}, BackendKind::kHip, amd.wave});
  return targets;
}

int parse_units(const std::string& target, const std::string& digits) {
  constexpr int kMost = 1024;
  const bool number = !digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == digits.npos;
  const int units = number ? std::stoi(digits) : 0;
  check(units >= 1 && units <= kMost,
        "--target = {}: '{}' is not a number of SMs or CUs in [1, {}]; sm_90a/114 means 114", target, digits, kMost);
  return units;
}

}  // namespace

const std::vector<Target>& all_targets() {
  static const std::vector<Target> targets = known_targets();
  return targets;
}

std::vector<Target> parse_targets(const std::string& text) {
  std::vector<Target> chosen;
  for (const std::string& item : split(text, ",")) {
    const auto slash = std::min(item.find('/'), item.size());
    std::string arch = item.substr(0, slash);
    if (arch == "sm_90" || arch == "sm_100") arch += 'a';  // what a device of that capability asks for
    const int units = slash < item.size() ? parse_units(text, item.substr(slash + 1)) : 0;
    std::vector<std::string> names;
    const std::size_t before = chosen.size();
    for (const Target& target : all_targets()) {
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

cache::KernelKey key_of(const std::string& arch, const jit::Source& source) {
  return gpu::key_of(source, arch, arch.starts_with("gfx") ? hip::compile_options() : cuda::compile_options());
}

struct CrossCompiler::Impl {
  Impl(const Target& target, cache::KernelCache& cache) : limits(target.limits), cache(cache) {
    info.device = {target.kind, 0};
    info.name = target.name, info.arch = target.arch, info.compute_units = target.limits.units;
    info.shared_bytes = static_cast<std::size_t>(target.limits.shared_bytes), info.warp_size = target.warp_size;
  }

  void get(const jit::Source& source) {
    const auto result = cache.get(key_of(info.arch, source), [&] {
      cache::Compiled c;
      if (info.device.kind == BackendKind::kHip)
        c.code = hip.compile(source, info.arch, &c.log), c.compiler = hip.identity(info.arch);
      else
        c.code = nvrtc.get().compile(source, info.arch, cuda::compile_options(), &c.log),
        c.compiler = nvrtc.get().identity();
      return c;
    });
    compiled += result.event.layer == CacheLayer::kCompiler;
  }
  /// What was not asked for yet, side by side on the host's cores; then throws the first failure.
  void get_all(const std::vector<jit::Source>& sources) {
    std::vector<const jit::Source*> fresh;
    for (const auto& source : sources)
      if (seen.insert(source.text).second) fresh.push_back(&source);
    run_jobs(fresh.size(), static_cast<std::size_t>(usable_threads()), [&](std::size_t i) { get(*fresh[i]); });
  }

  DeviceInfo info;
  const Limits limits;
  cache::KernelCache& cache;
  cuda::SharedNvrtc nvrtc;
  hip::Compiler hip;
  std::set<std::string> seen;
  std::atomic<std::size_t> compiled = 0;
};

CrossCompiler::CrossCompiler(const Target& target, cache::KernelCache& cache)
    : impl_(std::make_unique<Impl>(target, cache)) {}
CrossCompiler::~CrossCompiler() = default;

std::vector<jit::Source> CrossCompiler::sources(const autotune::Problem& problem, const CrossOptions& options) {
  const DeviceInfo& info = impl_->info;
  PlanOptions plan;
  plan.max_m = options.max_m, plan.activation = options.activation;
  const TuningRecord* tuned =
      options.tuning ? options.tuning->find(tuning_key(info, tuning_digest(choose::kernel_digests()), problem.k,
                                                       problem.n, problem.group, problem.act_order, options.activation))
                     : nullptr;
  tuned_ += tuned != nullptr;
  const choose::Gpu gpu{info.device.str(), info.arch, impl_->limits};
  std::vector<jit::Source> all;
  for (const bool awq : {false, true}) {  // the packing kernel of either kind of checkpoint
    const auto shape =
        matrix_shape(problem.k, problem.n, problem.group, problem.act_order, options.bias, awq, options.in_place);
    for (const TuningRecord* record : {static_cast<const TuningRecord*>(nullptr), tuned})
      for (auto& source : choose::sources(shape, choose::choose(shape, plan, gpu, record), gpu.limits))
        all.push_back(std::move(source));
  }
  return all;
}

void CrossCompiler::add(const autotune::Problem& problem, const CrossOptions& options) {
  impl_->get_all(sources(problem, options));
}

std::vector<jit::Source> CrossCompiler::sources(const WarmupExperts& layer, const TuningDb* tuning) {
  const std::int64_t group = layer.group_size > 0 ? layer.group_size : layer.k;
  const TuningRecord* tuned =
      tuning ? tuning->find(tuning_key(impl_->info, tuning_digest(choose::kernel_digests()), layer.k,
                                       layer.n ? layer.n : layer.k, group, layer.act_order, layer.plan.dtype, "cold",
                                       experts_text(layer.experts, layer.plan.topk, layer.width)))
             : nullptr;
  tuned_ += tuned != nullptr;
  const choose::Gpu gpu{impl_->info.device.str(), impl_->info.arch, impl_->limits};
  std::vector<jit::Source> all;
  for (const bool awq : {false, true}) {
    WarmupExperts one = layer;
    one.awq = awq;
    const auto planned = planned_experts(one, impl_->info.device);
    for (const TuningRecord* record : {static_cast<const TuningRecord*>(nullptr), tuned})
      for (auto& source : gpu::moe_layer_sources(planned.w13, planned.w2, layer.plan, gpu, record))
        all.push_back(std::move(source));
  }
  return all;
}

void CrossCompiler::add(const WarmupExperts& layer, const TuningDb* tuning) { impl_->get_all(sources(layer, tuning)); }

std::size_t CrossCompiler::kernels() const { return impl_->seen.size(); }
std::size_t CrossCompiler::compiled() const { return impl_->compiled; }

}  // namespace q4::tools
