// What q4-bench measures: one point for each shape and m, checked before it is timed.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "autotune/epilogue.hpp"
#include "autotune/rig.hpp"
#include "autotune/statistics.hpp"
#include "autotune/tolerance.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/bench/cpu_ceilings.hpp"
#include "tools/bench/scaling.hpp"
#include "tools/common/shapes.hpp"

namespace q4::tools {

struct BenchOptions {
  ShapeOptions shapes;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  Math math = Math::kAuto;
  std::string tactic, csv, baseline, versus;
  bool untuned = false, dense = false, batch_invariant = false, scaling = false, summary = false;
  bool x_ordered = false;  ///< with act-order: x comes in the matrix's order (Gather::kGiven)
  autotune::EpilogueChoice epilogue = {};
  double seconds = 1;      ///< of a point
  double peak_tflops = 0;  ///< of a GPU's tensor cores, for the floor; 0: the floor is the read alone
  std::int64_t chain = 0;  ///< layers; 0: points, no chain

  double tolerance() const { return autotune::tolerance(activation, math); }
};

struct Point {
  autotune::Problem problem;
  std::int64_t m = 0;
  std::string kernel;  ///< the tactic, or the error that it raised
  autotune::Interval us = {};
  double error = 0, floor_us = 0, dense_us = 0;
  double blas_us = 0, vector_share = 0;    ///< CPU: reconstruct + BLAS; share of the vector unit's measured peak
  double onednn_us = 0, onednn_u4_us = 0;  ///< CPU: dense bf16; 4-bit weights, bf16 activations
  bool exact = false;
  double versus_us = 0;          ///< with an epilogue: the same plan without it
  autotune::Interval gain = {};  ///< over what it is compared with, of paired rounds
  double tflops() const { return us.value > 0 ? problem.flops(m) / us.value / 1e6 : 0; }
  double gbps() const { return us.value > 0 ? problem.bytes(m) / us.value / 1e3 : 0; }
};

/// All that a run of q4-bench found.
struct BenchRun {
  DeviceInfo info;
  std::size_t tuning_records = 0;
  std::vector<Point> points = {};
  std::size_t refused = 0;  ///< of them: a tactic that does not exist, for example
  CpuCeilings ceilings = {};
  std::vector<ScalingPoint> scaling = {};  ///< CPU, where the options ask for it
  std::optional<Baseline> baseline;
};

/// A runtime with the user's tuning files, or without any.
Runtime bench_runtime(bool untuned);

/// Adds the points of every shape and m to `run`, in order, until that is done or interrupted(). Progress is on stderr.
void measure_points(const Runtime& runtime, Device device, const std::vector<autotune::Problem>& problems,
                    const BenchOptions& options, BenchRun& run);

}  // namespace q4::tools
