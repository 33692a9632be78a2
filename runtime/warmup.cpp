// Runtime::warmup: the kernels of many plans, found or compiled side by side under a deadline.
#include <q4/checkpoint.hpp>
#include <q4/warmup.hpp>

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>

#include "runtime/base/check.hpp"
#include "runtime/base/jobs.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/choose/epilogue.hpp"
#include "runtime/choose/given.hpp"
#include "runtime/choose/shape.hpp"
#include "runtime/expert_layers.hpp"
#include "runtime/experts.hpp"
#include "runtime/matmul.hpp"
#include "runtime/runtime.hpp"

namespace q4 {
namespace {

using Clock = std::chrono::steady_clock;
using Jobs = std::vector<DeviceBackend::WarmupJob>;

constexpr auto kAskEvery = std::chrono::milliseconds(50);

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// A server that warms up may be serving already: what it computes goes first.
void lower_priority() {
#if defined(__linux__)
  constexpr int kNice = 10;
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);  // of this thread alone; refusal does no harm
#endif
}

/// Runs jobs and puts their events where the calling thread gets them, which alone talks to the caller.
class Crew {
 public:
  Crew(const Jobs& jobs, std::size_t threads) : runner_([this, &jobs, threads] { work(jobs, threads); }) {}
  ~Crew() { stop(); }  // and waits for the jobs that were begun
  /// No further job is begun.
  void stop() { stopped_ = true; }
  /// The next event; false when nothing came for a while.
  bool next(CacheEvent& event) {
    std::unique_lock lock(mutex_);
    if (!came_.wait_for(lock, kAskEvery, [this] { return !done_.empty() || ended_; }) || done_.empty()) return false;
    event = std::move(done_.front());
    done_.pop_front();
    return true;
  }
  /// No event will come any more.
  bool idle() {
    const std::lock_guard lock(mutex_);
    return done_.empty() && ended_;
  }

 private:
  void work(const Jobs& jobs, std::size_t threads) {
    run_jobs(jobs.size(), threads, [&](std::size_t i) {
      if (stopped_) return;
      lower_priority();
      CacheEvent event = jobs[i].run();
      const std::lock_guard lock(mutex_);
      done_.push_back(std::move(event));
      came_.notify_one();
    });
    const std::lock_guard lock(mutex_);
    ended_ = true;
    came_.notify_one();
  }

  std::atomic<bool> stopped_{false};
  std::mutex mutex_;  // of what follows
  std::condition_variable came_;
  std::deque<CacheEvent> done_;
  bool ended_ = false;
  std::jthread runner_;  // the last: it uses what is above
};

void run(const Jobs& jobs, const WarmupOptions& options, Clock::time_point start, WarmupReport& report) {
  const auto stops = [&] {
    report.past_deadline |= options.deadline_s > 0 && ms_since(start) >= options.deadline_s * 1e3;
    report.cancelled |= !report.cancelled && options.cancel && options.cancel();
    return report.past_deadline || report.cancelled;
  };
  if (!stops()) {
    const auto threads = static_cast<std::size_t>(options.threads);
    Crew crew(jobs, threads ? threads : static_cast<std::size_t>(usable_threads()));
    while (!crew.idle()) {
      CacheEvent event;
      const bool came = crew.next(event);
      if (stops()) crew.stop();
      if (!came) continue;
      report.kernels.push_back(std::move(event));
      if (options.progress) options.progress(report.kernels.size(), jobs.size(), report.kernels.back());
    }
  }
  report.skipped = jobs.size() - report.kernels.size();
  if (report.skipped == 0) report.past_deadline = report.cancelled = false;  // it came too late to matter
}

/// Why plans would run on the CPU by default: what each GPU backend lacks, and each GPU that was passed over.
std::string without_gpu(const Runtime& runtime) {
  std::string reasons;
  const auto add = [&](const std::string& what, const std::string& why) {
    reasons += fmt::format("; {}: {}", what, why);
  };
  for (const BackendStatus& backend : runtime.backends())
    if (traits_of(backend.kind).compiles && !backend.available) add(to_string(backend.kind), backend.reason);
  for (const DeviceInfo& info : runtime.devices()) {
    if (!traits_of(info.device).compiles) continue;
    if (const auto ready = runtime.impl().open(info.device)->ready(); !ready) add(info.device.str(), ready.reason());
  }
  return reasons;
}

/// A service whose GPU is missing is not ready, although the CPU needs no kernels: the CPU must be named.
Device device_to_warm(const Runtime& runtime, const WarmupOptions& options) {
  if (options.device) return *options.device;
  const Device best = runtime.best_device();
  if (!traits_of(best).compiles)
    fail(ErrorCode::kNotFound,
         "Runtime::warmup: there is no GPU to warm up{}; the CPU compiles nothing: name it (device = cpu) if it is "
         "meant",
         without_gpu(runtime));
  return best;
}

}  // namespace

