// Runs tuning jobs in a worker process, restarts it when a tactic took it along, and quarantines that tactic.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

#include "autotune/process/exchange.hpp"
#include "autotune/process/lines.hpp"
#include "autotune/process/worker.hpp"

namespace q4::autotune {

class Supervisor {
 public:
  /// `device`: as on the command line, empty: the best one. `launch_s`: a tactic that does not answer for so long is
  /// hung.
  /// `stop_s`: how long it may take to stop when interrupted, before it is killed.
  Supervisor(std::string device, double launch_s, double stop_s = 20);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;

  /// Starts a worker. Throws what kept it from opening its device.
  const Hello& hello();
  const std::optional<Hello>& known() const { return hello_; }  ///< what hello() gave

  struct Watcher {
    std::function<bool()> interrupted;
    std::function<void(const TuneProgress&)> progress;
    std::function<void(const QuarantinedTactic&)> quarantined;  ///< at once, before anything else runs
  };
  /// job.options.seconds bounds all attempts together.
  Tuned tune(Job job, const Watcher& watcher);

 private:
  enum class End { kDone, kStopped, kError, kLost };  ///< an error that was caught is nobody's crash
  struct Outcome {
    End end = End::kLost;
    std::string reason, text;  ///< why it is lost; the stage it was in
    Tuned tuned;
  };
  void start();
  Outcome follow(Job& job, const Watcher& watcher);
  std::string reap(bool kill);  ///< how the worker ended
  QuarantinedTactic suspect(const std::string& reason) const;

  std::string device_;
  double launch_s_, stop_s_;
  pid_t worker_ = 0;
  LineSocket socket_;
  Board* board_ = nullptr;
  int board_file_ = -1;
  std::optional<Hello> hello_;
};

}  // namespace q4::autotune
