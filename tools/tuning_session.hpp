// A run of q4-autotune: shapes in order, each in a worker process, saved when it is done.
#pragma once

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "autotune/process/device_turn.hpp"
#include "autotune/process/supervisor.hpp"
#include "autotune/report.hpp"
#include "tools/common/common.hpp"
#include "tools/common/shapes.hpp"
#include "tools/common/slices.hpp"

namespace q4::tools {

class Tool;

struct TuningRequest {
  ShapeOptions shapes;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  std::string policy = "cold", out, report;
  double budget = 60, shape_budget = 0;  ///< seconds, 0: unlimited
  double launch_s = 30;                  ///< a tactic that does not answer for so long is quarantined
  int tensor_parallel = 1;
  Shard shard;
  bool again = false, exhaustive = false;
};

class TuningSession {
 public:
  TuningSession(const Tool& tool, TuningRequest request);
  int run();

 private:
  using Clock = std::chrono::steady_clock;
  struct Row : autotune::TunedShape {
    std::vector<QuarantinedTactic> quarantined;  ///< of earlier runs
    std::string unsaved;                         ///< why its record is not in the file
  };
  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  TuningKey key_of(const autotune::TunedShape& row) const;
  void list_shapes();
  void check_report() const;
  TuningDb stored() const;  ///< what the file holds now
  void keep_what_is_known();
  void announce() const;
  double seconds_for(std::size_t index) const;
  bool wait_for_turn(Progress& bar);
  std::jthread compile_ahead() const;
  void tune_one(std::size_t index, Progress& bar);
  template <class F>
  static std::string told(const F& work);  ///< the text of its Error
  void save(Row& row) const;
  void quarantine(const Row& row, const QuarantinedTactic& tactic) const;
  void store(const TuningRecord& record) const;
  std::vector<autotune::LikelyTactic> likely(const TuningKey& key) const;
  int finish();

  bool json_;
  std::string device_name_;
  TuningRequest request_;
  std::string default_file_;
  Clock::time_point start_;
  autotune::Supervisor supervisor_;
  autotune::DeviceTurn turn_;
  std::vector<Row> rows_;
  double setup_s_per_weight_ =
      0;  ///< the least of a large shape so far: a shape that cannot even be set up is not begun
};

}  // namespace q4::tools
