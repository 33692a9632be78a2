// Keeps what is known, shares the time out, tunes and saves.
#include "autotune/process/session.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <q4/q4.hpp>

#include "autotune/plot.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"

namespace q4::autotune {

Session::Session(const Supervisor::Options& worker, const SessionOptions& options, const SessionWatch& watch)
    : worker_(worker),
      options_(options),
      watch_(watch),
      supervisor_(worker),
      turn_(supervisor_.hello().address),
      neighbours_(device().info, device().address),
      patience_s_(std::min(10.0, options.budget_s > 0 ? 0.05 * options.budget_s : 10.0)),
      file_("") {}

double Session::elapsed() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - options_.start).count();
}

double Session::left_s() const { return options_.budget_s > 0 ? options_.budget_s - elapsed() : 1e9; }

/// By how much a worker may overrun the budget before it is killed.
double Session::grace_s() const { return options_.budget_s > 0 ? std::clamp(0.05 * options_.budget_s, 0.3, 2.0) : 2.0; }

TuningKey Session::key_of(const TunedShape& row) const {
  const Hello& hello = device();
  return autotune::key_of(hello.info, hello.kernels, row.problem, row.activation, options_.policy);
}

void Session::begin(std::vector<TunedShape> shapes, std::vector<std::int64_t> m, const std::string& file) {
  m_ = std::move(m);
  file_ = TuningFile(file, worker_.interrupted);
  for (TunedShape& shape : shapes) rows_.emplace_back(std::move(shape));
  const TuningDb db = file_.load();
  for (Row& row : rows_) {
    const auto record = options_.again ? std::nullopt : find_exact(db, key_of(row));
    if (!record) continue;
    row.quarantined = record->quarantined;
    if (covers(*record, m_)) {
      row.tuned.record = *record;
      row.tuned.complete = row.kept = row.reached = true;
    } else {
      row.earlier = *record;
    }
  }
}

void Session::check_writable() const {
  // A file of which nothing is to be changed may be read-only. A shard without shapes has one as well.
  if (!std::ranges::all_of(rows_, &Row::reached) || !std::filesystem::exists(file_.path())) file_.check_writable();
}

std::size_t Session::kept() const { return static_cast<std::size_t>(std::ranges::count_if(rows_, &Row::kept)); }

TuningRun Session::run() {
  {
    const std::jthread compiler = compile_ahead();
    for (std::size_t i = 0; i < rows_.size() && !worker_.interrupted(); ++i)
      if (!rows_[i].reached && wait_for_turn()) {
        wait_for_others();
        tune_one(i);
        turn_.release();
      }
  }
  return finish();
}

/// This shape's part of the time that is left: half of it equal, half by size, since packing and running follow size.
double Session::seconds_for(std::size_t index) const {
  const double most = options_.shape_budget_s > 0 ? options_.shape_budget_s : 1e9;
  if (options_.budget_s <= 0) return most;
  double area = 0, shapes = 0;
  for (std::size_t i = index; i < rows_.size(); ++i)
    if (!rows_[i].reached) area += rows_[i].problem.weights(), shapes += 1;
  return std::min(most, left_s() * (0.5 / shapes + 0.5 * rows_[index].problem.weights() / area));
}