MatrixShape planned_shape(const WarmupShape& shape, const PlanOptions& options) {
  const bool gated = choose::is_gated(options.epilogue.activation);
  auto matrix = matrix_shape(shape.k, shape.n, shape.group_size, shape.act_order, shape.bias, shape.awq,
                             shape.in_place && !gated);
  matrix.gate_up = gated;
  check(!gated || matrix.n % kTileColumns == 0,
        "warmup: n = {} with the activation {}; gates and ups must each be a multiple of 8 columns", matrix.n,
        to_string(options.epilogue.activation));
  return choose::as_read(matrix, options);
}

PlannedExperts planned_experts(const WarmupExperts& layer, Device device) {
  constexpr const char* kCall = "Runtime::warmup_experts";
  const bool gated = layer.plan.activation != MoeActivation::kNone;
  PlannedExperts planned;
  const auto set = [&](ExpertsShape& experts, std::int64_t k, std::int64_t n) {
    static_cast<MatrixShape&>(experts) = matrix_shape(k, n, layer.group_size, layer.act_order, layer.bias, layer.awq);
    experts.experts = layer.experts;
  };
  check(layer.experts >= 1 && layer.experts <= kMostExperts, "{}: experts = {} is outside [1, {}]", kCall,
        layer.experts, kMostExperts);
  constexpr std::int64_t kMostWidth = std::int64_t{1} << 31;  // twice as many columns are still a number
  check(layer.width >= 1 && layer.width <= kMostWidth, "{}: width = {} is outside [1, {}]", kCall, layer.width,
        kMostWidth);
  set(planned.w13, layer.k, gated ? 2 * layer.width : layer.width);
  set(planned.w2, layer.width, layer.n ? layer.n : layer.k);
  planned.w13.gate_up = gated;
  check_moe(kCall, device, planned.w13, planned.w2, layer.plan);
  return planned;
}

std::vector<WarmupShape> warmup_shapes(const Checkpoint& checkpoint) {
  std::vector<WarmupShape> shapes;
  for (const MatrixEntry& entry : checkpoint.matrices()) {
    if (!entry.unsupported.empty()) continue;
    const WarmupShape shape{entry.k,          entry.n,
                            entry.group_size, checkpoint.act_order(entry.name),
                            entry.has_bias,   entry.format == QuantFormat::kAwq};
    if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end()) shapes.push_back(shape);
  }
  return shapes;
}

