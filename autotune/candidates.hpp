// The tactics that compete at one m, as search() sees them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "autotune/forecast.hpp"
#include "autotune/rig.hpp"
#include "autotune/search.hpp"

namespace q4::autotune {

/// Both ways of multiplying exist at once, and this prefix tells them apart.
bool is_reconstruct(const std::string& tactic);

/// The device answers no more after this tactic: the process is of no further use.
struct DeviceLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What is about to run, for whoever watches this process.
struct Step {
  std::string tactic;
  std::int64_t m = 0;
  std::size_t runs = 0;  ///< how often the step multiplies at most; 0: it also compiles and allocates
};
using StepWatch = std::function<void(const Step&)>;

/// Runs job(0), job(1), ... on all cores but one: the first `always`, then each that can be expected to end in time,
/// since more seconds are left than the longest one took (`longest_s` before any has ended). Returns which were run.
std::vector<char> run_ahead(std::size_t jobs, std::size_t always, const std::function<void(std::size_t)>& job,
                            const std::function<double()>& seconds_left, double longest_s);

/// The tactics of an untuned plan, and which of them only one math offers.
class TacticSpace {
 public:
  /// `ms`: ascending, of which math() and of_math() know the smallest. `forbidden`: tactics that are listed nowhere.
  TacticSpace(const Rig& rig, const std::vector<std::int64_t>& ms, DType activation,
              std::set<std::string> forbidden = {});

  /// Compiles the tactics of all these m by run_ahead(); from then on at() lists only what was reached. Every m's
  /// default comes first (the first m's is always reached), `likely` is next, and the m take turns. Returns how many
  /// tactics were not.
  std::size_t compile_ahead(const Rig& rig, const std::vector<std::int64_t>& ms, const std::vector<std::string>& likely,
                            const std::function<double()>& seconds_left, double longest_s);

  /// The default first, then those of `likely` that are among them, then reconstruct + BLAS, then the others,
  /// spread over the space. Reconstruct + BLAS is left out below kReconstructFloor unless it is the default: it moves
  /// several times the bytes.
  std::vector<std::string> at(std::int64_t m, const std::vector<std::string>& likely) const;
  std::size_t uncompiled(std::int64_t m) const;  ///< how many of them compile_ahead() did not reach
  bool compiled(const std::string& tactic) const { return !compiled_ || compiled_->count(tactic) > 0; }
  /// Whether this is what an untuned plan runs; at() begins with another one where that is forbidden.
  bool is_default(const std::string& tactic, std::int64_t m) const { return plan_.tactic(m) == tactic; }
  bool forbids(const std::string& tactic) const { return forbidden_.count(tactic) > 0; }
  Math math(const std::string& tactic, std::int64_t m) const;  ///< at the smallest m; kAuto: offered in both
  /// The default tactic of plans that ask for this math; likewise.
  std::string of_math(Math math, std::int64_t m) const { return (math == Math::kHalf2 ? half2_ : fp32_).tactic(m); }

  static constexpr std::int64_t kReconstructFloor = 8;

 private:
  DType activation_;
  MatmulPlan plan_, half2_, fp32_;
  std::set<std::string> forbidden_;
  std::optional<std::set<std::string>> compiled_;  ///< none: whatever there is
};

class TacticCandidates : public Candidates {
 public:
  TacticCandidates(const Rig& rig, std::vector<std::string> ids, std::int64_t m, DType activation, StepWatch about_to,
                   Forecast& forecast);

  const std::vector<std::string>& ids() const { return ids_; }
  Outlook prepare(std::size_t index, double best_us, const std::function<double()>& seconds_left) override;
  double sample(std::size_t index) override { return sample(index, m_); }
  void release(std::size_t index) override;
  double sample(std::size_t index, std::int64_t m);             ///< another m, up to the one prepared for
  void check_results(std::size_t index, std::int64_t m) const;  ///< throws kInternal when they are off

 private:
  /// `work` on this candidate, announced. Throws DeviceLost when the device does not answer afterwards.
  template <class F>
  auto watched(std::size_t index, std::int64_t m, std::size_t runs, const F& work) const;

  const Rig& rig_;
  std::vector<std::string> ids_;
  std::int64_t m_;
  DType activation_;
  StepWatch about_to_;
  Forecast& forecast_;
  std::vector<std::unique_ptr<Variant>> variants_;
};

}  // namespace q4::autotune
