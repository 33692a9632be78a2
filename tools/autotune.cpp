// q4-autotune: measures a model's shapes on one device and writes the tuning file that a Runtime reads.
#include "autotune/tuner.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <filesystem>
#include <numeric>
#include <q4/q4.hpp>

#include "runtime/check.hpp"
#include "runtime/runtime.hpp"
#include "tools/common.hpp"
#include "tools/shapes.hpp"

namespace {

using namespace q4;
using namespace q4::tools;
using autotune::Problem;
using autotune::Tuned;
using Clock = std::chrono::steady_clock;

constexpr const char* kExamples =
    "  q4-autotune                                      llama-3-8b on the best device, about a minute\n"
    "  q4-autotune --model llama-2-70b --budget 300     more time, fewer gaps\n"
    "  q4-autotune --checkpoint ~/models/my-gptq        exactly the shapes of a checkpoint\n"
    "  q4-autotune --m 1-16 --activation bf16           decode only: buckets 1, 2, 4, 8, 16\n"
    "  q4-autotune --out h200.jsonl                     a file to ship; use it with Q4_TUNING=h200.jsonl\n"
    "\n"
    "Each shape is saved as soon as it is done: run the same command again to go on after Ctrl-C. A tactic replaces "
    "the\n"
    "default only if it is more than 2% faster beyond the noise, so tuning never makes a program slower.\n"
    "\n"
    "Columns: default and tuned us are medians of one multiplication with cold weights; gain is their ratio less 1\n"
    "(geomean gain: over all m); GB/s counts packed weights, x and out. reconstruct from m: the first m at which\n"
    "reconstructing W for the BLAS wins; \"never to M\": at no m up to M. math: half2 or fp32, what won at the "
    "smallest\n"
    "m (half2 us, fp32 us: the best of each there), or either. copies: of the weights, used in turn so that no cache\n"
    "holds them. tactics: how many were measured; pruned: too slow at a smaller m to win.\n";

struct Options {
  ShapeOptions shapes;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  double budget = 60;
  std::string out;
  bool again = false;
};

/// A shape with what came of it.
struct Row {
  Problem problem;
  Tuned tuned;
  bool kept = false;     ///< from the file
  bool reached = false;  ///< tuned or kept
};

/// Adds one record to the file, which another tuner may have changed since.
void store(const std::string& path, const TuningRecord& record) {
  TuningDb db;
  if (std::filesystem::exists(path)) db.load(path);
  db.add(record);
  db.save(path);
}

std::string size_of_shape(const Problem& p) {
  return fmt::format("{}x{} g{}{}", p.k, p.n, p.group, p.act_order ? " act-order" : "");
}

class Session {
 public:
  Session(const Tool& tool, Options options)
      : json_(tool.json),
        options_(std::move(options)),
        runtime_(untuned()),
        device_(tool.device(runtime_)),
        info_(runtime_.info(device_)),
        start_(Clock::now()) {
    if (options_.m.empty()) options_.m = powers_of_two(device_.kind == BackendKind::kCpu ? 512 : 4096);
    if (options_.m.size() == 1) options_.m = powers_of_two(options_.m[0]);
    if (options_.out.empty()) options_.out = default_tuning_file(runtime_);
    if (options_.out.empty())
      fail(ErrorCode::kIo,
           "--out: there is no cache folder to write tuning.jsonl to; name a file, or set Q4_CACHE_DIR");
    const auto folder = std::filesystem::path(options_.out).parent_path();
    if (!folder.empty() && std::filesystem::create_directories(folder))
      std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
    for (Problem& p : options_.shapes.resolve("llama-3-8b")) rows_.push_back({std::move(p), {}});
  }

  int run() {
    keep_what_is_known();
    catch_interrupt();
    if (!json_) announce();
    {
      Progress progress;
      for (std::size_t i = 0; i < rows_.size() && !interrupted(); ++i)
        if (!rows_[i].reached) tune_one(i, progress);
    }
    json_ ? print_json() : print_tables();
    const bool failed = std::any_of(rows_.begin(), rows_.end(), [](const Row& r) { return r.tuned.failed; });
    return interrupted() ? 130 : failed ? 1 : 0;
  }

 private:
  /// Otherwise an earlier result would count as the default, and win against itself.
  static Runtime untuned() {
    RuntimeOptions options;
    options.tuning_files = {"/dev/null"};
    return Runtime(options);
  }

  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void keep_what_is_known() {
    if (options_.again || !std::filesystem::exists(options_.out)) return;
    TuningDb db;
    db.load(options_.out);
    const std::string kernels = runtime_.impl().open(device_)->kernels_digest();
    for (Row& row : rows_) {
      TuningMatch match;
      const TuningRecord* record = db.find(autotune::key_of(info_, row.problem, options_.activation), &match);
      if (match != TuningMatch::kExact || !autotune::covers(*record, options_.m, kernels)) continue;
      row.tuned.record = *record;
      row.tuned.complete = row.kept = row.reached = true;
    }
  }

