// q4-bench: checked times with cold weights, beside the read-only floor, the dense BLAS and other libraries' numbers.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <q4/q4.hpp>

#include "autotune/candidates.hpp"
#include "autotune/statistics.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/bench/chain.hpp"
#include "tools/bench/cpu_ceilings.hpp"
#include "tools/common/shapes.hpp"
#include "tools/common/tool.hpp"

namespace {

using namespace q4;
using namespace q4::tools;
using autotune::Interval;
using autotune::Problem;
using autotune::Rig;

constexpr const char* kExamples =
    "  q4-bench                                      the default sweep on the best device, with its tuning file\n"
    "  q4-bench --shape 4096x4096 --m 1              one point\n"
    "  q4-bench --model llama-3-8b --m 1-64 --untuned --csv decode.csv\n"
    "  q4-bench --shape 8192x8192 --m 16 --tactic 'gemv half2=1'   one tactic of q4-autotune's table\n"
    "  q4-bench --model llama-3-8b --chain 32 --m 1   a decode step's matmuls, with and without overlapped launches\n"
    "  q4-bench --baseline peers.csv --dense         beside other libraries and the dense BLAS\n"
    "\n"
    "Columns: us is the median time of one multiplication whose weights are not in a cache; on a GPU it is a node of "
    "a\n"
    "replayed graph. floor us: a kernel that only reads the packed weights, in this run. rel_err: ||out - ref|| / "
    "||ref||\n"
    "against fp64 over sampled rows and columns, out filled with NaN before. Exit 1 if any point is over its "
    "tolerance. On the CPU the floor is max(packed bytes / read bandwidth, operations / best peak), all measured in "
    "this\nrun, and reconstruct + BLAS is timed at every point.\n";

struct Options {
  ShapeOptions shapes;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  Math math = Math::kAuto;
  std::string tactic, csv, baseline, versus;
  bool untuned = false, dense = false, batch_invariant = false;
  double seconds = 1;      ///< of a point
  std::int64_t chain = 0;  ///< layers; 0: points, no chain
};

struct Point {
  Problem problem;
  std::int64_t m = 0;
  std::string kernel;
  Interval us;
  double error = 0, floor_us = 0, dense_us = 0;
  double blas_us = 0, vector_share = 0;  ///< CPU: reconstruct + BLAS; share of the vector unit's measured peak
  bool exact = false;
  double versus_us = 0;
  Interval gain = {};  ///< over what it is compared with, of paired rounds
  double tflops() const { return us.value > 0 ? problem.flops(m) / us.value / 1e6 : 0; }
  double gbps() const { return us.value > 0 ? problem.bytes(m) / us.value / 1e3 : 0; }
};

constexpr int kMostSamples = 25, kFewestSamples = 3;

constexpr const char* kBlasTactic = "reconstruct+blas";

/// Samples until there are enough or `seconds` are over.
template <class F>
Interval timed(const F& sample, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  sample();  // the first one also learns how long a run takes
  std::vector<double> us;
  while (us.size() < kFewestSamples ||
         (us.size() < kMostSamples &&
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds))
    us.push_back(sample());
  return autotune::median_interval(us);
}

Math parse_math(const std::string& text) {
  if (text == "int8") return Math::kInt8;
  check(text == "auto", "--math = {}: use auto or int8", text);
  return Math::kAuto;
}

class Bench {
 public:
  Bench(const Tool& tool, Options options)
      : json_(tool.json),
        options_(std::move(options)),
        runtime_(make_runtime(options_.untuned)),
        untuned_(make_runtime(true)),
        device_(tool.device(runtime_)) {
    const bool gpu = device_.kind != BackendKind::kCpu;
    if (options_.m.empty()) options_.m = powers_of_two(gpu ? 8192 : 512);
    problems_ = options_.shapes.resolve(gpu ? "sweep" : "llama-3-8b");
    if (!options_.baseline.empty()) baseline_ = read_input([&] { return Baseline::read(options_.baseline); });
  }

  /// The shapes in order, as many times as there are layers, for each m.
  int run_chains() {
    Table table({"layers", "m", "us", "GB/s", "overlapped us", "GB/s", "read-only GB/s", "share of read-only"});
    Json json = Json::array();
    for (const auto m : options_.m) {
      const auto c = run_chain(runtime_, device_, problems_, options_.activation, options_.chain, m);
      const auto gbps = [&](double us) { return us > 0 ? static_cast<double>(c.bytes) / us / 1e3 : 0; };
      table.add({std::to_string(c.layers), std::to_string(m), number(c.us), number(gbps(c.us)), number(c.overlapped_us),
                 number(gbps(c.overlapped_us)), number(gbps(c.read_only_us)),
                 fmt::format("{:.3f}", c.read_only_us / c.overlapped_us)});
      json.push_back({{"layers", c.layers},
                      {"m", m},
                      {"us", c.us},
                      {"overlapped_us", c.overlapped_us},
                      {"read_only_us", c.read_only_us},
                      {"bytes", c.bytes}});
    }
    fmt::print("{}\n", json_ ? json.dump(2) : table.str());
    return 0;
  }

