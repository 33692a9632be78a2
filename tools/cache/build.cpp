// q4-cache build and warmup: the kernels of shapes, for GPUs that are elsewhere, and on one that is here.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <filesystem>
#include <mutex>
#include <optional>
#include <q4/q4.hpp>

#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "tools/cache/cache_tool.hpp"

namespace q4::tools {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// How far a build is: by shapes, and by kernels within one. Kernels are told by the threads that compile them.
class BuildProgress {
 public:
  explicit BuildProgress(std::size_t shapes) : shapes_(shapes), bar_(std::in_place) {}
  void begin(const std::string& shape) {
    const std::lock_guard lock(mutex_);
    ++begun_, shape_ = shape, kernels_ = 0;
    show("");
  }
  void kernel(const CacheEvent& event) {
    const std::lock_guard lock(mutex_);
    ++kernels_;
    show(fmt::format("  kernel {}: {}", kernels_, event.kernel));
  }
  void end() { bar_.reset(); }

 private:
  void show(const std::string& more) {
    if (bar_) bar_->update(static_cast<double>(begun_ - 1) / static_cast<double>(shapes_), shape_ + more);
  }
  std::mutex mutex_;
  std::size_t shapes_, begun_ = 0, kernels_ = 0;
  std::string shape_;
  std::optional<Progress> bar_;
};

PlanOptions plan_options(const CrossOptions& options) {
  PlanOptions plan;
  plan.max_m = options.max_m, plan.activation = options.activation;
  return plan;
}

Json to_json(const CacheEvent& event) {
  return {{"kernel", event.kernel},          {"key", event.key},
          {"layer", to_string(event.layer)}, {"from", event.from},
          {"missed", event.missed},          {"error", event.error},
          {"lookup_ms", event.lookup_ms},    {"compile_ms", event.compile_ms},
          {"load_ms", event.load_ms}};
}

void add(WarmupReport& to, WarmupReport more) {
  to.kernels.insert(to.kernels.end(), more.kernels.begin(), more.kernels.end());
  to.skipped += more.skipped, to.ms += more.ms;
  to.cancelled |= more.cancelled, to.past_deadline |= more.past_deadline;
}

void print_warmup(const Tool& tool, const Device device, double open_ms, const WarmupReport& report) {
  struct Sum {
    std::size_t kernels = 0;
    double lookup = 0, compile = 0, load = 0;
  };
  std::map<CacheLayer, Sum> sums;
  Json kernels = Json::array(), layers = Json::object();
  for (const auto& event : report.kernels) {
    auto& sum = sums[event.layer];
    ++sum.kernels, sum.lookup += event.lookup_ms, sum.compile += event.compile_ms, sum.load += event.load_ms;
    kernels.push_back(to_json(event));
  }
  Table table({"from", "kernels", "lookup ms", "compile ms", "load ms"});
  for (const auto& [layer, sum] : sums) {
    const char* name = layer == CacheLayer::kNone ? "failed" : to_string(layer);
    table.add({name, std::to_string(sum.kernels), number(sum.lookup), number(sum.compile), number(sum.load)});
    layers[name] = sum.kernels;
  }
  if (tool.json)
    return fmt::print("{}\n", Json{{"device", device.str()},
                                   {"open_ms", open_ms},
                                   {"warmup_ms", report.ms},
                                   {"complete", report.complete()},
                                   {"skipped", report.skipped},
                                   {"layers", layers},
                                   {"kernels", kernels}}
                                  .dump(2));
  fmt::print("{}{}: opened in {} ms, then {} kernels in {} ms{}\n", table.str(), device.str(), number(open_ms),
             report.kernels.size(), number(report.ms),
             report.skipped ? fmt::format(", {} skipped", report.skipped) : "");
  for (const auto& event : report.kernels)
    if (event.layer == CacheLayer::kNone) fmt::print(stderr, "q4-cache: {}\n", event.error);
}

}  // namespace