bool Session::wait_for_turn() {
  int holder = 0;
  for (bool announced = false; !turn_.take(holder); announced = true) {
    const std::string who = holder > 0 ? fmt::format(" (process {})", holder) : "";
    if (!announced)
      watch_.line(fmt::format("another q4-autotune{} measures on {} ({}): taking turns by shape", who,
                              device().info.device.str(), device().address));
    watch_.progress(options_.budget_s > 0 ? elapsed() / options_.budget_s : 0, "waiting for another q4-autotune" + who);
    if (worker_.interrupted() || left_s() <= 0) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

/// Looks whether somebody else computes there. Patience is for the whole run, and short: who shares a device for good would
/// never be measured. On a GPU before the first shape alone, since utilization lags behind what this run does.
void Session::wait_for_others() {
  const bool first = std::ranges::none_of(rows_, [](const Row& row) { return row.reached && !row.kept; });
  if (left_s() < 2 || (traits_of(device().info.device).asynchronous && !first)) return;
  for (bool announced = false;; announced = true) {
    const double begun = elapsed();
    others_ = neighbours_.look();
    if (!others_.disturb() || patience_s_ <= 0 || left_s() <= 0 || worker_.interrupted()) return;
    if (!announced)
      watch_.line(fmt::format("{}: {}: waiting up to {:.1f} s for them", device().info.device.str(), others_.text(),
                              patience_s_));
    watch_.progress(options_.budget_s > 0 ? elapsed() / options_.budget_s : 0, "waiting for others on the device");
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    patience_s_ -= elapsed() - begun;
  }
}

/// From the file, where this very shape may be, then from what this run measured.
std::vector<LikelyTactic> Session::likely(const TuningKey& key) const {
  std::vector<LikelyTactic> all;
  try {
    all = likely_from(file_.load(), key);
  } catch (const Error&) {  // whoever changed the file meanwhile: only an order is lost
  }
  const Row* nearest = nullptr;
  for (const Row& row : rows_)
    if (!row.tuned.buckets.empty() && row.activation == key.activation &&
        (!nearest || distance(key_of(row), key) < distance(key_of(*nearest), key)))
      nearest = &row;
  if (nearest)
    for (auto& l : likely_from(nearest->tuned)) all.push_back(std::move(l));
  return all;
}

/// The kernels of all shapes but the first, in a process beside the one that measures. What it does not reach, or fails
/// to compile, the other one does itself and reports.
std::jthread Session::compile_ahead() const {
  std::vector<Job> jobs;
  for (const Row& row : rows_) {
    if (row.reached) continue;
    Job& job = jobs.emplace_back(Job{row.problem, {}});
    job.options.m = m_, job.options.activation = row.activation, job.options.compile_only = true;
    job.options.quarantined = row.quarantined;
  }
  if (jobs.size() < 2 || !traits_of(device().info.device).compiles) return {};
  return std::jthread([jobs, worker = worker_](const std::stop_token& stop) {
    Supervisor::Options options = worker;
    options.stop_s = 0;
    options.interrupted = [&] { return stop.stop_requested() || worker.interrupted(); };
    try {
      Supervisor beside(options);
      for (std::size_t i = 1; i < jobs.size() && !options.interrupted(); ++i)
        beside.tune(jobs[i], {[](const TuneProgress&) {}, [](const QuarantinedTactic&) {}});
    } catch (const std::exception&) {  // an accelerator, not a part of the result
    }
  });
}

TuneOptions Session::options_for(std::size_t index) const {
  const Row& row = rows_[index];
  const Hello& hello = device();
  TuneOptions options;
  options.seconds = seconds_for(index);
  options.m = m_;
  options.activation = row.activation;
  options.policy = options_.policy;
  options.exhaustive = options_.exhaustive;
  options.yardsticks = options_.yardsticks;
  options.quarantined = row.quarantined;
  if (row.earlier) {
    Resumed resumed = resume(*row.earlier);
    options.known = std::move(resumed.known), options.slow = std::move(resumed.slow);
  }
  options.likely = likely(key_of(row));
  options.provenance = {{"q4", options_.version},
                        {"driver", hello.info.driver},
                        {"date", fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)))}};
  for (const auto& [name, version] : hello.versions)
    if (name.find("blas") != std::string::npos) options.provenance[name] = version;
  if (!traits_of(hello.info.device).asynchronous)  // on a GPU it depends on the size, and takes no time
    for (const Row& other : rows_)
      if (other.tuned.record.floor_us > 0)
        options.floor_us_per_byte = other.tuned.record.floor_us / other.problem.bytes(0);
  return options;
}

void Session::not_begun(Row& row, const std::string& why) {
  if (row.earlier) row.tuned.record = *row.earlier, row.kept = true;
  row.tuned.notes.push_back(std::string(kNotMeasured) + ": " + why);
  row.reached = true;
}