  int run() {
    if (options_.chain > 0) return run_chains();
    // What cannot be written is told before an hour of measuring.
    if (!options_.csv.empty() && !std::ofstream(options_.csv, std::ios::app)) unwritable();
    catch_interrupt();
    {
      Progress progress;
      for (std::size_t i = 0; i < problems_.size() && !interrupted(); ++i) measure_shape(i, progress);
    }
    if (!options_.csv.empty()) write_csv();
    json_ ? print_json() : print_table();
    const auto wrong = std::count_if(points_.begin(), points_.end(), [](const Point& p) { return !p.exact; });
    if (wrong > 0)
      fmt::print(stderr, "q4-bench: error: {} points are over the tolerance {:.0e} or raised an error\n", wrong,
                 tolerance());
    return interrupted() ? 130 : refused_ == points_.size() ? kUsage : wrong > 0 ? kFailed : kDone;
  }

 private:
  static Runtime make_runtime(bool untuned) {
    RuntimeOptions options;
    if (untuned) options.tuning_files = {"/dev/null"};
    return Runtime(options);
  }
  double tolerance() const {
    return options_.math == Math::kInt8 ? 1e-2 : autotune::tolerance(options_.activation);  // as Math states it
  }

  void measure_shape(std::size_t index, Progress& progress) {
    const Problem& problem = problems_[index];
    const auto show = [&](std::size_t done, const std::string& what) {
      const double share = static_cast<double>(done) / static_cast<double>(options_.m.size());
      progress.update((static_cast<double>(index) + share) / static_cast<double>(problems_.size()),
                      fmt::format("{} {}x{}  {}", problem.label, problem.k, problem.n, what));
    };
    show(0, "packing");
    autotune::Workload workload(problem, options_.activation);
    const Rig rig(runtime_, device_, workload, options_.m.back(), 5);
    const bool cpu = !rig.gpu();
    if (cpu) ceilings_.merge(measure_cpu_ceilings(rig.backend()));
    const double floor_us = cpu ? 0 : rig.backend().read_floor_us(static_cast<std::size_t>(problem.bytes(0)));
    const std::size_t first = points_.size();
    for (std::size_t i = 0; i < options_.m.size() && !interrupted(); ++i) {
      show(i, fmt::format("m = {}", options_.m[i]));
      try {
        points_.push_back(measure_point(rig, problem, options_.m[i]));
      } catch (const Error& error) {  // the other points are worth having
        points_.push_back({problem, options_.m[i], std::string("error: ") + error.what(), {}, 0, 0, 0, false});
        refused_ += error.code() == ErrorCode::kInvalidArgument;
      }
      points_.back().floor_us = floor_us;
    }
    if (cpu) {
      ceilings_.merge(measure_cpu_ceilings(rig.backend()));
      for (std::size_t i = first; i < points_.size(); ++i) compare_with_ceilings(points_[i]);
    }
    progress.line(fmt::format("[{}/{}] {} {}x{}: {} copies of the weights, {}", index + 1, problems_.size(),
                              problem.label, problem.k, problem.n, rig.copies(), megabytes(rig.cold_bytes())));
  }

  void compare_with_ceilings(Point& p) const {
    const double flops = p.problem.flops(p.m);
    p.floor_us = ceilings_.floor_us(p.problem.bytes(0), flops, options_.activation, options_.math);
    const double peak = ceilings_.vector_peak(options_.activation, options_.math);
    if (p.us.value > 0 && peak > 0) p.vector_share = flops / p.us.value / 1e3 / peak;
  }

  Point measure_point(const Rig& rig, const Problem& problem, std::int64_t m) {
    Point point{problem, m, "", {}, 0, 0, 0, false};
    PlanOptions options;
    options.max_m = m, options.activation = options_.activation, options.math = options_.math;
    options.tactic = options_.tactic, options.batch_invariant = options_.batch_invariant;
    const auto variant = rig.prepare(options);
    point.kernel = variant->plans.front().tactic(m);
    point.error = rig.error(*variant, m);
    point.exact = point.error <= tolerance();
    PlanOptions untuned = options;
    untuned.tactic.clear();
    const std::string standard = options_.versus == "default" ? rig.plan(untuned, untuned_).tactic(m) : options_.versus;
    if (!standard.empty() && standard != point.kernel) {
      options.tactic = standard, options.batch_invariant = false;
      measure_pairs(rig, *variant, *rig.prepare(options), point);
    } else {
      point.us = timed([&] { return rig.sample(*variant, m); }, options_.seconds);
      point.versus_us = point.us.value;
    }
    if (!rig.gpu()) {
      options.math = Math::kAuto;
      options.batch_invariant = false;
      options.tactic.clear();
      const auto tactics = rig.plan(options).tactics(m);
      if (std::find(tactics.begin(), tactics.end(), kBlasTactic) != tactics.end()) {
        options.tactic = kBlasTactic;
        const auto blas = rig.prepare(options);
        point.blas_us = timed([&] { return rig.sample(*blas, m); }, options_.seconds / 2).value;
      }
    }
    if (options_.dense)
      if (const auto dense = rig.prepare_dense(m))
        point.dense_us = timed([&] { return rig.sample(*dense, m); }, options_.seconds).value;
    return point;
  }

