// Keeps what is known, shares the time out, tunes, saves and reports.
#include "tools/tuning_session.hpp"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <q4/q4.hpp>
#include <thread>

#include "runtime/base/check.hpp"
#include "tools/common/tool.hpp"
#include "tools/tuning_output.hpp"

namespace q4::tools {
namespace {

/// Held while a file is read, changed and replaced. It is of the folder, so that nothing is left behind.
class FolderLock {
 public:
  explicit FolderLock(const std::string& file) {
    const auto folder = std::filesystem::path(file).parent_path();
    folder_ = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_ >= 0) ::flock(folder_, LOCK_EX);  // without lock support: as before
  }
  ~FolderLock() {
    if (folder_ >= 0) ::close(folder_);
  }
  FolderLock(const FolderLock&) = delete;

 private:
  int folder_;
};

std::string shard_file(const std::string& out, const Shard& shard) {
  std::filesystem::path path = out;
  path.replace_filename(
      fmt::format("{}-{}-of-{}{}", path.stem().string(), shard.index, shard.count, path.extension().string()));
  return path.string();
}

}  // namespace

TuningSession::TuningSession(const Tool& tool, TuningRequest request)
    : json_(tool.json),
      device_name_(tool.device_name),
      request_(std::move(request)),
      default_file_(default_tuning_file(Runtime())),
      start_(Clock::now()),
      supervisor_(tool.device_name, request_.launch_s),
      turn_(supervisor_.hello().address) {
  const bool cpu = supervisor_.hello().info.device.kind == BackendKind::kCpu;
  if (request_.m.empty()) request_.m = powers_of_two(cpu ? 512 : 4096);
  if (request_.m.size() == 1) request_.m = powers_of_two(request_.m[0]);
  if (request_.out.empty()) request_.out = default_file_;
  if (request_.out.empty())
    fail(ErrorCode::kIo, "--out: there is no cache folder to write tuning.jsonl to; name a file, or set Q4_CACHE_DIR");
  if (request_.shard.count > 1) request_.out = shard_file(request_.out, request_.shard);
  const auto folder = std::filesystem::path(request_.out).parent_path();
  std::error_code problem;
  if (!folder.empty() && std::filesystem::create_directories(folder, problem))
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
  if (problem)
    fail(ErrorCode::kIo, "--out = {}: its folder cannot be made: {}; name a file elsewhere", request_.out,
         problem.message());
  list_shapes();
  check_report();
}

/// What cannot be written is told before the measuring; keep_what_is_known() does so for the tuning file.
void TuningSession::check_report() const {
  if (request_.report.empty()) return;
  std::error_code absent;
  for (const auto& [option, file] : {std::pair("--out", request_.out), {"--shapes", request_.shapes.csv_file}})
    check(file.empty() || std::filesystem::weakly_canonical(file, absent) !=
                              std::filesystem::weakly_canonical(request_.report, absent),
          "--report = {}: that is the file of {}; name another", request_.report, option);
  if (!std::ofstream(request_.report, std::ios::app))
    fail(ErrorCode::kIo, "--report = {}: cannot be written; name a file in a folder that exists", request_.report);
}

TuningDb TuningSession::stored() const {
  TuningDb db;
  if (std::filesystem::exists(request_.out)) read_input([&] { db.load(request_.out); });
  return db;
}

void TuningSession::list_shapes() {
  std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, DType>> seen;
  std::vector<RecordedShape> wanted;
  if (auto recorded = request_.shapes.recording())
    wanted = std::move(*recorded);
  else
    for (const autotune::Problem& p : request_.shapes.resolve("llama-3-8b")) wanted.push_back({p, request_.activation});
  for (const RecordedShape& shape : wanted) {
    Row row;
    row.problem = tensor_parallel(shape.problem, request_.tensor_parallel);
    row.activation = shape.activation;
    const auto& p = row.problem;
    if (!seen.insert({p.k, p.n, p.group, p.act_order, row.activation}).second) continue;
    if (request_.shard.holds(p, row.activation)) rows_.push_back(std::move(row));
  }
}

