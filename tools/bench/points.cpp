// Checks and times the points, one shape after the other.
#include "tools/bench/points.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "autotune/read_floor.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/onednn.hpp"
#include "tools/bench/timed.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

using autotune::EpilogueData;
using autotune::Problem;
using autotune::Rig;
using autotune::Variant;

constexpr const char* kBlasTactic = "reconstruct+blas";

/// One after the other in turn, as the tuner's final does: drift of clocks and neighbours cancels.
void measure_pairs(const Rig& rig, Variant& tuned, const Rig& other, Variant& standard, double seconds, Point& point) {
  std::vector<double> tuned_us, default_us;
  bool tuned_first = true;
  timed(
      [&] {
        const double first = tuned_first ? rig.sample(tuned, point.m) : other.sample(standard, point.m);
        const double second = tuned_first ? other.sample(standard, point.m) : rig.sample(tuned, point.m);
        tuned_us.push_back(tuned_first ? first : second), default_us.push_back(tuned_first ? second : first);
        tuned_first = !tuned_first;
        return first;
      },
      seconds);
  tuned_us.erase(tuned_us.begin()), default_us.erase(default_us.begin());  // timed() drops the first one too
  point.us = autotune::median_interval(tuned_us);
  point.versus_us = autotune::median(default_us);
  point.gain = autotune::paired_gain(default_us, tuned_us);
}

/// What a CPU can do instead at every m; 0: there is no BLAS.
double blas_us(const Rig& rig, const BenchOptions& options, std::int64_t m) {
  PlanOptions plan;
  plan.max_m = m, plan.activation = options.activation;
  const auto tactics = rig.plan(plan).tactics(m);
  if (std::find(tactics.begin(), tactics.end(), kBlasTactic) == tactics.end()) return 0;
  plan.tactic = kBlasTactic;
  const auto blas = rig.prepare(plan);
  return timed([&] { return rig.sample(*blas, m); }, options.seconds / 2).value;
}

/// Of a point that runs as the options say.
PlanOptions plan_options(const BenchOptions& options, std::int64_t m) {
  PlanOptions plan;
  plan.max_m = m;
  plan.activation = options.activation;
  plan.tactic = options.tactic;
  plan.math = options.math;
  plan.batch_invariant = options.batch_invariant;
  if (options.x_ordered) plan.gather = Gather::kGiven;
  return plan;
}

/// A plan with the epilogue, in turn with the same plan without, on `plain`.
void measure_epilogue(const Rig& rig, const Rig& plain, const EpilogueData& epilogue, const BenchOptions& options,
                      Point& point) {
  PlanOptions plan = plan_options(options, point.m);
  plan.min_m = point.m;  // no kernel for other m is compiled
  const auto alone = plain.prepare(plan);
  plan.epilogue = options.epilogue.epilogue();
  if (options.epilogue.rank > 0) plan.lora_rank = options.epilogue.rank;
  const auto variant = rig.prepare(plan);
  epilogue.give(*variant, point.m);
  point.kernel = variant->plans.front().tactic(point.m);
  point.error = rig.error(*variant, point.m, epilogue.finish());
  // A GPU rounds x A to the activations' type.
  point.exact = point.error <= options.tolerance() * (rig.gpu() && options.epilogue.rank > 0 ? 1.5 : 1);
  measure_pairs(rig, *variant, plain, *alone, options.seconds, point);
}

Point measure_point(const Rig& rig, const Rig& plain, const Runtime& untuned, const Problem& problem,
                    const BenchOptions& options, const EpilogueData* epilogue, std::int64_t m) {
  Point point{problem, m, ""};
  if (epilogue) {
    measure_epilogue(rig, plain, *epilogue, options, point);
    return point;
  }
  const PlanOptions plan = plan_options(options, m);
  const auto variant = rig.prepare(plan);
  point.kernel = variant->plans.front().tactic(m);
  point.error = rig.error(*variant, m);
  point.exact = point.error <= options.tolerance();
  PlanOptions other = plan;
  other.tactic.clear();
  const std::string standard = options.versus == "default" ? rig.plan(other, untuned).tactic(m) : options.versus;
  if (!standard.empty() && standard != point.kernel) {
    other.tactic = standard, other.batch_invariant = false;
    measure_pairs(rig, *variant, rig, *rig.prepare(other), options.seconds, point);
  } else {
    point.us = timed([&] { return rig.sample(*variant, m); }, options.seconds);
    point.versus_us = point.us.value;
  }
  if (!rig.gpu()) point.blas_us = blas_us(rig, options, m);
  if (!rig.gpu() && onednn_available()) {
    point.onednn_us = time_onednn(problem.k, problem.n, m, rig.cold_bytes(), options.seconds / 2);
    point.onednn_u4_us =
        time_onednn(problem.k, problem.n, m, rig.cold_bytes(), options.seconds / 2, OneDnnWeights::kU4);
  }
  if (options.dense)
    if (const auto dense = rig.prepare_dense(m))
      point.dense_us = timed([&] { return rig.sample(*dense, m); }, options.seconds).value;
  return point;
}