  void announce() const {
    const auto kept = std::count_if(rows_.begin(), rows_.end(), [](const Row& r) { return r.kept; });
    fmt::print("Tuning {} shapes on {} ({}, {}), {} activations, m = {}, budget {}\n", rows_.size(), info_.device.str(),
               info_.name, info_.arch, to_string(options_.activation), fmt::join(options_.m, " "),
               options_.budget > 0 ? fmt::format("{:.0f} s", options_.budget) : "unlimited");
    if (kept > 0) fmt::print("{} of them are kept from {}; --again measures them anew\n", kept, options_.out);
    std::fflush(stdout);
  }

  /// This shape's part of the time that is left: half of it equal, half by size, since packing and running follow size.
  double seconds_for(std::size_t index) const {
    if (options_.budget <= 0) return 1e9;
    double area = 0, shapes = 0;
    for (std::size_t i = index; i < rows_.size(); ++i)
      if (!rows_[i].reached) area += area_of(i), shapes += 1;
    return (options_.budget - elapsed()) * (0.5 / shapes + 0.5 * area_of(index) / area);
  }
  double area_of(std::size_t i) const {
    return static_cast<double>(rows_[i].problem.k) * static_cast<double>(rows_[i].problem.n);
  }

  void tune_one(std::size_t index, Progress& bar) {
    Row& row = rows_[index];
    const double begun = elapsed();
    autotune::TuneOptions options;
    options.m = options_.m;
    options.activation = options_.activation;
    options.seconds = seconds_for(index);
    options.interrupted = interrupted;
    options.provenance = {{"q4", Q4_VERSION},
                          {"driver", info_.driver},
                          {"date", fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)))}};
    options.progress = [&](const autotune::TuneProgress& p) {
      const double of_all = options_.budget > 0
                                ? (begun + p.fraction * options.seconds) / options_.budget
                                : (static_cast<double>(index) + p.fraction) / static_cast<double>(rows_.size());
      std::string text = fmt::format("{} {}  {}", row.problem.label, size_of_shape(row.problem), p.stage);
      if (p.best_us > 0)
        text +=
            fmt::format("  best {} us ({} over the default)", number(p.best_us), percent(p.default_us / p.best_us - 1));
      bar.update(of_all, text, options_.budget);
    };
    row.tuned = autotune::tune(runtime_, device_, row.problem, options);
    row.reached = true;
    if (!row.tuned.record.buckets.empty()) store(options_.out, row.tuned.record);
    bar.line(fmt::format("[{}/{}] {} {}: {} tactics measured at {} m in {:.1f} s{}", index + 1, rows_.size(),
                         row.problem.label, size_of_shape(row.problem), row.tuned.measured,
                         row.tuned.record.buckets.size(), elapsed() - begun,
                         row.tuned.complete ? "" : " (not everything: see the notes)"));
  }

  static double gain(const TunedBucket& b) { return b.us > 0 && b.default_us > 0 ? b.default_us / b.us - 1 : 0; }

  void print_tables() const {
    Table buckets(
        {"shape", "k x n", "m", "default us", "tuned us", "95% interval", "gain", "GB/s", "TFLOP/s", "tactic"});
    Table shapes({"shape", "k x n", "reconstruct from m", "math", "half2 us", "fp32 us", "geomean gain", "copies",
                  "tactics", "pruned"});
    for (const Row& row : rows_) {
      const Problem& p = row.problem;
      const TuningRecord& r = row.tuned.record;
      if (r.buckets.empty()) continue;
      double logs = 0;
      for (const TunedBucket& b : r.buckets) {
        buckets.add({p.label, size_of_shape(p), std::to_string(b.m), number(b.default_us), number(b.us),
                     b.us_low < b.us_high ? number(b.us_low) + "-" + number(b.us_high) : "one sample",
                     b.default_us > 0 ? percent(gain(b)) : "-", number(p.bytes(b.m) / b.us / 1e3),
                     number(p.flops(b.m) / b.us / 1e6), b.tactic});
        logs += std::log1p(gain(b));
      }
      const char* const maths[] = {"either", "half2", "fp32"};
      shapes.add({p.label, size_of_shape(p),
                  r.reconstruct_from == 0 ? fmt::format("never to {}", r.buckets.back().m)
                                          : std::to_string(r.reconstruct_from),
                  maths[static_cast<int>(r.math)], number(row.tuned.half2_us), number(row.tuned.fp32_us),
                  percent(std::expm1(logs / static_cast<double>(r.buckets.size()))),
                  r.provenance.count("copies") ? r.provenance.at("copies") : "-",
                  row.kept ? "kept" : std::to_string(row.tuned.measured),
                  row.kept ? "-" : std::to_string(row.tuned.pruned)});
    }
    if (!buckets.empty()) fmt::print("\n{}\n{}", buckets.str(), shapes.str());
    std::string notes;
    for (const Row& row : rows_) {
      if (!row.reached)
        notes += fmt::format("  {} {}: not measured at all\n", row.problem.label, size_of_shape(row.problem));
      for (const std::string& note : row.tuned.notes)
        notes += fmt::format("  {} {}: {}\n", row.problem.label, size_of_shape(row.problem), note);
    }
    if (!notes.empty()) fmt::print("\nNotes\n{}", notes);
    fmt::print("\n{:.0f} s. Tuning file: {}{}\n", elapsed(), options_.out, usage());
  }

  std::string usage() const {
    return options_.out == default_tuning_file(runtime_) && !std::getenv("Q4_TUNING")
               ? " (read by every Runtime of this user)"
               : fmt::format("\nTo use it: export Q4_TUNING={}, or RuntimeOptions::tuning_files", options_.out);
  }

  void print_json() const {
    Json out{{"device", info_.device.str()},
             {"fingerprint", info_.fingerprint},
             {"activation", to_string(options_.activation)},
             {"file", options_.out},
             {"seconds", elapsed()},
             {"interrupted", interrupted()},
             {"shapes", Json::array()}};
    for (const Row& row : rows_) {
      const Problem& p = row.problem;
      const TuningRecord& r = row.tuned.record;
      Json shape{{"label", p.label},
                 {"k", p.k},
                 {"n", p.n},
                 {"group", p.group},
                 {"act_order", p.act_order},
                 {"kept", row.kept},
                 {"complete", row.tuned.complete},
                 {"failed", row.tuned.failed},
                 {"notes", row.tuned.notes},
                 {"reconstruct_from", r.reconstruct_from},
                 {"half2_us", row.tuned.half2_us},
                 {"fp32_us", row.tuned.fp32_us},
                 {"copies", row.tuned.copies},
                 {"cold_bytes", row.tuned.cold_bytes},
                 {"buckets", Json::array()}};
      for (const TunedBucket& b : r.buckets)
        shape["buckets"].push_back({{"m", b.m},
                                    {"tactic", b.tactic},
                                    {"us", b.us},
                                    {"low", b.us_low},
                                    {"high", b.us_high},
                                    {"default_us", b.default_us},
                                    {"gain", gain(b)},
                                    {"gbps", p.bytes(b.m) / b.us / 1e3},
                                    {"tflops", p.flops(b.m) / b.us / 1e6}});
      out["shapes"].push_back(std::move(shape));
    }
    fmt::print("{}\n", out.dump(2));
  }

  bool json_;
  Options options_;
  Runtime runtime_;
  Device device_;
  DeviceInfo info_;
  Clock::time_point start_;
  std::vector<Row> rows_;
};

}  // namespace