TuningKey TuningSession::key_of(const autotune::TunedShape& row) const {
  const autotune::Hello& hello = *supervisor_.known();
  return autotune::key_of(hello.info, hello.kernels, row.problem, row.activation, request_.policy);
}

int TuningSession::run() {
  keep_what_is_known();
  if (!json_) announce();
  {
    const std::jthread compiler = compile_ahead();
    Progress progress;
    for (std::size_t i = 0; i < rows_.size() && !interrupted(); ++i)
      if (!rows_[i].reached && wait_for_turn(progress)) {
        tune_one(i, progress);
        turn_.release();
      }
  }
  return finish();
}

void TuningSession::keep_what_is_known() {
  const FolderLock lock(request_.out);
  const TuningDb db = stored();
  for (Row& row : rows_) {
    TuningMatch match = TuningMatch::kNone;
    if (request_.again) continue;
    const TuningRecord* record = db.find(key_of(row), &match);
    if (match != TuningMatch::kExact || record->key.policy != request_.policy) continue;
    row.quarantined = record->quarantined;
    if (!autotune::covers(*record, request_.m)) continue;
    row.tuned.record = *record;
    row.tuned.complete = row.kept = row.reached = true;
  }
  // A file that is damaged, or cannot be written, is told before anything is measured; a shard without shapes has one.
  if (!std::filesystem::exists(request_.out) || !std::ranges::all_of(rows_, &Row::reached)) db.save(request_.out);
}

void TuningSession::announce() const {
  const DeviceInfo& info = supervisor_.known()->info;
  const auto kept = std::count_if(rows_.begin(), rows_.end(), [](const Row& r) { return r.kept; });
  fmt::print("Tuning {} shapes on {} ({}, {}), {} activations, {} weights, m = {}, budget {}\n", rows_.size(),
             info.device.str(), info.name, info.arch, to_string(request_.activation), request_.policy,
             fmt::join(request_.m, " "), request_.budget > 0 ? fmt::format("{:.0f} s", request_.budget) : "unlimited");
  if (request_.shard.count > 1)
    fmt::print("Shard {} of {}: {}\n", request_.shard.index, request_.shard.count, request_.out);
  if (kept > 0) fmt::print("{} of them are kept from {}; --again measures them anew\n", kept, request_.out);
  std::fflush(stdout);
}

/// This shape's part of the time that is left: half of it equal, half by size, since packing and running follow size.
double TuningSession::seconds_for(std::size_t index) const {
  const double most = request_.shape_budget > 0 ? request_.shape_budget : 1e9;
  if (request_.budget <= 0) return most;
  double area = 0, shapes = 0;
  for (std::size_t i = index; i < rows_.size(); ++i)
    if (!rows_[i].reached) area += rows_[i].problem.weights(), shapes += 1;
  return std::min(most, (request_.budget - elapsed()) * (0.5 / shapes + 0.5 * rows_[index].problem.weights() / area));
}

