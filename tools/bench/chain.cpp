// Times the chain.
#include "tools/bench/chain.hpp"

#include <deque>

#include "autotune/read_floor.hpp"
#include "autotune/rig.hpp"
#include "autotune/statistics.hpp"
#include "autotune/stopwatch.hpp"

namespace q4::tools {

using autotune::Rig;
using autotune::Variant;

ChainResult run_chain(const Runtime& runtime, Device device, const std::vector<autotune::Problem>& problems,
                      DType activation, std::int64_t layers, std::int64_t m) {
  constexpr int kRuns = 15;
  std::deque<autotune::Workload> workloads;
  std::deque<Rig> rigs;
  ChainResult result;
  result.layers = layers, result.m = m;
  for (const auto& problem : problems) {
    auto& workload = workloads.emplace_back(problem, activation);
    rigs.emplace_back(runtime, device, workload, m, 5);
    result.bytes += static_cast<std::size_t>(layers * problem.bytes(0));
  }
  for (const bool overlap : {false, true}) {
    std::vector<std::unique_ptr<Variant>> variants;
    for (const auto& rig : rigs) {
      PlanOptions options;
      options.max_m = m, options.activation = activation, options.overlap_previous = overlap;
      variants.push_back(rig.prepare(options));
    }
    const auto times = autotune::time_runs(
        *rigs.front().backend(),
        [&](void* stream) {
          for (std::int64_t layer = 0; layer < layers; ++layer)
            for (std::size_t i = 0; i < rigs.size(); ++i)
              rigs[i].launch(*variants[i], static_cast<std::size_t>(layer) % variants[i]->copies(), stream, m);
        },
        kRuns);
    (overlap ? result.overlapped_us : result.us) = autotune::median(times);
  }
  // Long enough that the read's beginning and end do not count; the CPU's takes four times the memory.
  const std::size_t read_bytes = std::size_t{1} << (rigs.front().gpu() ? 30 : 26);
  result.read_only_us = autotune::read_floor_us(rigs.front().backend(), read_bytes) *
                        static_cast<double>(result.bytes) / static_cast<double>(read_bytes);
  return result;
}

}  // namespace q4::tools
