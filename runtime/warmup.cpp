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

#include "runtime/base/check.hpp"
#include "runtime/base/jobs.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/choose/epilogue.hpp"
#include "runtime/choose/shape.hpp"
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
  return matrix;
}

WarmupReport Runtime::warmup(const std::vector<WarmupShape>& shapes, const WarmupOptions& options) const {
  constexpr int kMostThreads = 4096;
  check(options.threads >= 0 && options.threads <= kMostThreads, "Runtime::warmup: threads = {} is outside [0, {}]",
        options.threads, kMostThreads);
  check(options.deadline_s >= 0, "Runtime::warmup: deadline_s = {}; it must be 0 (none) or seconds from now",
        options.deadline_s);
  const auto start = Clock::now();
  const auto device = impl_->open(device_to_warm(*this, options));
  check_options(options.plan, device->info().device);
  const auto opened = Clock::now();
  Jobs jobs;
  std::set<std::string> seen;
  for (const WarmupShape& shape : shapes) {
    const MatrixShape matrix = planned_shape(shape, options.plan);
    const auto* tuned =
        find_tuned(*this, *device, matrix.k, matrix.n, matrix.group_size, matrix.act_order, options.plan);
    for (auto& job : device->warmup(matrix, options.plan, tuned))
      if (seen.insert(job.kernel).second) jobs.push_back(std::move(job));
  }
  WarmupReport report;
  run(jobs, options, start, report);
  report.ms = ms_since(opened);
  return report;
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

WarmupReport Runtime::warmup(const Checkpoint& checkpoint, const WarmupOptions& options) const {
  return warmup(warmup_shapes(checkpoint), options);
}

}  // namespace q4