void Session::tune_one(std::size_t index) {
  Row& row = rows_[index];
  const double begun = elapsed(), weights = row.problem.weights();
  Job job{row.problem, options_for(index)};
  const double seconds = job.options.seconds;
  if (seconds <= setup_s_per_weight_ * weights)
    return not_begun(row, fmt::format("{:.1f} s are left for it, and setting it up takes about {:.1f} s",
                                      std::max(seconds, 0.0), setup_s_per_weight_ * weights));
  double setup_s = 0;
  const Supervisor::Watcher watcher{
      [&](const TuneProgress& p) {
        if (p.fraction > 0 && setup_s == 0) setup_s = elapsed() - begun;
        const double of_all = options_.budget_s > 0
                                  ? (begun + p.fraction * seconds) / options_.budget_s
                                  : (static_cast<double>(index) + p.fraction) / static_cast<double>(rows_.size());
        std::string text = fmt::format("{}  {}", name_of(row), p.stage);
        if (p.best_us > 0)
          text += fmt::format("  best {} us (gain {})", short_number(p.best_us),
                              signed_percent(p.default_us / p.best_us - 1));
        watch_.progress(of_all, text);
      },
      [&](const QuarantinedTactic& q) {
        watch_.line(fmt::format("{}: '{}' at m = {} is quarantined: {}", name_of(row), q.tactic, q.m, q.reason));
        row.quarantined.push_back(q);
        const std::string problem = error_of([&] { file_.quarantine(key_of(row), q); });
        if (!problem.empty()) watch_.line(problem);
      }};
  // A shape may borrow half as much again before its worker is killed; none may overrun the budget.
  row.tuned = supervisor_.tune(std::move(job), watcher, std::min(1.5 * seconds, left_s()) + grace_s());
  row.reached = true;
  if (setup_s == 0 && !row.tuned.complete) setup_s = elapsed() - begun;  // it was ended before it was set up
  constexpr std::int64_t kLarge = 1 << 22;  // weights; for fewer, setting up is mostly what costs the same for all
  if (weights >= kLarge && (setup_s_per_weight_ == 0 || setup_s / weights < setup_s_per_weight_))
    setup_s_per_weight_ = setup_s / weights;
  // Beside others a time may be longer than it is: whoever reads the record is to know.
  if (!traits_of(device().info.device).asynchronous && left_s() > 1) {
    const Neighbours after = neighbours_.look();
    if (after.share > others_.share) others_ = after;
  }
  if (others_.disturb()) {
    row.tuned.record.provenance["others"] = others_.text();
    row.tuned.notes.push_back("measured beside others, so that times may be too long: " + others_.text());
  }
  if (!row.tuned.record.buckets.empty() || !row.tuned.slow.empty())
    row.unsaved = error_of([&] { file_.store(row.tuned.record); });
  if (!row.unsaved.empty()) watch_.line(row.unsaved + "; tried again at the end");
  watch_.line(fmt::format("[{}/{}] {}: {} tactics measured at {} m in {:.1f} s{}", index + 1, rows_.size(),
                          name_of(row), row.tuned.measured, row.tuned.buckets.size(), elapsed() - begun,
                          row.tuned.complete ? "" : " (not everything: see the notes)"));
}

/// The text of its Error; a full disk does not end the run.
template <class F>
std::string Session::error_of(const F& work) {
  try {
    work();
    return {};
  } catch (const Error& e) { return e.what(); }
}

TuningRun Session::finish() {
  for (Row& row : rows_) {
    if (!row.reached) not_begun(row, worker_.interrupted() ? "interrupted before it began" : "no time was left for it");
    if (row.unsaved.empty()) continue;
    row.unsaved = error_of([&] { file_.store(row.tuned.record); });
    if (row.unsaved.empty()) continue;
    row.tuned.failed = true;
    row.tuned.notes.push_back("not saved: " + row.unsaved);
  }
  TuningRun run;
  const Hello& hello = device();
  run.info = hello.info, run.versions = hello.versions, run.kernels = hello.kernels;
  run.policy = options_.policy, run.file = file_.path(), run.version = options_.version;
  run.date = fmt::format("{:%F %T} UTC", fmt::gmtime(std::time(nullptr)));
  run.seconds = elapsed(), run.budget = options_.budget_s, run.interrupted = worker_.interrupted();
  run.shapes.assign(rows_.begin(), rows_.end());
  return run;
}

}  // namespace q4::autotune
