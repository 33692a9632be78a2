// Runs tuning jobs in a worker process, restarts it when a tactic took it along, and quarantines that tactic.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>

#include "autotune/process/exchange.hpp"
#include "autotune/process/lines.hpp"
#include "autotune/process/worker.hpp"

namespace q4::autotune {

/// It was interrupted before the worker process was ready.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Supervisor {
 public:
  struct Options {
    std::string device = {};  ///< as on the command line, empty: the best one
    double launch_s = 30;     ///< a tactic that does not answer for so long is hung
    double stop_s = 0.8;      ///< how long a worker may take to stop when interrupted, before it is killed
    std::function<bool()> interrupted = [] { return false; };  ///< read at least every 100 ms
  };
  explicit Supervisor(Options options);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;

  /// Starts a worker. Throws what kept it from opening its device, or Interrupted.
  const Hello& hello();
  const std::optional<Hello>& known() const { return hello_; }  ///< what hello() gave

  struct Watcher {
    std::function<void(const TuneProgress&)> progress;
    std::function<void(const QuarantinedTactic&)> quarantined;  ///< at once, before anything else runs
  };
  /// job.options.seconds bounds all attempts together; the worker keeps to it by what it expects. `at_most_s`: a worker
  /// that has not answered then is killed. What it had measured until then is in the result all the same.
  Tuned tune(Job job, const Watcher& watcher, double at_most_s = 1e9);

 private:
  enum class End { kDone, kStopped, kError, kLost };  ///< an error that was caught is nobody's crash
  struct Outcome {
    End end = End::kLost;
    std::string reason, text;  ///< why it is lost; the stage it was in
    Tuned tuned;
  };
  void start();
  Outcome follow(Job& job, const Watcher& watcher, std::int64_t until_ms);
  std::string reap(int patience_ms);  ///< how the worker ended, by itself or killed after so long
  void kill();                        ///< without waiting for long
  std::string running() const;        ///< what the board says that the worker does, or did
  std::optional<SlowTactic> slow() const;

  Options options_;
  pid_t worker_ = 0;
  double start_s_ = 0;  ///< what starting a worker took
  LineSocket socket_;
  Board* board_ = nullptr;
  int board_file_ = -1;
  std::optional<Hello> hello_;
};

}  // namespace q4::autotune