  /// One after the other in turn, as the tuner's final does: drift of clocks and neighbours cancels.
  void measure_pairs(const Rig& rig, autotune::Variant& tuned, autotune::Variant& standard, Point& point) {
    std::vector<double> tuned_us, default_us;
    bool tuned_first = true;
    timed(
        [&] {
          const auto both = std::pair(&tuned, &standard);
          const double first = rig.sample(tuned_first ? *both.first : *both.second, point.m);
          const double second = rig.sample(tuned_first ? *both.second : *both.first, point.m);
          tuned_us.push_back(tuned_first ? first : second), default_us.push_back(tuned_first ? second : first);
          tuned_first = !tuned_first;
          return first;
        },
        options_.seconds);
    tuned_us.erase(tuned_us.begin()), default_us.erase(default_us.begin());  // timed() drops the first one too
    point.us = autotune::median_interval(tuned_us);
    point.versus_us = autotune::median(default_us);
    point.gain = autotune::paired_gain(default_us, tuned_us);
  }

  void write_csv() const {
    std::ofstream out(options_.csv);
    out << "kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err\n";
    for (const Point& p : points_)
      out << fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{:.1f},{:.2e}\n", p.kernel, p.problem.k, p.problem.n,
                         p.problem.group, p.problem.act_order ? 1 : 0, p.m, p.us.value, p.tflops(), p.gbps(), p.error);
    out.flush();
    if (!out) unwritable();
  }
  [[noreturn]] void unwritable() const {
    fail(ErrorCode::kIo, "--csv = {}: cannot be written; name a file in a folder that exists", options_.csv);
  }

  void print_table() const {
    std::vector<std::string> header = {"k x n",   "group", "m",        "us",      "95% interval",
                                       "TFLOP/s", "GB/s",  "floor us", "x floor", "rel_err"};
    const bool cpu = device_.kind == BackendKind::kCpu;
    if (cpu) header.insert(header.end(), {"vector peak", "rec+blas us", "x blas"});
    if (!options_.versus.empty()) header.insert(header.end(), {"other us", "gain", "its 95% interval"});
    if (options_.dense) header.insert(header.end(), {"dense us", "x dense"});
    if (baseline_)
      header.insert(header.end(), {"best 4-bit peer", "peer us", "x peer", "peers' floor us", "cuBLAS fp16 us"});
    header.push_back("kernel");
    Table table(header);
    const auto ratio = [](double us, double of) { return us > 0 && of > 0 ? fmt::format("{:.2f}", us / of) : "-"; };
    for (const Point& p : points_) {
      std::vector<std::string> row = {fmt::format("{}x{}", p.problem.k, p.problem.n),
                                      fmt::format("{}{}", p.problem.group, p.problem.act_order ? " act-order" : ""),
                                      std::to_string(p.m),
                                      number(p.us.value),
                                      number(p.us.low) + "-" + number(p.us.high),
                                      number(p.tflops()),
                                      number(p.gbps()),
                                      number(p.floor_us),
                                      ratio(p.us.value, p.floor_us),
                                      fmt::format("{:.1e}{}", p.error, p.exact ? "" : " WRONG")};
      if (cpu)
        row.insert(row.end(),
                   {fmt::format("{:.0f}%", 100 * p.vector_share), number(p.blas_us), ratio(p.us.value, p.blas_us)});
      if (!options_.versus.empty())
        row.insert(row.end(),
                   {number(p.versus_us), percent(p.gain.value), percent(p.gain.low) + ".." + percent(p.gain.high)});
      if (options_.dense) row.insert(row.end(), {number(p.dense_us), ratio(p.us.value, p.dense_us)});
      if (baseline_) {
        const auto peers = baseline_->at(p.problem, p.m);
        row.insert(row.end(), {peers.best, number(peers.best_us), ratio(p.us.value, peers.best_us),
                               number(peers.floor_us), number(peers.dense_us)});
      }
      row.push_back(p.kernel);
      table.add(row);
    }
    const DeviceInfo info = runtime_.info(device_);
    fmt::print("{} ({}, {}), {} activations{}, {}\n{}\n{}", info.device.str(), info.name, info.arch,
               to_string(options_.activation), options_.math == Math::kInt8 ? " quantized to int8" : "",
               options_.untuned ? "default tactics" : fmt::format("tuning records: {}", runtime_.tuning().size()),
               cpu ? ceilings_.str() + "\n" : "", table.str());
  }