bool TuningSession::wait_for_turn(Progress& bar) {
  int holder = 0;
  for (bool told = false; !turn_.take(holder); told = true) {
    const std::string who = holder > 0 ? fmt::format(" (process {})", holder) : "";
    if (!told)
      bar.line(fmt::format("another q4-autotune{} measures on {} ({}): taking turns by shape", who,
                           supervisor_.known()->info.device.str(), supervisor_.known()->address));
    bar.update(request_.budget > 0 ? elapsed() / request_.budget : 0, "waiting for another q4-autotune" + who,
               request_.budget);
    if (interrupted() || (request_.budget > 0 && elapsed() > request_.budget)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

/// From the file, where this very shape may be, then from what this run measured.
std::vector<autotune::LikelyTactic> TuningSession::likely(const TuningKey& key) const {
  std::vector<autotune::LikelyTactic> all;
  try {
    all = autotune::likely_from(stored(), key);
  } catch (const Error&) {  // whoever changed the file meanwhile: only an order is lost
  }
  const Row* nearest = nullptr;
  for (const Row& row : rows_)
    if (!row.tuned.buckets.empty() && row.activation == key.activation &&
        (!nearest || autotune::distance(key_of(row), key) < autotune::distance(key_of(*nearest), key)))
      nearest = &row;
  if (nearest)
    for (auto& l : autotune::likely_from(nearest->tuned)) all.push_back(std::move(l));
  return all;
}

/// The kernels of all shapes but the first, in a process beside the one that measures. What it does not reach, or fails
/// to compile, the other one does itself and reports.
std::jthread TuningSession::compile_ahead() const {
  std::vector<autotune::Job> jobs;
  for (const Row& row : rows_) {
    if (row.reached) continue;
    autotune::Job& job = jobs.emplace_back(autotune::Job{row.problem, {}});
    job.options.m = request_.m, job.options.activation = row.activation, job.options.compile_only = true;
    job.options.quarantined = row.quarantined;
  }
  if (jobs.size() < 2 || supervisor_.known()->info.device.kind == BackendKind::kCpu) return {};
  return std::jthread([jobs, device = device_name_, launch_s = request_.launch_s](const std::stop_token& stop) {
    try {
      autotune::Supervisor beside(device, launch_s, 0);
      for (std::size_t i = 1; i < jobs.size() && !stop.stop_requested(); ++i)
        beside.tune(jobs[i], {[&] { return stop.stop_requested() || interrupted(); },
                              [](const autotune::TuneProgress&) {}, [](const QuarantinedTactic&) {}});
    } catch (const std::exception&) {  // an accelerator, not a part of the result
    }
  });
}

void TuningSession::tune_one(std::size_t index, Progress& bar) {
  Row& row = rows_[index];
  const double begun = elapsed(), weights = row.problem.weights();
  autotune::Job job{row.problem, {}};
  autotune::TuneOptions& options = job.options;
  options.seconds = seconds_for(index);
  if (options.seconds < setup_s_per_weight_ * weights) {
    row.tuned.notes.push_back(fmt::format("not measured: {:.1f} s are left, and setting it up takes {:.1f} s",
                                          std::max(options.seconds, 0.0), setup_s_per_weight_ * weights));
    row.reached = true;
    return;
  }
  options.m = request_.m;
  options.activation = row.activation;
  options.policy = request_.policy;
  options.exhaustive = request_.exhaustive;
  options.yardsticks = !request_.report.empty();
  options.quarantined = row.quarantined;
  options.likely = likely(key_of(row));
  options.provenance = {{"q4", Q4_VERSION},
                        {"driver", supervisor_.known()->info.driver},
                        {"date", fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)))}};
  for (const auto& [name, version] : supervisor_.known()->versions)
    if (name == "blas" || name.find("blas") != std::string::npos) options.provenance[name] = version;
  if (supervisor_.known()->info.device.kind == BackendKind::kCpu)  // on a GPU it depends on the size, and takes no time
    for (const Row& other : rows_)
      if (other.tuned.record.floor_us > 0)
        options.floor_us_per_byte = other.tuned.record.floor_us / other.problem.bytes(0);
  double setup_s = 0;
  const autotune::Supervisor::Watcher watcher{
      interrupted,
      [&](const autotune::TuneProgress& p) {
        if (p.fraction > 0 && setup_s == 0) setup_s = elapsed() - begun;
        const double of_all = request_.budget > 0
                                  ? (begun + p.fraction * options.seconds) / request_.budget
                                  : (static_cast<double>(index) + p.fraction) / static_cast<double>(rows_.size());
        std::string text = fmt::format("{}  {}", name_of(row), p.stage);
        if (p.best_us > 0)
          text += fmt::format("  best {} us ({} over the default)", number(p.best_us),
                              percent(p.default_us / p.best_us - 1));
        bar.update(of_all, text, request_.budget);
      },
      [&](const QuarantinedTactic& q) {
        bar.line(fmt::format("{}: '{}' at m = {} is quarantined: {}", name_of(row), q.tactic, q.m, q.reason));
        row.quarantined.push_back(q);
        if (const std::string problem = told([&] { quarantine(row, q); }); !problem.empty()) bar.line(problem);
      }};
  row.tuned = supervisor_.tune(std::move(job), watcher);
  row.reached = true;
  constexpr std::int64_t kLarge = 1 << 22;  // weights; for fewer, setting up is mostly what costs the same for all
  if (setup_s > 0 && weights >= kLarge && (setup_s_per_weight_ == 0 || setup_s / weights < setup_s_per_weight_))
    setup_s_per_weight_ = setup_s / weights;
  row.unsaved = told([&] { save(row); });
  if (!row.unsaved.empty()) bar.line(row.unsaved + "; tried again at the end");
  bar.line(fmt::format("[{}/{}] {}: {} tactics measured at {} m in {:.1f} s{}", index + 1, rows_.size(), name_of(row),
                       row.tuned.measured, row.tuned.buckets.size(), elapsed() - begun,
                       row.tuned.complete ? "" : " (not everything: see the notes)"));
}

