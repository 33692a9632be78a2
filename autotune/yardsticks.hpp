// What stands beside the tactics of a shape without competing: a read-only kernel, the dense BLAS, half2 against fp32.
#pragma once

#include <functional>
#include <q4/tuning.hpp>

#include "autotune/candidates.hpp"

namespace q4::autotune {

class Yardsticks {
 public:
  /// `setup_s`: what packing one copy of the weights took, from which the costs here are foreseen.
  Yardsticks(const Rig& rig, const Problem& problem, DType activation, double setup_s, StepWatch about_to,
             Forecast& forecast, std::function<double()> seconds_left);

  /// Sets record.floor_us, to the least that was ever seen, where there is time for it.
  void measure_floor(TuningRecord& record) const;

  /// half2 against fp32 at one m, each in the default tactic of plans that request it. 0: there is one alone, or no
  /// time.
  struct MathTimes {
    double half2_us = 0, fp32_us = 0;
  };
  MathTimes measure_math(const TacticSpace& space, std::int64_t m) const;

  /// Sets dense_us of the record's buckets, by ascending m as far as there is time. Returns the first m that has none
  /// for lack of time; 0: there is none.
  std::int64_t measure_dense(TuningRecord& record, const std::function<void(std::int64_t)>& at) const;

 private:
  const Rig& rig_;
  const Problem& problem_;
  DType activation_;
  double setup_s_;
  StepWatch about_to_;
  Forecast& forecast_;
  std::function<double()> seconds_left_;
};

}  // namespace q4::autotune