  void print_json() const {
    const DeviceInfo info = runtime_.info(device_);
    Json out{{"device", info.device.str()},
             {"fingerprint", info.fingerprint},
             {"activation", to_string(options_.activation)},
             {"tuning_records", runtime_.tuning().size()},
             {"points", Json::array()}};
    const bool cpu = device_.kind == BackendKind::kCpu;
    if (cpu) out["ceilings"] = ceilings_.json();
    for (const Point& p : points_) {
      Json point{{"kernel", p.kernel},
                 {"k", p.problem.k},
                 {"n", p.problem.n},
                 {"group", p.problem.group},
                 {"act_order", p.problem.act_order},
                 {"m", p.m},
                 {"us", p.us.value},
                 {"low", p.us.low},
                 {"high", p.us.high},
                 {"tflops", p.tflops()},
                 {"gbps", p.gbps()},
                 {"rel_err", p.error},
                 {"exact", p.exact},
                 {"floor_us", p.floor_us}};
      if (cpu) point["vector_share"] = p.vector_share, point["blas_us"] = p.blas_us;
      if (options_.dense) point["dense_us"] = p.dense_us;
      if (!options_.versus.empty())
        point["versus_us"] = p.versus_us, point["gain"] = {p.gain.value, p.gain.low, p.gain.high};
      if (baseline_) {
        const auto peers = baseline_->at(p.problem, p.m);
        point["peer"] = peers.best, point["peer_us"] = peers.best_us;
      }
      out["points"].push_back(std::move(point));
    }
    fmt::print("{}\n", out.dump(2));
  }

  bool json_;
  Options options_;
  Runtime runtime_, untuned_;
  Device device_;
  std::vector<Problem> problems_;
  std::optional<Baseline> baseline_;
  std::vector<Point> points_;
  std::size_t refused_ = 0;  ///< of them: a tactic that does not exist, say
  CpuCeilings ceilings_;
};

}  // namespace

int main(int argc, char** argv) {
  Tool tool("q4-bench", "Times quantized matmuls on one device with cold weights, after checking each result.",
            kExamples);
  Options options;
  tool.add_device();
  options.shapes.add_to(tool.app, "sweep on a GPU, llama-3-8b on a CPU");
  tool.app
      .add_option_function<std::string>(
          "--m", [&](const std::string& s) { options.m = parse_m_list(s); },
          "rows of x: 1,8,64 or 1-16 (default: powers of two to 8192 on a GPU, 512 on a CPU)")
      ->type_name("LIST");
  tool.app
      .add_option_function<std::string>(
          "--activation", [&](const std::string& s) { options.activation = parse_activation(s); },
          "fp16 (default), bf16, or fp32 on the CPU")
      ->type_name("T");
  tool.app
      .add_option_function<std::string>(
          "--math", [&](const std::string& s) { options.math = parse_math(s); },
          "int8: quantized activations, CPU only")
      ->type_name("T");
  tool.app.add_option("--tactic", options.tactic, "run this tactic everywhere, as q4-autotune prints it")
      ->type_name("T");
  tool.app.add_flag("--batch-invariant", options.batch_invariant,
                    "plans whose rows have the same bits whatever m is (PlanOptions::batch_invariant)");
  tool.app.add_flag("--untuned", options.untuned, "read no tuning file");
  tool.app
      .add_option("--versus", options.versus, "time this tactic too, or the \"default\" one, in turn with what runs")
      ->type_name("T");
  tool.app.add_flag("--dense", options.dense, "time the dense BLAS on unquantized weights too");
  tool.app.add_option("--baseline", options.baseline, "CSV of others' times: peer,k,n,group,act_order,m,us")
      ->type_name("FILE");
  tool.app.add_option("--csv", options.csv, "write kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err")
      ->type_name("FILE");
  tool.app.add_option("--chain", options.chain, "time the shapes in order, N times over, as one chain of launches")
      ->type_name("N")
      ->check(CLI::Range(1, 1000));
  tool.app.add_option("--seconds", options.seconds, "most time for one point (default 1)")
      ->check(seconds_check(false))
      ->type_name("S");
  tool.add_json("print one JSON object instead of the table");
  return tool.run(argc, argv, [&] { return Bench(tool, options).run(); });
}
