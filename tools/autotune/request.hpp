// What the command line of q4-autotune requests, resolved: shapes, rows, files.
#pragma once

#include <string>
#include <vector>

#include "autotune/report.hpp"
#include "tools/common/shapes.hpp"
#include "tools/common/slices.hpp"

namespace q4::tools {

struct TuningRequest {
  ShapeOptions shapes;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  std::string policy = "cold", out, report;
  double budget = 60, shape_budget = 0;  ///< seconds, 0: unlimited
  double launch_s = 30;                  ///< a tactic that does not answer for so long is quarantined
  Shard shard;
  autotune::EpilogueChoice with = {};  ///< in the plans of all shapes but layers of experts
  bool again = false, exhaustive = false;
};

/// The shapes that are to be tuned, each once: what a rank holds of them, and of these what this shard has. Throws what
/// is wrong with the files or names that the command line gives.
std::vector<autotune::TunedShape> requested_shapes(const TuningRequest& request);

/// Sets the rows and the tuning file where the command line leaves them open, and makes that file's folder.
void complete_request(TuningRequest& request, bool cpu, const std::string& default_file);

/// Throws where the report could not be written: that is reported before anything is measured.
void check_report(const TuningRequest& request);

}  // namespace q4::tools
