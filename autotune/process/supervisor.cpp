// Starts, watches, ends and restarts the worker.
#include "autotune/process/supervisor.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

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
constexpr int kReapMs = 30000;  // for a killed process to go: a driver may take its time

}  // namespace

Supervisor::Supervisor(std::string device, double launch_s, double stop_s)
    : device_(std::move(device)), launch_s_(launch_s), stop_s_(stop_s) {
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
    reap(false);
  }
  ::munmap(board_, sizeof(Board));
  ::close(board_file_);
}

void Supervisor::start() {
  if (worker_ > 0) return;
  std::memset(static_cast<void*>(board_), 0, sizeof(Board));
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    fail(ErrorCode::kIo, "q4-autotune: socketpair: {}", std::strerror(errno));
  socket_ = LineSocket(pair[0]);
  const std::string seconds = std::to_string(launch_s_);
  const char* const arguments[] = {"q4-autotune", kWorkerArgument, device_.c_str(), seconds.c_str(), nullptr};
  worker_ = ::fork();
  if (worker_ == 0) {  // only async-signal-safe calls until exec
    // Past 10 first: the numbers that the worker expects may be taken by what is to be put there.
    const int link = ::fcntl(pair[1], F_DUPFD, 10), board = ::fcntl(board_file_, F_DUPFD, 10);
    if (::dup2(link, kWorkerSocket) >= 0 && ::dup2(board, kWorkerBoard) >= 0) {
      ::close(link), ::close(board);
      ::dup2(STDERR_FILENO, STDOUT_FILENO);  // whatever a library prints is no result
      ::execv("/proc/self/exe", const_cast<char* const*>(arguments));
    }
    ::_exit(127);
  }
  ::close(pair[1]);
  if (worker_ < 0) {
    worker_ = 0;
    fail(ErrorCode::kIo, "q4-autotune: fork: {}", std::strerror(errno));
  }
  std::string line;
  if (socket_.receive(line, -1) != LineSocket::kLine)
    fail(ErrorCode::kDevice, "the worker process {} before it was ready", reap(true));
  const Json said = Json::parse(line);
  if (said.contains("error")) {
    reap(false);
    fail(ErrorCode::kNotFound, "{}", said["error"].get<std::string>());
  }
  hello_ = hello_of(said.at("hello"));
}

const Hello& Supervisor::hello() {
  start();
  return *hello_;
}

std::string Supervisor::reap(bool kill) {
  if (kill) ::kill(worker_, SIGKILL);
  int status = 0;
  for (int waited = 0;; waited += 10) {
    if (::waitpid(worker_, &status, WNOHANG) == worker_) break;
    if (waited == kReapMs / 2) ::kill(worker_, SIGKILL);
    if (waited >= kReapMs) {
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

QuarantinedTactic Supervisor::suspect(const std::string& reason) const {
  const std::size_t size = ::strnlen(board_->tactic, sizeof(board_->tactic));
  return {std::string(board_->tactic, size), board_->m, reason};
}

Supervisor::Outcome Supervisor::follow(Job& job, const Watcher& watcher) {
  Outcome outcome;
  std::int64_t told_to_stop = 0;
  for (std::string line;;) {
    const auto received = socket_.receive(line, kPollMs);
    if (received == LineSocket::kClosed) {
      outcome.reason = reap(false);
      return outcome;
    }
    if (received == LineSocket::kLine) {
      const Json said = Json::parse(line);
      if (said.contains("progress")) {
        const auto progress = progress_of(said["progress"]);
        outcome.text = progress.stage;
        watcher.progress(progress);
      } else if (said.contains("bucket")) {
        job.options.known.push_back(bucket_of(said["bucket"]));
      } else if (said.contains("done")) {
        outcome.end = End::kDone;
        outcome.tuned = tuned_of(said["done"]);
        return outcome;
      } else {
        const bool lost = said.contains("lost");
        reap(false);
        outcome.reason = said[lost ? "lost" : "error"].get<std::string>();
        if (!lost) outcome.end = End::kError;
        return outcome;
      }
    }
    const std::int64_t now = monotonic_ms(), deadline = board_->deadline_ms;
    if (watcher.interrupted() && !told_to_stop) board_->stop = 1, told_to_stop = now;
    if (told_to_stop && now >= told_to_stop + static_cast<std::int64_t>(1e3 * stop_s_)) {
      reap(true);
      outcome.end = End::kStopped;
      return outcome;
    }
    if (deadline > 0 && now > deadline) {
      reap(true);
      outcome.reason = "hung: no answer in time, killed";
      return outcome;
    }
  }
}

Tuned Supervisor::tune(Job job, const Watcher& watcher) {
  const std::int64_t until = monotonic_ms() + static_cast<std::int64_t>(1e3 * std::min(job.options.seconds, 1e9));
  std::vector<std::string> notes;
  int unexplained = 0;
  const auto given_up = [&](const std::string& why) {
    Tuned tuned;
    tuned.failed = true;
    tuned.notes = notes;
    tuned.notes.push_back(why);
    tuned.record.quarantined = job.options.quarantined;
    return tuned;
  };
  for (int attempt = 1;; ++attempt) {
    start();
    job.options.seconds = std::max(0.0, static_cast<double>(until - monotonic_ms()) / 1e3);
    socket_.send(to_json(job).dump());
    Outcome outcome = follow(job, watcher);
    if (outcome.end == End::kDone) {
      outcome.tuned.notes.insert(outcome.tuned.notes.begin(), notes.begin(), notes.end());
      return std::move(outcome.tuned);
    }
    if (outcome.end == End::kStopped) return given_up("interrupted, and the worker process did not stop: killed");
    if (outcome.end == End::kError) return given_up(fmt::format("{} ({})", outcome.reason, outcome.text));
    const QuarantinedTactic guilty = suspect(outcome.reason);
    if (!guilty.tactic.empty()) {
      job.options.quarantined.push_back(guilty);
      watcher.quarantined(guilty);
      notes.push_back(fmt::format("m = {}: '{}' quarantined: {}", guilty.m, guilty.tactic, guilty.reason));
    } else {
      notes.push_back(fmt::format("the worker process {} ({})", outcome.reason, outcome.text));
      job.options.compile_ahead = false;  // many compile at once: one at a time has a name
      if (++unexplained == kMostUnexplained) return given_up("given up");
    }
    if (attempt == kMostAttempts) return given_up("too many tactics are quarantined");
    if (watcher.interrupted()) return given_up("interrupted");
  }
}

}  // namespace q4::autotune
