// Starts, watches, ends and restarts the worker.
#include "autotune/process/supervisor.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include "runtime/base/check.hpp"

namespace q4::autotune {
namespace {

constexpr int kMostAttempts = 20;    // of one shape
constexpr int kMostUnexplained = 2;  // of them with no tactic to blame
constexpr int kPollMs = 100;
constexpr int kEndMs = 30000;           // for a killed process to go: a driver may take its time
constexpr int kBriefMs = 500;           // the same where somebody waits for the end
constexpr int kIdleEndMs = 300;         // for an idle worker to end by itself
constexpr std::int64_t kSlowMs = 2000;  // of a step that was cut short: from here on it says something of the tactic

}  // namespace

Supervisor::Supervisor(Options options) : options_(std::move(options)) {
  board_file_ = ::memfd_create("q4-board", MFD_CLOEXEC);
  if (board_file_ < 0 || ::ftruncate(board_file_, sizeof(Board)) != 0)
    fail(ErrorCode::kIo, "q4-autotune: no shared memory for the worker process: {}", std::strerror(errno));
  void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, board_file_, 0);
  if (memory == MAP_FAILED) fail(ErrorCode::kIo, "q4-autotune: mmap: {}", std::strerror(errno));
  board_ = static_cast<Board*>(memory);
}

Supervisor::~Supervisor() {
  if (worker_ > 0) {
    socket_ = LineSocket();  // it ends by itself when nobody is there to give it work
    try {
      reap(kIdleEndMs);
    } catch (const Error&) {}  // its device hangs, and the kernel ends it when the device lets go
  }
  ::munmap(board_, sizeof(Board));
  ::close(board_file_);
}

void Supervisor::start() {
  if (worker_ > 0) return;
  const std::int64_t begun = monotonic_ms();
  std::memset(static_cast<void*>(board_), 0, sizeof(Board));
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    fail(ErrorCode::kIo, "q4-autotune: socketpair: {}", std::strerror(errno));
  socket_ = LineSocket(pair[0]);
  const std::string seconds = std::to_string(options_.launch_s);
  const char* const arguments[] = {"q4-autotune", kWorkerArgument, options_.device.c_str(), seconds.c_str(), nullptr};
  const auto* const name = reinterpret_cast<const char*>(::getauxval(AT_EXECFN));  // this program's, as it was started
  worker_ = ::fork();
  if (worker_ == 0) {  // only async-signal-safe calls until exec
    // Past 10 first: the numbers that the worker expects may be taken by what is to be put there.
    const int link = ::fcntl(pair[1], F_DUPFD, 10), board = ::fcntl(board_file_, F_DUPFD, 10);
    if (::dup2(link, kWorkerSocket) >= 0 && ::dup2(board, kWorkerBoard) >= 0) {
      ::close(link), ::close(board);
      ::dup2(STDERR_FILENO, STDOUT_FILENO);  // whatever a library prints is no result
      ::execv("/proc/self/exe", const_cast<char* const*>(arguments));
      if (name) ::execv(name, const_cast<char* const*>(arguments));  // where there is no /proc
    }
    ::_exit(127);
  }
  ::close(pair[1]);
  if (worker_ < 0) {
    worker_ = 0;
    fail(ErrorCode::kIo, "q4-autotune: fork: {}", std::strerror(errno));
  }
  std::string line;
  auto received = LineSocket::kTimeout;
  while ((received = socket_.receive(line, kPollMs)) == LineSocket::kTimeout)
    if (options_.interrupted()) {
      kill();
      throw Interrupted("interrupted before the worker process was ready");
    }
  if (received != LineSocket::kLine)
    fail(ErrorCode::kDevice, "the worker process {} before it was ready", reap(kEndMs));
  const Json said = Json::parse(line);
  if (said.contains("error")) {
    reap(kIdleEndMs);
    fail(ErrorCode::kNotFound, "{}", said["error"].get<std::string>());
  }
  hello_ = hello_of(said.at("hello"));
  start_s_ = static_cast<double>(monotonic_ms() - begun) / 1e3;
}

const Hello& Supervisor::hello() {
  start();
  return *hello_;
}