/// A full disk does not end the run.
template <class F>
std::string TuningSession::told(const F& work) {
  try {
    work();
    return {};
  } catch (const Error& e) { return e.what(); }
}

/// What an earlier run found with the same kernels stays where this one measured nothing.
void TuningSession::save(Row& row) const {
  TuningRecord& record = row.tuned.record;
  if (record.buckets.empty()) return;
  const TuningDb db = stored();
  TuningMatch match = TuningMatch::kNone;
  const TuningRecord* const older = db.find(record.key, &match);
  if (match == TuningMatch::kExact && older->key == record.key) autotune::complete_from(*older, record);
  store(record);
}

/// At once, so that a run which is killed later does not try it again.
void TuningSession::quarantine(const Row& row, const QuarantinedTactic& tactic) const {
  const TuningKey key = key_of(row);
  TuningRecord record;
  const TuningDb db = stored();
  TuningMatch match = TuningMatch::kNone;
  const TuningRecord* const known = db.find(key, &match);
  if (match == TuningMatch::kExact && known->key == key) record = *known;
  record.key = key;
  record.quarantined.push_back(tactic);
  record.provenance[autotune::kNotMeasured] = "the run ended after a quarantine";
  store(record);
}

/// Another tuner may have changed the file since it was read.
void TuningSession::store(const TuningRecord& record) const {
  const FolderLock lock(request_.out);
  TuningDb db = stored();
  db.add(record);
  db.save(request_.out);
}

int TuningSession::finish() {
  for (Row& row : rows_) {
    if (row.unsaved.empty()) continue;
    row.unsaved = told([&] { save(row); });
    if (row.unsaved.empty()) continue;
    row.tuned.failed = true;
    row.tuned.notes.push_back("not saved: " + row.unsaved);
  }
  autotune::TuningRun run;
  const autotune::Hello& hello = *supervisor_.known();
  run.info = hello.info, run.versions = hello.versions, run.kernels = hello.kernels;
  run.policy = request_.policy, run.file = request_.out, run.version = Q4_VERSION;
  run.date = fmt::format("{:%F %T} UTC", fmt::gmtime(std::time(nullptr)));
  run.seconds = elapsed(), run.budget = request_.budget, run.interrupted = interrupted();
  run.shapes.assign(rows_.begin(), rows_.end());
  if (json_) {
    fmt::print("{}\n", run_as_json(run, request_.exhaustive).dump(2));
  } else {
    const bool by_default = request_.out == default_file_ && !std::getenv("Q4_TUNING");
    fmt::print("{}\n{:.0f} s. Tuning file: {}{}\n", tables(run), run.seconds, run.file,
               by_default ? " (read by every Runtime of this user)"
                          : "\nTo use it: export Q4_TUNING=" + run.file + ", or RuntimeOptions::tuning_files");
  }
  if (!request_.report.empty()) {
    std::ofstream out(request_.report, std::ios::trunc);
    out << autotune::html_report(run);
    out.flush();
    if (!out) fail(ErrorCode::kIo, "--report = {}: cannot be written: {}", request_.report, std::strerror(errno));
    if (!json_) fmt::print("Report: {}\n", std::filesystem::absolute(request_.report).string());
  }
  const bool nothing = std::ranges::all_of(rows_, [](const Row& r) { return r.tuned.record.buckets.empty(); });
  const bool failed =
      (nothing && !rows_.empty()) || std::ranges::any_of(rows_, [](const Row& r) { return r.tuned.failed; });
  return interrupted() ? 130 : failed ? 1 : 0;
}

}  // namespace q4::tools