int build_kernels(const Tool& tool, const CacheToolOptions& given) {
  CacheToolOptions options = given;
  TuningDb tuning;
  for (const auto& file : options.tuning) read_input([&] { tuning.load(file); }), options.cross.tuning = &tuning;
  const auto targets = parse_targets(options.target);
  const auto shapes = options.shapes.resolve("llama-3-8b");
  const auto bias_variants = options.shapes.biases(options.cross.bias);
  const auto experts = options.shapes.experts(plan_options(options.cross));
  check(options.cross.activation != DType::kF32, "--activation = fp32 is for the CPU, which compiles nothing");
  if (options.folder.empty()) fail(ErrorCode::kIo, "--cache-dir: there is no cache folder; name one");
  if (const auto problem = cache::prepare_folder(options.folder); !problem.empty())
    fail(ErrorCode::kIo, "--cache-dir: {}", problem);
  std::string trouble;
  const auto environment = cache::cache_options({});
  BuildProgress progress(targets.size() * (shapes.size() + experts.size()));
  cache::KernelCache kernels({.folder = options.folder,
                              .dump_dir = environment.dump_dir,
                              .event = [&](const CacheEvent& event) { progress.kernel(event); }},
                             [&](LogLevel level, const std::string& text) {
                               if (level > LogLevel::kWarning) return;
                               fmt::print(stderr, "q4-cache: warning: {}\n", text), trouble = text;
                             });
  const auto start = Clock::now();
  Table table({"target", "GPU", "SMs", "kernels", "compiled", "tuned shapes"});
  Json rows = Json::array();
  for (const Target& target : targets) {
    CrossCompiler compiler(target, kernels);
    for (const auto& shape : shapes) {
      progress.begin(fmt::format("{} {}: {}x{}", target.arch, target.name, shape.k, shape.n));
      for (const bool bias : bias_variants) options.cross.bias = bias, compiler.add(shape, options.cross);
    }
    for (const auto& layer : experts) {
      progress.begin(
          fmt::format("{} {}: {} experts {}x{}", target.arch, target.name, layer.experts, layer.k, layer.width));
      compiler.add(layer, options.cross.tuning);
    }
    table.add({target.arch, target.name, std::to_string(target.limits.units), std::to_string(compiler.kernels()),
               std::to_string(compiler.compiled()), std::to_string(compiler.tuned())});
    rows.push_back({{"target", target.arch},
                    {"gpu", target.name},
                    {"units", target.limits.units},
                    {"kernels", compiler.kernels()},
                    {"compiled", compiler.compiled()},
                    {"tuned_shapes", compiler.tuned()}});
  }
  progress.end();
  const double seconds = seconds_since(start);
  if (tool.json)
    fmt::print("{}\n", Json{{"cache_dir", options.folder}, {"seconds", seconds}, {"targets", rows}}.dump(2));
  else
    fmt::print("{}\n{:.1f} s, in {}\n", table.str(), seconds, options.folder);
  return trouble.empty() ? 0 : 1;
}

int warm_up(const Tool& tool, const CacheToolOptions& given) {
  WarmupOptions options = given.warmup;
  options.plan = plan_options(given.cross);
  const Runtime runtime(RuntimeOptions{.cache_dir = given.folder});
  const auto start = Clock::now();
  if (!tool.device_name.empty()) options.device = tool.device(runtime);  // else warmup() insists on a GPU
  const Device device = options.device ? *options.device : runtime.best_device();
  runtime.info(device);  // opens it
  const double open_ms = seconds_since(start) * 1e3;
  WarmupReport report;
  {
    Progress progress;
    catch_interrupt();
    options.cancel = interrupted;
    options.progress = [&](std::size_t done, std::size_t total, const CacheEvent& event) {
      progress.update(static_cast<double>(done) / static_cast<double>(total), event.kernel);
    };
    if (!given.shapes.checkpoint.empty()) {
      check(given.shapes.tensor_parallel == 1,
            "--tp {}: of --checkpoint whole matrices are warmed up; give the model's config.json with --config",
            given.shapes.tensor_parallel);
      report = runtime.warmup(read_input([&] { return Checkpoint::open(given.shapes.checkpoint); }), options);
    } else {
      std::vector<WarmupShape> shapes;
      for (const auto& p : given.shapes.resolve("llama-3-8b"))
        for (const bool bias : given.shapes.biases(given.cross.bias))
          shapes.push_back({p.k, p.n, p.group, p.act_order, bias, false, given.cross.in_place});
      report = runtime.warmup(shapes, options);
      if (const auto experts = given.shapes.experts(options.plan); !experts.empty()) {
        constexpr double kLeast = 1e-3;  // 0 would be no deadline
        if (options.deadline_s > 0) options.deadline_s = std::max(kLeast, options.deadline_s - report.ms / 1e3);
        add(report, runtime.warmup_experts(experts, options));
      }
    }
  }
  print_warmup(tool, device, open_ms, report);
  const bool nothing = report.kernels.empty() && report.skipped == 0 && traits_of(device).compiles;
  if (nothing) fmt::print(stderr, "q4-cache: error: there is nothing to warm up: no quantized matrix was found\n");
  return report.complete() && !nothing ? 0 : 1;
}

}  // namespace q4::tools