std::string Supervisor::reap(int patience_ms) {
  int status = 0;
  for (int waited = 0;; waited += 10) {
    if (waited >= patience_ms) ::kill(worker_, SIGKILL);
    if (::waitpid(worker_, &status, WNOHANG) == worker_) break;
    if (waited >= patience_ms + kEndMs) {
      worker_ = 0;
      fail(ErrorCode::kDevice, "the worker process cannot be ended: its device hangs; what was saved is in the file");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  worker_ = 0;
  if (WIFSIGNALED(status))
    return fmt::format("died of signal {} ({})", WTERMSIG(status), ::strsignal(WTERMSIG(status)));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

void Supervisor::kill() {
  ::kill(worker_, SIGKILL);
  for (int waited = 0; waited < kBriefMs && ::waitpid(worker_, nullptr, WNOHANG) != worker_; waited += 10)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  worker_ = 0;
}

std::string Supervisor::running() const { return {board_->tactic, ::strnlen(board_->tactic, sizeof(board_->tactic))}; }

/// A tactic that was cut short after a while takes at least that long a run. Its true time is not known.
std::optional<SlowTactic> Supervisor::slow() const {
  const std::int64_t took_ms = monotonic_ms() - board_->since_ms, runs = board_->runs;
  const std::string tactic = running();
  if (tactic.empty() || runs == 0 || took_ms < kSlowMs) return {};
  return SlowTactic{board_->m, tactic, 1e3 * static_cast<double>(took_ms) / static_cast<double>(runs)};
}

Supervisor::Outcome Supervisor::follow(Job& job, const Watcher& watcher, std::int64_t until_ms) {
  Outcome outcome;
  std::int64_t stopped_ms = 0;
  for (std::string line;;) {
    const auto received = socket_.receive(line, kPollMs);
    if (received == LineSocket::kClosed) {
      outcome.reason = reap(kEndMs);  // it is dying, and may be writing a core file
      return outcome;
    }
    if (received == LineSocket::kLine) {
      const Json said = Json::parse(line);
      if (said.contains("progress")) {
        const auto progress = progress_of(said["progress"]);
        outcome.text = progress.stage;
        watcher.progress(progress);
      } else if (said.contains("bucket")) {
        MeasuredBucket bucket = bucket_of(said["bucket"]);
        std::erase_if(job.options.known, [&](const MeasuredBucket& b) { return b.m == bucket.m; });
        job.options.known.push_back(std::move(bucket));
        std::ranges::sort(job.options.known, {}, &MeasuredBucket::m);
      } else if (said.contains("done")) {
        outcome.end = End::kDone;
        outcome.tuned = tuned_of(said["done"]);
        return outcome;
      } else {
        const bool lost = said.contains("lost");
        reap(kIdleEndMs);
        outcome.reason = said[lost ? "lost" : "error"].get<std::string>();
        if (!lost) outcome.end = End::kError;
        return outcome;
      }
    }
    const std::int64_t now = monotonic_ms(), deadline = board_->deadline_ms;
    if (options_.interrupted() && stopped_ms == 0) board_->stop = 1, stopped_ms = now;
    const bool stubborn = stopped_ms > 0 && now >= stopped_ms + static_cast<std::int64_t>(1e3 * options_.stop_s);
    if (stubborn || now >= until_ms) {
      outcome.end = End::kStopped;
      outcome.reason = stubborn ? "interrupted" : "out of time";
      if (const std::string tactic = running(); !tactic.empty())
        outcome.reason += fmt::format(" while '{}' ran at m = {}", tactic, board_->m.load());
      else if (!outcome.text.empty())
        outcome.reason += fmt::format(" while {}", outcome.text);
      if (const auto found = slow(); found && !stubborn) job.options.slow.push_back(*found);
      kill();
      return outcome;
    }
    if (deadline > 0 && now > deadline) {
      reap(0);
      outcome.reason = "hung: no answer in time, killed";
      return outcome;
    }
  }
}

Tuned Supervisor::tune(Job job, const Watcher& watcher, double at_most_s) {
  const auto from_now = [begun = monotonic_ms()](double seconds) {
    return begun + static_cast<std::int64_t>(1e3 * std::min(seconds, 1e9));
  };
  const std::int64_t until = from_now(job.options.seconds), killed_at = from_now(at_most_s);
  std::vector<std::string> notes;
  int unexplained = 0;
  const auto partly = [&](const std::string& why, bool failed) {
    Tuned tuned =
        partly_tuned(key_of(hello_->info, hello_->kernels, job.problem, job.options.activation, job.options.policy),
                     job.options, job.options.known, why);
    tuned.failed = failed;
    tuned.notes.insert(tuned.notes.begin(), notes.begin(), notes.end());
    return tuned;
  };
  for (int attempt = 1;; ++attempt) {
    job.options.seconds = std::max(0.0, static_cast<double>(until - monotonic_ms()) / 1e3);
    if (attempt > 1 && job.options.seconds <= start_s_) return partly("out of time after a crash", false);
    try {
      start();
    } catch (const Interrupted& e) {
      if (!hello_) throw;  // nothing is known of the device
      return partly(e.what(), false);
    }
    socket_.send(to_json(job).dump());
    Outcome outcome = follow(job, watcher, killed_at);
    if (outcome.end == End::kDone) {
      outcome.tuned.notes.insert(outcome.tuned.notes.begin(), notes.begin(), notes.end());
      return std::move(outcome.tuned);
    }
    if (outcome.end == End::kStopped) return partly(outcome.reason, false);
    if (outcome.end == End::kError) return partly(fmt::format("{} ({})", outcome.reason, outcome.text), true);
    const QuarantinedTactic guilty{running(), board_->m, outcome.reason};
    if (!guilty.tactic.empty()) {
      job.options.quarantined.push_back(guilty);
      std::erase_if(job.options.known, [&](const MeasuredBucket& b) { return b.winner().id == guilty.tactic; });
      watcher.quarantined(guilty);
      notes.push_back(fmt::format("m = {}: '{}' quarantined: {}", guilty.m, guilty.tactic, guilty.reason));
    } else {
      notes.push_back(fmt::format("the worker process {} ({})", outcome.reason, outcome.text));
      job.options.compile_ahead = false;  // many compile at once: one at a time has a name
      if (++unexplained == kMostUnexplained) return partly("given up", true);
    }
    if (attempt == kMostAttempts) return partly("too many tactics are quarantined", true);
    if (options_.interrupted()) return partly("interrupted", false);
  }
}

}  // namespace q4::autotune
