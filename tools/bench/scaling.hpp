// The CPU backend with 1, 2, 4, ... threads, each beside the ceilings of as many.
#pragma once

#include <cstdint>
#include <q4/q4.hpp>
#include <vector>

#include "autotune/workload.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

struct ScalingPoint {
  autotune::Problem problem;
  int threads = 0;
  std::int64_t m = 0;
  double us = 0, floor_us = 0;  ///< floor_us: as q4-bench's, of this many threads
};

/// Threads 1, 2, 4, ... up to all that this process may use, and these. `options`: of each plan, but max_m.
std::vector<ScalingPoint> measure_scaling(autotune::Workload& workload, const std::vector<std::int64_t>& m,
                                          PlanOptions options, double seconds);
std::string scaling_table(const std::vector<ScalingPoint>& points);
Json scaling_json(const std::vector<ScalingPoint>& points);

}  // namespace q4::tools
