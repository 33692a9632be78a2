// A run of the tuner over many shapes: in order, each in a worker process, within a budget, saved when it is done.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "autotune/neighbours.hpp"
#include "autotune/process/device_turn.hpp"
#include "autotune/process/supervisor.hpp"
#include "autotune/process/tuning_file.hpp"
#include "autotune/report.hpp"

namespace q4::autotune {

struct SessionOptions {
  std::string policy = "cold";
  double budget_s = 60;       ///< from `start`, for everything; 0: unlimited
  double shape_budget_s = 0;  ///< at most so much for one shape; 0: unlimited
  bool again = false;         ///< measure also what the file already holds, and try quarantined tactics
  bool exhaustive = false;    ///< probe every tactic
  bool yardsticks = false;    ///< time the dense BLAS too
  std::string version;        ///< of q4, for the records
  std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
};

/// Whoever shows what happens.
struct SessionWatch {
  std::function<void(double fraction, const std::string& text)> progress;
  std::function<void(const std::string& text)> line;  ///< an event: a shape is done, a tactic is quarantined
};

class Session {
 public:
  /// `worker.interrupted` ends the session, with what is done.
  Session(const Supervisor::Options& worker, const SessionOptions& options, const SessionWatch& watch);
  const Hello& device() const { return *supervisor_.known(); }

  /// `shapes`: with empty results. `m`: rows to measure, ascending. Takes over what the file holds of them; throws
  /// where the file cannot be read.
  void begin(std::vector<TunedShape> shapes, std::vector<std::int64_t> m, const std::string& file);
  void check_writable() const;  ///< throws where the file cannot take what run() will measure
  std::size_t kept() const;     ///< shapes that need no measuring
  /// Measures the others, saves each, and returns all of them.
  TuningRun run();

 private:
  struct Row : TunedShape {
    explicit Row(TunedShape shape) : TunedShape(std::move(shape)) {}
    std::vector<QuarantinedTactic> quarantined;  ///< of earlier runs
    std::optional<TuningRecord> earlier;         ///< of an earlier run that did not finish
    std::string unsaved;                         ///< why its record is not in the file
  };
  double elapsed() const;
  double left_s() const;
  TuningKey key_of(const TunedShape& row) const;
  double seconds_for(std::size_t index) const;
  double grace_s() const;
  bool wait_for_turn();
  void wait_for_others();
  std::jthread compile_ahead() const;
  TuneOptions options_for(std::size_t index) const;
  void tune_one(std::size_t index);
  void not_begun(Row& row, const std::string& why);
  template <class F>
  static std::string error_of(const F& work);
  std::vector<LikelyTactic> likely(const TuningKey& key) const;
  TuningRun finish();

  Supervisor::Options worker_;
  SessionOptions options_;
  SessionWatch watch_;
  Supervisor supervisor_;
  DeviceTurn turn_;
  NeighbourWatch neighbours_;
  double patience_s_;  ///< that is left for waiting for others
  Neighbours others_;
  TuningFile file_;
  std::vector<std::int64_t> m_;
  std::vector<Row> rows_;
  /// The least of a large shape so far: a shape that cannot even be set up is not begun.
  double setup_s_per_weight_ = 0;
};

}  // namespace q4::autotune