void compare_with_ceilings(const CpuCeilings& ceilings, const BenchOptions& options, Point& p) {
  const double flops = p.problem.flops(p.m);
  p.floor_us = ceilings.floor_us(p.problem.bytes(0), flops, options.activation, options.math);
  const double peak = ceilings.vector_peak(options.activation, options.math);
  if (p.us.value > 0 && peak > 0) p.vector_share = flops / p.us.value / 1e3 / peak;
}

}  // namespace

Runtime bench_runtime(bool untuned) {
  RuntimeOptions options;
  if (untuned) options.tuning_files = {"/dev/null"};
  return Runtime(options);
}

void measure_points(const Runtime& runtime, Device device, const std::vector<Problem>& problems,
                    const BenchOptions& options, BenchRun& run) {
  const Runtime untuned = bench_runtime(true);
  Progress progress;
  for (std::size_t index = 0; index < problems.size() && !interrupted(); ++index) {
    const Problem& problem = problems[index];
    const auto show = [&](std::size_t done, const std::string& what) {
      const double share = static_cast<double>(done) / static_cast<double>(options.m.size());
      progress.update((static_cast<double>(index) + share) / static_cast<double>(problems.size()),
                      fmt::format("{} {}x{}  {}", problem.label, problem.k, problem.n, what));
    };
    show(0, "packing");
    autotune::Workload workload(problem, options.activation);
    Rig rig(runtime, device, workload, options.m.back(), 5, true, options.epilogue.gated());
    if (options.x_ordered) rig.order_x();
    std::optional<Rig> without;  // gates and ups
    if (options.epilogue.gated()) without.emplace(runtime, device, workload, options.m.back(), 5);
    const bool cpu = !rig.gpu();
    if (cpu) run.ceilings.merge(measure_cpu_ceilings(rig.backend()));
    const double floor_us =
        cpu ? 0 : autotune::read_floor_us(rig.backend(), static_cast<std::size_t>(problem.bytes(0)));
    std::optional<EpilogueData> epilogue;
    if (options.epilogue.any()) {
      show(0, "adapters");
      epilogue.emplace(runtime, rig.backend(), rig.matrix(), rig.copies(), workload, options.epilogue,
                       options.m.back());
    }
    const std::size_t first = run.points.size();
    for (std::size_t i = 0; i < options.m.size() && !interrupted(); ++i) {
      const std::int64_t m = options.m[i];
      show(i, fmt::format("m = {}", m));
      try {
        run.points.push_back(measure_point(rig, without ? *without : rig, untuned, problem, options,
                                           epilogue ? &*epilogue : nullptr, m));
      } catch (const Error& error) {  // the other points are worth having
        run.points.push_back({problem, m, std::string("error: ") + error.what()});
        run.refused += error.code() == ErrorCode::kInvalidArgument;
      }
      const double flops_us = options.peak_tflops > 0 ? problem.flops(m) / options.peak_tflops / 1e6 : 0;
      run.points.back().floor_us = std::max(floor_us, flops_us);
    }
    if (cpu) {
      run.ceilings.merge(measure_cpu_ceilings(rig.backend()));
      for (std::size_t i = first; i < run.points.size(); ++i)
        compare_with_ceilings(run.ceilings, options, run.points[i]);
      if (options.scaling)
        for (const ScalingPoint& point :
             measure_scaling(workload, options.m, plan_options(options, 0), options.seconds))
          run.scaling.push_back(point);
    }
    progress.line(fmt::format("[{}/{}] {} {}x{}: {} copies of the weights, {}", index + 1, problems.size(),
                              problem.label, problem.k, problem.n, rig.copies(), megabytes(rig.cold_bytes())));
  }
}

}  // namespace q4::tools
