// Times the yardsticks, each only if it is expected to end in time.
#include "autotune/yardsticks.hpp"

#include <algorithm>

#include "autotune/read_floor.hpp"
#include "autotune/statistics.hpp"
#include "runtime/base/check.hpp"

namespace q4::autotune {
namespace {

constexpr int kRounds = 3;
constexpr const char* kDense = "dense BLAS";

}  // namespace

Yardsticks::Yardsticks(const Rig& rig, const Problem& problem, DType activation, double setup_s, StepWatch about_to,
                       Forecast& forecast, std::function<double()> seconds_left)
    : rig_(rig),
      problem_(problem),
      activation_(activation),
      setup_s_(setup_s),
      about_to_(std::move(about_to)),
      forecast_(forecast),
      seconds_left_(std::move(seconds_left)) {}

void Yardsticks::measure_floor(TuningRecord& record) const {
  constexpr double kBuffers = 5;  // it writes four times the bytes and reads them, each faster than they are packed
  if (!rig_.gpu() && seconds_left_() <= kBuffers * setup_s_) return;
  const double us = read_floor_us(rig_.backend(), static_cast<std::size_t>(problem_.bytes(0)));
  record.floor_us = record.floor_us > 0 ? std::min(record.floor_us, us) : us;
}

Yardsticks::MathTimes Yardsticks::measure_math(const TacticSpace& space, std::int64_t m) const {
  const std::vector<std::string> ids = {space.of_math(Math::kHalf2, m), space.of_math(Math::kFp32, m)};
  if (ids[0] == ids[1] || space.forbids(ids[0]) || space.forbids(ids[1]) || seconds_left_() <= 0) return {};
  TacticCandidates pair(rig_, ids, m, activation_, about_to_, forecast_);
  const auto share = [&] { return seconds_left_() / (2 * kRounds); };
  if (pair.prepare(0, 0, share) != Outlook::kFits || pair.prepare(1, 0, share) != Outlook::kFits) return {};
  std::vector<double> half2, fp32;
  for (int r = 0; r < kRounds; ++r) half2.push_back(pair.sample(0, m)), fp32.push_back(pair.sample(1, m));
  return {median(half2), median(fp32)};
}

std::int64_t Yardsticks::measure_dense(TuningRecord& record, const std::function<void(std::int64_t)>& at) const {
  std::unique_ptr<Variant> dense;
  for (TunedBucket& b : record.buckets) {
    if (b.us == 0) return 0;
    if (b.dense_us > 0) continue;
    // The first one writes the weights, eight times the packed bytes, which takes less long a byte than packing.
    constexpr double kDenseBytes = 8;
    if (seconds_left_() <= (dense ? 0 : kDenseBytes * setup_s_)) return b.m;
    at(b.m);
    about_to_({kDense, b.m, 0});
    dense = rig_.prepare_dense(b.m, std::move(dense));
    if (!dense) return 0;
    const auto time_at = [&](std::int64_t rows) {
      dense = rig_.prepare_dense(rows, std::move(dense));
      return rig_.sample(*dense, rows);
    };
    const auto runs = static_cast<double>(kRounds * rig_.first_runs());
    if (approach(forecast_, kDense, b.m, runs, 0, seconds_left_, time_at) != Outlook::kFits) return b.m;
    dense = rig_.prepare_dense(b.m, std::move(dense));
    std::vector<double> us;
    for (int r = 0; r < kRounds; ++r) us.push_back(rig_.sample(*dense, b.m));
    b.dense_us = median(us);
    forecast_.note(kDense, b.m, b.dense_us);
    record.provenance["dense"] = to_string(rig_.dense_type(b.m));
  }
  return 0;
}

}  // namespace q4::autotune
