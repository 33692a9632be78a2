// The tactics that compete at one m, as search() sees them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "autotune/rig.hpp"
#include "autotune/search.hpp"

namespace q4::autotune {

/// Both ways of multiplying exist at once, and this prefix tells them apart.
bool is_reconstruct(const std::string& tactic);

/// The tactics of an untuned plan, and which of them only one math offers.
class TacticSpace {
 public:
  TacticSpace(const Rig& rig, std::int64_t max_m, DType activation);

  /// Compiles the tactics of all these m on all cores while time is left; from then on at() lists only what was
  /// reached. Every m's default is always reached, and the m take turns. Returns how many tactics were not.
  std::size_t compile_ahead(const Rig& rig, const std::vector<std::int64_t>& ms,
                            const std::function<bool()>& time_left);

  /// The default first, then `likely` if it is among them, then reconstruct + BLAS, then the others in the library's
  /// order. Reconstruct + BLAS is left out below kReconstructFloor unless it is the default: it moves several times the
  /// bytes.
  std::vector<std::string> at(std::int64_t m, const std::string& likely) const;
  Math math(const std::string& tactic, std::int64_t m) const;  ///< kAuto: offered in both
  /// The default tactic of plans that ask for this math.
  std::string of_math(Math math, std::int64_t m) const { return (math == Math::kHalf2 ? half2_ : fp32_).tactic(m); }

  static constexpr std::int64_t kReconstructFloor = 8;

 private:
  DType activation_;
  MatmulPlan plan_, half2_, fp32_;
  std::optional<std::set<std::string>> compiled_;  ///< none: whatever there is
};

class TacticCandidates : public Candidates {
 public:
  TacticCandidates(const Rig& rig, std::vector<std::string> ids, std::int64_t m, DType activation);

  const std::vector<std::string>& ids() const { return ids_; }
  void prepare(std::size_t index) override;
  double sample(std::size_t index) override { return sample(index, m_); }
  void release(std::size_t index) override;
  double sample(std::size_t index, std::int64_t m);             ///< another m, up to the one prepared for
  void check_results(std::size_t index, std::int64_t m) const;  ///< throws kInternal when they are off

 private:
  PlanOptions options(std::size_t index) const;

  const Rig& rig_;
  std::vector<std::string> ids_;
  std::int64_t m_;
  DType activation_;
  std::vector<std::unique_ptr<Variant>> variants_;
};

}  // namespace q4::autotune
