// Takes jobs from a socket, tunes, and reports what it found.
#include "autotune/process/worker.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <q4/q4.hpp>
#include <thread>

#include "autotune/device_clock.hpp"
#include "autotune/process/exchange.hpp"
#include "autotune/process/lines.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"

namespace q4::autotune {
namespace {

constexpr std::int64_t kSetupLimitMs = 300000;  // packing, compiling on all cores, making copies
/// Arithmetic that any device here does at least, for the time that a long launch may take.
constexpr double kSlowestGpuFlops = 1e12, kSlowestCpuFlops = 2e9;

class Worker {
 public:
  Worker(const std::string& device, double launch_s, Board& board)
      : launch_s_(launch_s),
        board_(board),
        runtime_(untuned()),
        device_(device.empty() ? runtime_.best_device() : Device::parse(device)),
        clock_(device_),
        fault_(setting("Q4_AUTOTUNE_FAULT")) {
    hang_at("open");
  }

  Hello hello() const {
    const auto backend = runtime_.impl().open(device_);
    Hello hello{backend->info(), tuning_digest(backend->kernels_digest()), clock_.address(), {}};
    for (const BackendStatus& b : runtime_.backends())
      if (b.kind == device_.kind)
        for (const auto& [name, version] : b.components) hello.versions[name] = version;
    return hello;
  }

  /// The answer to the supervisor.
  Json tune(Job job, LineSocket& socket) {
    const auto& p = job.problem;
    auto& o = job.options;
    idle();
    o.interrupted = [this] {  // asked before each kernel that is compiled, from any thread: progress of its own
      if (board_.tactic[0] == 0) board_.deadline_ms = monotonic_ms() + kSetupLimitMs;
      return board_.stop != 0;
    };
    o.progress = [&](const TuneProgress& now) {
      idle();
      socket.send(Json{{"progress", to_json(now)}}.dump());
      hang_at(now.stage);
    };
    o.measured = [&](const MeasuredBucket& b) { socket.send(Json{{"bucket", to_json(b)}}.dump()); };
    o.about_to = [&](const Step& step) { announce(step, p); };
    o.sm_clock_mhz = [this] { return clock_.sm_mhz(); };
    try {
      return {{"done", to_json(autotune::tune(runtime_, device_, p, o))}};
    } catch (const DeviceLost& e) { return {{"lost", e.what()}}; }
  }

 private:
  /// An earlier result would count as the default, and win against itself.
  static Runtime untuned() {
    RuntimeOptions options;
    options.tuning_files = {"/dev/null"};
    return Runtime(options);
  }

  void idle() {
    board_.deadline_ms = 0;
    board_.tactic[0] = 0;
    board_.since_ms = monotonic_ms(), board_.runs = 0;
    board_.deadline_ms = monotonic_ms() + kSetupLimitMs;
  }

  void announce(const Step& step, const Problem& p) {
    board_.deadline_ms = 0;  // the text below is being changed
    const std::size_t size = std::min(step.tactic.size(), sizeof(board_.tactic) - 1);
    std::memcpy(board_.tactic, step.tactic.data(), size);
    board_.tactic[size] = 0;
    board_.m = step.m, board_.runs = static_cast<std::int64_t>(step.runs), board_.since_ms = monotonic_ms();
    const double flops = traits_of(device_).asynchronous ? kSlowestGpuFlops : kSlowestCpuFlops;
    board_.deadline_ms = monotonic_ms() + static_cast<std::int64_t>(1e3 * (launch_s_ + p.flops(step.m) / flops));
    const auto colon = fault_.find(':');
    if (step.runs == 0 || colon == std::string::npos || step.tactic != fault_.substr(colon + 1)) return;
    if (fault_.starts_with("abort:")) std::abort();
    if (fault_.starts_with("hang:")) hang(step.tactic);
  }

  [[noreturn]] static void hang(const std::string& at) {
    fmt::print(stderr, "q4-autotune: the worker hangs at {}, as $Q4_AUTOTUNE_FAULT says\n", at);
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  void hang_at(const std::string& stage) const {
    constexpr std::string_view kHangAt = "hang-at:";
    if (fault_.starts_with(kHangAt) && stage.starts_with(fault_.substr(kHangAt.size()))) hang(stage);
  }

  double launch_s_;
  Board& board_;
  Runtime runtime_;
  Device device_;
  DeviceClock clock_;
  std::string fault_;
};

}  // namespace

std::int64_t monotonic_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
}

int worker_main(const std::string& device, double launch_s) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a supervisor that was killed leaves nobody behind
  std::signal(SIGINT, SIG_IGN);        // the supervisor says when to stop
  std::signal(SIGTERM, SIG_IGN);       // a batch system sends it to all processes of a job
  void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, kWorkerBoard, 0);
  if (memory == MAP_FAILED) return 2;
  LineSocket socket(kWorkerSocket);
  try {
    Worker worker(device, launch_s, *static_cast<Board*>(memory));
    socket.send(Json{{"hello", to_json(worker.hello())}}.dump());
    for (std::string line; socket.receive(line, -1) == LineSocket::kLine;) {
      const Json answer = worker.tune(job_of(Json::parse(line)), socket);
      socket.send(answer.dump());
      if (answer.contains("lost")) ::_exit(1);  // with its device gone, nothing here can be released
    }
  } catch (const std::exception& e) {
    socket.send(Json{{"error", e.what()}}.dump());
    return 1;
  }
  return 0;
}

}  // namespace q4::autotune
