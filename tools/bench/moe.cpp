// q4-bench --moe: points, and what is shown of them.
#include "tools/bench/moe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "autotune/tolerance.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/timed.hpp"
#include "tools/common/csv.hpp"

namespace q4::tools {
MoeProblem parse_moe(const std::string& text) {
  std::vector<std::int64_t> numbers;
  for (const auto& part : split(text, ",")) numbers.push_back(parse_whole(part, "--moe = " + text));
  check(numbers.size() == 4, "--moe = {}: give E,topk,K,I, four whole numbers such as 128,8,2048,768", text);
  MoeProblem p{numbers[0], numbers[1], numbers[2], numbers[3]};
  check(p.experts >= 1 && p.experts <= 65536, "--moe = {}: E = {} must be in [1, 65536]", text, p.experts);
  check(p.topk >= 1 && p.topk <= std::min<std::int64_t>(p.experts, 32), "--moe = {}: topk = {} must be in [1, {}]",
        text, p.topk, std::min<std::int64_t>(p.experts, 32));
  check(p.k >= 8 && p.k % 8 == 0 && p.width >= 8 && p.width % 8 == 0 && p.k < (1 << 24) && p.width < (1 << 24),
        "--moe = {}: K = {} and I = {} must be multiples of 8 in [8, 2^24)", text, p.k, p.width);
  return p;
}

namespace {

MoePoint measure(const autotune::MoeRig& rig, const MoeProblem& problem, const MoeBenchOptions& options,
                 std::int64_t m) {
  MoePoint point{problem, m, ""};
  MoeOptions plan;
  plan.max_tokens = m, plan.tactic = options.tactic, plan.batch_invariant = options.batch_invariant;
  const auto plans = rig.plans(plan);
  const auto traffic = rig.traffic(m, options.zipf);
  point.kernel = plans.front().tactic(m), point.active = traffic.active;
  point.error = rig.error(plans, traffic);
  point.exact = point.error <= autotune::tolerance_of_experts(options.activation);
  point.us = timed([&] { return rig.sample(plans, traffic); }, options.seconds);
  point.floor_us = rig.floor_us(traffic);
  return point;
}

}  // namespace

std::vector<MoePoint> measure_moe(const Runtime& runtime, Device device, const MoeProblem& problem,
                                  const MoeBenchOptions& options) {
  Progress progress;
  progress.update(0, "packing the experts");
  const autotune::MoeRig rig(runtime, device, problem, options.activation, options.m.back());
  std::vector<MoePoint> points;
  for (std::size_t i = 0; i < options.m.size() && !interrupted(); ++i) {
    progress.update(static_cast<double>(i) / static_cast<double>(options.m.size()),
                    fmt::format("m = {}", options.m[i]));
    try {
      points.push_back(measure(rig, problem, options, options.m[i]));
    } catch (const Error& error) {  // the other points are worth having
      points.push_back({problem, options.m[i], std::string("error: ") + error.what()});
      points.back().refused = error.code() == ErrorCode::kInvalidArgument;
    }
  }
  return points;
}

std::string moe_table(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options) {
  Table table({"E", "topk", "K x I", "group", "m", "us", "95% interval", "TFLOP/s", "GB/s", "active experts",
               "floor us", "x floor", "rel_err", "kernel"});
  for (const MoePoint& p : points)
    table.add({std::to_string(p.problem.experts), std::to_string(p.problem.topk),
               fmt::format("{}x{}", p.problem.k, p.problem.width),
               fmt::format("{}{}", p.problem.group, p.problem.act_order ? " act-order" : ""), std::to_string(p.m),
               number(p.us.value), p.us.low < p.us.high ? number(p.us.low) + "-" + number(p.us.high) : "-",
               number(p.tflops()), number(p.gbps()), number(p.active), number(p.floor_us),
               p.us.value > 0 && p.floor_us > 0 ? fmt::format("{:.2f}", p.us.value / p.floor_us) : "-",
               fmt::format("{:.1e}{}", p.error, p.exact ? "" : " WRONG"), p.kernel});
  return fmt::format("{} ({}, {}), {} activations, {} routing\n{}", info.device.str(), info.name, info.arch,
                     to_string(options.activation), options.zipf ? "zipf" : "uniform", table.str());
}

Json moe_json(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options) {
  Json out{{"device", info.device.str()},
           {"fingerprint", info.fingerprint},
           {"activation", to_string(options.activation)},
           {"routing", options.zipf ? "zipf" : "uniform"},
           {"points", Json::array()}};
  for (const MoePoint& p : points)
    out["points"].push_back(Json{{"kernel", p.kernel},
                                 {"k", p.problem.k},
                                 {"n", p.problem.width},
                                 {"group", p.problem.group},
                                 {"act_order", p.problem.act_order},
                                 {"E", p.problem.experts},
                                 {"topk", p.problem.topk},
                                 {"m", p.m},
                                 {"us", p.us.value},
                                 {"low", p.us.low},
                                 {"high", p.us.high},
                                 {"tflops", p.tflops()},
                                 {"gbps", p.gbps()},
                                 {"active", p.active},
                                 {"rel_err", p.error},
                                 {"exact", p.exact},
                                 {"floor_us", p.floor_us}});
  return out;
}

std::string moe_csv(const std::vector<MoePoint>& points, const MoeBenchOptions& options) {
  std::string text = "kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err,E,topk,routing,active,floor_us\n";
  for (const MoePoint& p : points)
    text += fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{:.1f},{:.2e},{},{},{},{:.1f},{:.3f}\n", p.kernel, p.problem.k,
                        p.problem.width, p.problem.group, p.problem.act_order ? 1 : 0, p.m, p.us.value, p.tflops(),
                        p.gbps(), p.error, p.problem.experts, p.problem.topk, options.zipf ? "zipf" : "uniform",
                        p.active, p.floor_us);
  return text;
}

}  // namespace q4::tools
