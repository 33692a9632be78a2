// The HTML report of a tuning run: one self-contained page with inline SVG, no script and nothing from the network.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "autotune/tuner.hpp"

namespace q4::autotune {

/// A shape with what came of it.
struct TunedShape {
  Problem problem;
  DType activation = DType::kF16;
  Tuned tuned;
  bool kept = false;     ///< from an earlier run's file: without the samples and counts of its measurement
  bool reached = false;  ///< tuned or kept
};

/// A run of q4-autotune.
struct TuningRun {
  DeviceInfo info;
  std::string policy, file, date, version;      ///< file: the tuning file; version: of q4
  std::map<std::string, std::string> versions;  ///< of drivers, compilers and libraries
  std::string kernels;                          ///< tuning_digest()
  double seconds = 0, budget = 0;               ///< budget 0: unlimited
  bool interrupted = false;
  std::vector<TunedShape> shapes;
};

std::string name_of(const TunedShape& shape);       ///< "qkv 4096x6144 g128"
std::string size_of_shape(const Problem& problem);  ///< "4096x6144 g128 act-order"
std::string signed_percent(double share);           ///< "+3.4%", "0%"

/// Why a shape has no times at all; empty: it has some.
std::string why_not_measured(const TunedShape& shape);

/// The unit of all arithmetic rates of one run, so that its numbers can be compared.
struct ArithmeticUnit {
  const char* name = "TFLOP/s";
  double per_tflop = 1;
  double rate(const Problem& problem, std::int64_t m, double us) const {
    return us > 0 ? per_tflop * problem.flops(m) / us / 1e6 : 0;
  }
};
ArithmeticUnit unit_of(const TuningRun& run);  ///< GFLOP/s where nothing reaches 2 TFLOP/s

/// How much faster than the default: its time divided by the tuned one, minus 1. 0 where the default is quarantined.
double gain(const TunedBucket& bucket);
/// Geometric mean over the buckets, less 1; 0 for none.
double geomean_gain(const TuningRecord& record);
/// Microseconds that reading W once, x and out takes at the rate of the read-only kernel; 0: not measured.
double floor_us(const Problem& problem, const TuningRecord& record, std::int64_t m);

/// The whole page.
std::string html_report(const TuningRun& run);

}  // namespace q4::autotune
