// Times each number of threads with a runtime of its own: weights are packed by the threads that read them.
#include "tools/bench/scaling.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "autotune/rig.hpp"
#include "runtime/base/processors.hpp"
#include "tools/bench/cpu_ceilings.hpp"
#include "tools/bench/timed.hpp"

namespace q4::tools {

std::vector<ScalingPoint> measure_scaling(autotune::Workload& workload, const std::vector<std::int64_t>& m,
                                          PlanOptions options, double seconds) {
  const int all = usable_threads();
  std::vector<ScalingPoint> points;
  for (int threads = 1; threads <= all; threads = threads < all && 2 * threads > all ? all : 2 * threads) {
    RuntimeOptions runtime_options;
    runtime_options.cpu_threads = threads;
    runtime_options.tuning_files = {"/dev/null"};
    const Runtime runtime(runtime_options);
    const autotune::Rig rig(runtime, Device::parse("cpu"), workload, m.back(), 5);
    const CpuCeilings ceilings = measure_cpu_ceilings(rig.backend());
    for (const std::int64_t rows : m) {
      options.max_m = rows;
      const auto variant = rig.prepare(options);
      const double us = timed([&] { return rig.sample(*variant, rows); }, seconds).value;
      const autotune::Problem& problem = workload.problem();
      points.push_back({problem, threads, rows, us,
                        ceilings.floor_us(problem.bytes(0), problem.flops(rows), options.activation, options.math)});
    }
  }
  return points;
}

std::string scaling_table(const std::vector<ScalingPoint>& points) {
  Table table({"k x n", "m", "threads", "us", "x floor", "speedup"});
  for (const ScalingPoint& p : points) {
    double one = 0;
    for (const ScalingPoint& other : points)
      if (other.problem.k == p.problem.k && other.problem.n == p.problem.n && other.m == p.m && other.threads == 1)
        one = other.us;
    table.add({fmt::format("{}x{}", p.problem.k, p.problem.n), std::to_string(p.m), std::to_string(p.threads),
               number(p.us), fmt::format("{:.2f}", p.us / p.floor_us), fmt::format("{:.1f}", one / p.us)});
  }
  return table.str();
}

Json scaling_json(const std::vector<ScalingPoint>& points) {
  Json list = Json::array();
  for (const ScalingPoint& p : points)
    list.push_back({{"k", p.problem.k},
                    {"n", p.problem.n},
                    {"m", p.m},
                    {"threads", p.threads},
                    {"us", p.us},
                    {"floor_us", p.floor_us}});
  return list;
}

}  // namespace q4::tools
