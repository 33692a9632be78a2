// q4-bench --moe: a layer of experts, checked and timed for each number of tokens.
#pragma once

#include <cstdint>
#include <q4/moe.hpp>
#include <string>
#include <vector>

#include "autotune/moe_rig.hpp"
#include "autotune/statistics.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

using autotune::MoeProblem;

/// "128,8,2048,768": E, topk, K, I. Throws kInvalidArgument.
MoeProblem parse_moe(const std::string& text);

struct MoeBenchOptions {
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  std::string tactic;
  bool batch_invariant = false, zipf = false;  ///< zipf: expert e is drawn with weight 1 / (1 + e), else all alike
  double seconds = 1;                          ///< of a point
};

struct MoePoint {
  MoeProblem problem;
  std::int64_t m = 0;
  std::string kernel;  ///< the tactic, or the error that it raised
  autotune::Interval us = {};
  double error = 0, floor_us = 0;
  double active = 0;  ///< experts that have tokens, in the mean
  bool exact = false, refused = false;
  double tflops() const { return us.value > 0 ? problem.flops(m) / us.value / 1e6 : 0; }
  double gbps() const {
    return us.value > 0 ? (active * problem.expert_bytes() + problem.x_bytes(m)) / us.value / 1e3 : 0;
  }
};

/// Until all m are done or interrupted(). Progress is on stderr.
std::vector<MoePoint> measure_moe(const Runtime& runtime, Device device, const MoeProblem& problem,
                                  const MoeBenchOptions& options);

std::string moe_table(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options);
Json moe_json(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options);
std::string moe_csv(const std::vector<MoePoint>& points, const MoeBenchOptions& options);

}  // namespace q4::tools
