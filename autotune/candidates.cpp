// Lists tactics, compiles them ahead, checks and times them.
#include "autotune/candidates.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <sstream>

#include "autotune/tolerance.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/jobs.hpp"

namespace q4::autotune {
namespace {

bool offers(const MatmulPlan& plan, const std::string& tactic, std::int64_t m) {
  const auto list = plan.tactics(m);
  return std::find(list.begin(), list.end(), tactic) != list.end();
}

PlanOptions options_of(const std::string& tactic, std::int64_t max_m, DType activation) {
  PlanOptions options;
  options.max_m = max_m;
  options.activation = activation;
  options.tactic = tactic;
  return options;
}

/// Where each stands in an order whose every beginning is spread over the space, since time may end there: kernels take
/// turns by their share, the configs of one by multiples of the golden ratio. The kernel that is listed last, which
/// serves everywhere and seldom best, follows the others.
std::map<std::string, double> spread_order(const std::vector<std::string>& ids) {
  const auto kernel = [](const std::string& id) { return id.substr(0, id.find(' ')); };
  std::map<std::string, std::size_t> sizes;
  for (const std::string& id : ids) ++sizes[kernel(id)];
  std::map<std::string, double> order;
  std::map<std::string, std::size_t> seen;
  for (const std::string& id : ids) {
    constexpr double kGolden = 0.6180339887498949;
    const double turn = kGolden * static_cast<double>(seen[kernel(id)]++);
    const bool last = sizes.size() > 1 && sizes[kernel(id)] > 1 && kernel(id) == kernel(ids.back());
    order[id] = turn - std::floor(turn) + (last ? 1 : 0);
  }
  return order;
}

/// Whether two tactics differ in one tunable alone.
bool neighbours(const std::string& a, const std::string& b) {
  std::istringstream in_a(a), in_b(b);
  int changes = 0;
  std::string word_a, word_b;
  while (in_a >> word_a && in_b >> word_b) changes += word_a != word_b;
  return changes == 1 && a.substr(0, a.find(' ')) == b.substr(0, b.find(' '));
}

}  // namespace

bool is_reconstruct(const std::string& tactic) { return tactic.starts_with("reconstruct"); }

std::vector<char> run_ahead(std::size_t jobs, std::size_t always, const std::function<void(std::size_t)>& job,
                            const std::function<double()>& seconds_left, double longest_s) {
  constexpr std::size_t kMostThreads = 31;
  std::atomic<double> longest = longest_s;
  std::vector<char> reached(jobs);
  // One core is left to whoever measures meanwhile.
  run_jobs(jobs, std::clamp<std::size_t>(hardware_threads() - 1, 1, kMostThreads), [&](std::size_t i) {
    if (i >= always && seconds_left() <= longest) return;
    const auto start = std::chrono::steady_clock::now();
    reached[i] = 1;
    job(i);
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (double known = longest; known < took && !longest.compare_exchange_weak(known, took);) {}
  });
  return reached;
}

TacticSpace::TacticSpace(const Rig& rig, const std::vector<std::int64_t>& ms, DType activation,
                         std::set<std::string> forbidden)
    : activation_(activation), forbidden_(std::move(forbidden)) {
  PlanOptions options = options_of("", ms.back(), activation);
  plan_ = rig.plan(options);
  options.max_m = ms.front();     // where a math is told: at more, kernels would be compiled that nobody asks for
  options.reconstruct_from = -1;  // only the direct kernels have a math
  options.math = Math::kHalf2;
  half2_ = rig.plan(options);
  options.math = Math::kFp32;
  fp32_ = rig.plan(options);
}

std::size_t TacticSpace::compile_ahead(const Rig& rig, const std::vector<std::int64_t>& ms,
                                       const std::vector<std::string>& likely,
                                       const std::function<double()>& seconds_left, double longest_s) {
  std::vector<std::vector<std::string>> lists;
  std::size_t longest = 0;
  for (const std::int64_t m : ms) longest = std::max(longest, lists.emplace_back(at(m, likely)).size());
  std::vector<std::pair<std::string, std::int64_t>> jobs;  // the defaults of all m first, then the m take turns
  std::set<std::string> seen;
  for (std::size_t turn = 0; turn < longest; ++turn)
    for (std::size_t i = 0; i < ms.size(); ++i)
      if (turn < lists[i].size() && seen.insert(lists[i][turn]).second) jobs.emplace_back(lists[i][turn], ms[i]);
  const auto compile = [&](std::size_t i) {
    try {
      rig.plan(options_of(jobs[i].first, jobs[i].second, activation_));  // its code stays in the kernel cache
    } catch (const std::exception&) {                                    // prepare() meets it again, and reports it
    }
  };
  const std::vector<char> reached = run_ahead(jobs.size(), 1, compile, seconds_left, longest_s);
  compiled_.emplace();
  for (std::size_t i = 0; i < jobs.size(); ++i)
    if (reached[i]) compiled_->insert(jobs[i].first);
  return jobs.size() - compiled_->size();
}

std::vector<std::string> TacticSpace::at(std::int64_t m, const std::vector<std::string>& likely) const {
  std::vector<std::string> ids = plan_.tactics(m);
  std::erase_if(ids, [&](const std::string& id) { return forbids(id); });
  check(!ids.empty(), "tune: MatmulPlan::tactics({}) lists nothing", m);
  const auto spread = spread_order(ids);
  const auto rank = [&](const std::string& id) {
    const auto place = std::find(likely.begin(), likely.end(), id) - likely.begin();
    const auto last = static_cast<std::ptrdiff_t>(likely.size());
    if (place < last) return static_cast<double>(place);
    const double tier = is_reconstruct(id) ? 0 : neighbours(id, ids[0]) ? 1 : 3;  // spread() is below 2
    return static_cast<double>(last) + tier + spread.at(id);
  };
  std::stable_sort(ids.begin() + 1, ids.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  if (m < kReconstructFloor) ids.erase(std::remove_if(ids.begin() + 1, ids.end(), is_reconstruct), ids.end());
  if (compiled_)
    ids.erase(std::remove_if(ids.begin() + 1, ids.end(), [&](const auto& id) { return !compiled_->count(id); }),
              ids.end());
  return ids;
}

Math TacticSpace::math(const std::string& tactic, std::int64_t m) const {
  const bool half2 = offers(half2_, tactic, m), fp32 = offers(fp32_, tactic, m);
  return half2 == fp32 ? Math::kAuto : half2 ? Math::kHalf2 : Math::kFp32;
}

std::size_t TacticSpace::uncompiled(std::int64_t m) const {
  if (!compiled_) return 0;
  const std::vector<std::string> ids = plan_.tactics(m);
  return static_cast<std::size_t>(std::ranges::count_if(ids, [&](const std::string& id) {
    return !forbids(id) && !compiled_->count(id) && (m >= kReconstructFloor || !is_reconstruct(id));
  }));
}

TacticCandidates::TacticCandidates(const Rig& rig, std::vector<std::string> ids, std::int64_t m, DType activation,
                                   StepWatch about_to, Forecast& forecast)
    : rig_(rig),
      ids_(std::move(ids)),
      m_(m),
      activation_(activation),
      about_to_(std::move(about_to)),
      forecast_(forecast),
      variants_(ids_.size()) {}

template <class F>
auto TacticCandidates::watched(std::size_t index, std::int64_t m, std::size_t runs, const F& work) const {
  about_to_({ids_[index], m, runs});
  try {
    return work();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kDevice) throw;
    try {
      rig_.touch();
    } catch (const Error&) { throw DeviceLost(error.what()); }
    throw;
  }
}

Outlook TacticCandidates::prepare(std::size_t index, double best_us, const std::function<double()>& seconds_left) {
  watched(index, m_, 0, [&] { variants_[index] = rig_.prepare(options_of(ids_[index], m_, activation_)); });
  const auto left = [&] { return seconds_left() - rig_.reference_s(m_); };
  const auto runs = static_cast<double>(1 + rig_.first_runs());  // checked once, then timed
  const Outlook outlook = approach(forecast_, ids_[index], m_, runs, best_us, left, [&](std::int64_t rows) {
    variants_[index]->estimate_us = 0;  // as few runs as possible
    return sample(index, rows);
  });
  variants_[index]->estimate_us = 0;
  if (outlook == Outlook::kFits) check_results(index, m_);
  return outlook;
}

void TacticCandidates::check_results(std::size_t index, std::int64_t m) const {
  constexpr std::size_t kRuns = 2;  // one, and the reference
  const double error = watched(index, m, kRuns, [&] { return rig_.error(*variants_[index], m); });
  const double allowed = tolerance(activation_) * rig_.more_rounding();
  if (!(error <= allowed))
    fail(ErrorCode::kInternal, "wrong result at m = {}: relative error {:.2e}, allowed {:.0e}", m, error, allowed);
}

double TacticCandidates::sample(std::size_t index, std::int64_t m) {
  const double us = watched(index, m, rig_.most_runs(), [&] { return rig_.sample(*variants_[index], m); });
  forecast_.note(ids_[index], m, us);
  return us;
}

void TacticCandidates::release(std::size_t index) { variants_[index].reset(); }

}  // namespace q4::autotune
