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

#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/base/check.hpp"
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

/// Workers take jobs and put their events where the calling thread gets them, which alone talks to the caller.
class Crew {
 public:
  explicit Crew(const Jobs& jobs) : jobs_(jobs) {}
  ~Crew() {
    stop();
    for (auto& worker : workers_) worker.join();
  }
  void start(std::size_t threads) {
    for (std::size_t i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  /// No further job is begun.
  void stop() { stopped_ = true; }
  /// The next event; false when nothing came for a while.
  bool next(CacheEvent& event) {
    std::unique_lock lock(mutex_);
    if (!came_.wait_for(lock, kAskEvery, [this] { return !done_.empty(); })) return false;
    event = std::move(done_.front());
    done_.pop_front();
    return true;
  }
  /// Jobs that were begun and whose events were not taken, and jobs that will be begun.
  bool idle() {
    std::lock_guard lock(mutex_);
    return done_.empty() && running_ == 0 && (stopped_ || next_ == jobs_.size());
  }

 private:
  void work() {
    lower_priority();
    for (;;) {
      std::size_t index;
      {
        std::lock_guard lock(mutex_);
        if (stopped_ || next_ == jobs_.size()) return;
        index = next_++, ++running_;
      }
      CacheEvent event = jobs_[index].run();
      std::lock_guard lock(mutex_);
      --running_;
      done_.push_back(std::move(event));
      came_.notify_one();
    }
  }

  const Jobs& jobs_;
  std::vector<std::thread> workers_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;  // of what follows
  std::condition_variable came_;
  std::size_t next_ = 0, running_ = 0;
  std::deque<CacheEvent> done_;
};

void run(const Jobs& jobs, const WarmupOptions& options, Clock::time_point start, WarmupReport& report) {
  const auto stops = [&] {
    report.past_deadline |= options.deadline_s > 0 && ms_since(start) >= options.deadline_s * 1e3;
    report.cancelled |= !report.cancelled && options.cancel && options.cancel();
    return report.past_deadline || report.cancelled;
  };
  if (!stops()) {
    Crew crew(jobs);
    const auto threads = static_cast<std::size_t>(options.threads);
    crew.start(std::min(jobs.size(), threads ? threads : static_cast<std::size_t>(cpu::usable_threads())));
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
    const auto matrix = matrix_shape(shape.k, shape.n, shape.group_size, shape.act_order, shape.bias, shape.awq);
    const auto* tuned =
        find_tuned(*this, *device, matrix.k, matrix.n, matrix.group_size, matrix.act_order, options.plan.activation);
    for (auto& job : device->warmup(matrix, options.plan, tuned))
      if (seen.insert(job.kernel).second) jobs.push_back(std::move(job));
  }
  WarmupReport report;
  run(jobs, options, start, report);
  report.ms = ms_since(opened);
  return report;
}

WarmupReport Runtime::warmup(const Checkpoint& checkpoint, const WarmupOptions& options) const {
  std::vector<WarmupShape> shapes;
  for (const MatrixEntry& entry : checkpoint.matrices()) {
    if (!entry.unsupported.empty()) continue;
    const WarmupShape shape{entry.k,          entry.n,
                            entry.group_size, checkpoint.act_order(entry.name),
                            entry.has_bias,   entry.format == QuantFormat::kAwq};
    if (std::find(shapes.begin(), shapes.end(), shape) == shapes.end()) shapes.push_back(shape);
  }
  return warmup(shapes, options);
}

}  // namespace q4