int main(int argc, char** argv) {
  Tool tool(
      "q4-autotune",
      "Measures which kernels are fastest for a model's shapes on a device: the tactic of each range of m, half2 or "
      "fp32 math, and the m from which reconstructing W for the BLAS wins. Saves a file that every q4 Runtime reads.",
      kExamples);
  Options options;
  tool.add_device();
  options.shapes.add_to(tool.app, "llama-3-8b");
  tool.app
      .add_option_function<std::string>(
          "--m", [&](const std::string& s) { options.m = parse_m_list(s); },
          "rows to measure: 1,8,64 or 1-16; one number is the largest of 1, 2, 4, ... "
          "(default: 512 on a CPU, 4096 on a GPU)")
      ->type_name("LIST");
  tool.app
      .add_option_function<std::string>(
          "--activation", [&](const std::string& s) { options.activation = parse_activation(s); },
          "fp16 (default), bf16, or fp32 on the CPU")
      ->type_name("T");
  tool.app.add_option("--budget", options.budget, "seconds for everything, 0: until all is measured (default 60)")
      ->check(seconds_check(true))
      ->type_name("S");
  tool.app.add_option("--out", options.out, "tuning file to add to (default: <cache folder>/tuning.jsonl)")
      ->type_name("FILE");
  tool.app.add_flag("--again", options.again, "measure also what the file already holds");
  tool.add_json("print one JSON object instead of tables; progress stays on stderr");
  return tool.run(argc, argv, [&] { return Session(tool, options).run(); });
}