std::vector<WarmupExperts> warmup_layers(const Checkpoint& checkpoint, const PlanOptions& options) {
  std::vector<WarmupExperts> layers;
  const std::int64_t topk = checkpoint.experts_per_token();
  if (topk == 0) return layers;
  for (const auto& found : checkpoint::expert_layers(checkpoint.matrices())) {
    const MatrixEntry& gate = checkpoint.find(found.name_of(0, found.gate));
    const MatrixEntry& down = checkpoint.find(found.name_of(0, found.down));
    WarmupExperts layer{.experts = found.experts, .k = gate.k, .width = gate.n, .n = down.n};
    layer.group_size = gate.groups == 1 ? -1 : gate.group_size, layer.bias = gate.has_bias,
    layer.awq = gate.format == QuantFormat::kAwq;
    for (std::int64_t e = 0; e < found.experts && !layer.act_order; ++e)
      for (const auto& part : {found.gate, found.up, found.down})
        layer.act_order |= checkpoint.act_order(found.name_of(e, part));
    layer.plan.topk = topk, layer.plan.max_tokens = options.max_m, layer.plan.dtype = options.activation;
    layer.plan.batch_invariant = options.batch_invariant, layer.plan.overlap_previous = options.overlap_previous;
    const auto numbers = [](const WarmupExperts& l) {
      return std::tuple(l.experts, l.k, l.width, l.n, l.group_size, l.act_order, l.bias, l.awq);
    };
    if (std::none_of(layers.begin(), layers.end(), [&](const auto& l) { return numbers(l) == numbers(layer); }))
      layers.push_back(std::move(layer));
  }
  return layers;
}

namespace {

/// The kernels of many plans on one device, each once.
class Kernels {
 public:
  explicit Kernels(DeviceBackend& device) : device_(device) {}
  void add(const Runtime& runtime, const std::vector<WarmupShape>& shapes, const PlanOptions& plan) {
    check_options(plan, device_.info().device);
    for (const WarmupShape& shape : shapes) {
      const MatrixShape matrix = planned_shape(shape, plan);
      add(device_.warmup(matrix, plan,
                         find_tuned(runtime, device_, matrix.k, matrix.n, matrix.group_size, matrix.act_order, plan)));
    }
  }
  void add(const Runtime& runtime, const std::vector<WarmupExperts>& layers) {
    for (const WarmupExperts& layer : layers) {
      const PlannedExperts planned = planned_experts(layer, device_.info().device);
      add(device_.warmup(planned.w13, planned.w2, layer.plan,
                         find_tuned(runtime, device_, planned.w13, planned.w2, layer.plan)));
    }
  }
  const Jobs& jobs() const { return jobs_; }

 private:
  void add(Jobs jobs) {
    for (auto& job : jobs)
      if (seen_.insert(job.kernel).second) jobs_.push_back(std::move(job));
  }
  DeviceBackend& device_;
  Jobs jobs_;
  std::set<std::string> seen_;
};

/// `choose` names the kernels of the device that it is given.
WarmupReport warm(const Runtime& runtime, const WarmupOptions& options, const std::function<void(Kernels&)>& choose) {
  constexpr int kMostThreads = 4096;
  check(options.threads >= 0 && options.threads <= kMostThreads, "Runtime::warmup: threads = {} is outside [0, {}]",
        options.threads, kMostThreads);
  check(options.deadline_s >= 0, "Runtime::warmup: deadline_s = {}; it must be 0 (none) or seconds from now",
        options.deadline_s);
  const auto start = Clock::now();
  const auto device = runtime.impl().open(device_to_warm(runtime, options));
  const auto opened = Clock::now();
  Kernels kernels(*device);
  choose(kernels);
  WarmupReport report;
  run(kernels.jobs(), options, start, report);
  report.ms = ms_since(opened);
  return report;
}

}  // namespace

WarmupReport Runtime::warmup(const std::vector<WarmupShape>& shapes, const WarmupOptions& options) const {
  return warm(*this, options, [&](Kernels& kernels) { kernels.add(*this, shapes, options.plan); });
}

WarmupReport Runtime::warmup(const Checkpoint& checkpoint, const WarmupOptions& options) const {
  return warm(*this, options, [&](Kernels& kernels) {
    kernels.add(*this, warmup_shapes(checkpoint), options.plan);
    kernels.add(*this, warmup_layers(checkpoint, options.plan));
  });
}

WarmupReport Runtime::warmup_experts(const std::vector<WarmupExperts>& layers, const WarmupOptions& options) const {
  return warm(*this, options, [&](Kernels& kernels) { kernels.add(*this, layers); });
}

}  // namespace q4
