// q4-autotune: measures a model's shapes on one device and writes the tuning file that a Runtime reads.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "autotune/epilogue.hpp"
#include "autotune/process/session.hpp"
#include "autotune/process/worker.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "tools/autotune/output.hpp"
#include "tools/autotune/request.hpp"
#include "tools/common/exit.hpp"
#include "tools/common/tool.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr const char* kName = "q4-autotune";
constexpr int kInterrupted = 130;
constexpr double kStopS = 0.8;  // for a worker to stop by itself

constexpr const char* kExamples =
    "  q4-autotune                                      llama-3-8b on the best device, about a minute\n"
    "  q4-autotune --model llama-2-70b --budget 300     more time, fewer gaps\n"
    "  q4-autotune --checkpoint ~/models/my-gptq        exactly the shapes of a checkpoint\n"
    "  q4-autotune --m 1-16 --activation bf16           decode only: buckets 1, 2, 4, 8, 16\n"
    "  q4-autotune --lora 8,16                          plans with adapters (their records are their own)\n"
    "  q4-autotune --out h200.jsonl                     a file to ship; use it with Q4_TUNING=h200.jsonl\n"
    "  q4-autotune --report tuning.html                 what was found as a page with plots\n"
    "  q4-autotune --model llama-2-70b --tp 4 --shard 0/8 --out h200.jsonl     one of eight jobs (docs/tuning.md)\n"
    "\n"
    "Each shape is saved as soon as it is done: run the same command again to go on after Ctrl-C. A tactic\n"
    "replaces the default only if it is more than 2% faster beyond the noise, so tuning never makes a program\n"
    "slower.\n"
    "\n"
    "Columns: default us and tuned us are medians of one multiplication with cold weights; gain is their ratio\n"
    "minus 1 (geomean gain: over all m). GB/s counts packed weights, x and out. of floor is the share of the\n"
    "time that a kernel which only reads these bytes takes. reconstruct from m is the first m at which\n"
    "reconstructing W for the BLAS wins; \"never to M\": at no m up to M. math is half2 or fp32, which won at\n"
    "the smallest m (half2 us, fp32 us: the best of each there), or either. copies are those of the weights,\n"
    "used in turn so that no cache holds them. tactics counts those that were measured, pruned those that\n"
    "cannot win by a bound, quarantined those that crashed or hung and are not tried again.\n";

void announce(const TuningRequest& request, const DeviceInfo& info, std::size_t shapes, std::size_t kept) {
  fmt::print("Tuning {} shapes on {} ({}, {}), {} activations, {} weights, m = {}, budget {}\n", shapes,
             info.device.str(), info.name, info.arch, to_string(request.activation), request.policy,
             fmt::join(request.m, " "), request.budget > 0 ? fmt::format("{:.0f} s", request.budget) : "unlimited");
  if (request.shard.count > 1)
    fmt::print("Shard {} of {}: {}\n", request.shard.index, request.shard.count, request.out);
  if (kept > 0) fmt::print("{} of them are kept from {}; --again measures them anew\n", kept, request.out);
  std::fflush(stdout);
}

void write_report(const TuningRequest& request, const autotune::TuningRun& run) {
  if (request.report.empty()) return;
  std::ofstream out(request.report, std::ios::trunc);
  out << autotune::html_report(run);
  out.flush();
  if (!out) fail(ErrorCode::kIo, "--report = {}: cannot be written: {}", request.report, std::strerror(errno));
}

int tune(const Tool& tool, TuningRequest request) {
  const auto start = std::chrono::steady_clock::now();
  const auto shapes = read_input([&] { return requested_shapes(request); });
  const std::string default_file = default_tuning_file(Runtime());
  Progress bar(false);
  autotune::SessionOptions options;
  options.policy = request.policy, options.start = start, options.version = Q4_VERSION;
  options.budget_s = request.budget, options.shape_budget_s = request.shape_budget;
  options.again = request.again, options.exhaustive = request.exhaustive, options.yardsticks = !request.report.empty();
  const autotune::SessionWatch watch{
      [&](double fraction, const std::string& text) { bar.update(fraction, text, request.budget); },
      [&](const std::string& text) { bar.line(text); }};
  autotune::Session session({tool.device_name, request.launch_s, kStopS, interrupted}, options, watch);
  const DeviceInfo& device = session.device().info;
  complete_request(request, !traits_of(device.device).asynchronous, default_file);
  check_report(request);
  read_input([&] { session.begin(shapes, request.m, request.out); });
  session.check_writable();
  if (!tool.json) announce(request, device, shapes.size(), session.kept());
  catch_interrupt();
  const autotune::TuningRun run = session.run();
  bar.clear();
  if (tool.json)
    fmt::print("{}\n", run_as_json(run, request.exhaustive).dump(2));
  else
    fmt::print("{}", tables(run));
  write_report(request, run);
  if (!tool.json) fmt::print("{}", where_it_is(run, request.report, request.out == default_file));
  return run.interrupted ? kInterrupted : succeeded(run) ? kDone : kFailed;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], autotune::kWorkerArgument) == 0)
    return autotune::worker_main(argv[2], std::atof(argv[3]));
  end_at_interrupt();  // nothing is measured yet; tune() changes that
  Tool tool(
      kName,
      "Measures which kernels are fastest for a model's shapes on a device: the tactic of each range of m, half2 or "
      "fp32 math, and the m from which reconstructing W for the BLAS wins. Saves a file that every q4 Runtime reads.",
      kExamples);
  TuningRequest request;
  tool.add_device();
  request.shapes.add_to(*tool.app, "llama-3-8b");
  tool.app
      ->add_option_function<std::string>(
          "--m", [&](const std::string& s) { request.m = parse_m_list(s); },
          "rows to measure: 1,8,64 or 1-16; one number is the largest of 1, 2, 4, ... "
          "(default: 512 on a CPU, 4096 on a GPU)")
      ->type_name("LIST");
  tool.app
      ->add_option_function<std::string>(
          "--activation", [&](const std::string& s) { request.activation = parse_activation(s); },
          "fp16 (default), bf16, or fp32 on the CPU")
      ->type_name("T");
  tool.app
      ->add_option_function<std::string>(
          "--epilogue", [&](const std::string& s) { autotune::parse_epilogue(s, request.with); },
          "tune plans with it: silu_mul, residual or both, as q4-bench --epilogue; their records are kept beside those "
          "without")
      ->type_name("PARTS");
  tool.app
      ->add_option_function<std::string>(
          "--lora", [&](const std::string& s) { autotune::parse_lora(s, request.with); },
          "tune plans with so many LoRA adapters of this rank, to which the rows belong in turn")
      ->type_name("ADAPTERS,RANK");
  tool.app->add_option("--budget", request.budget, "seconds for everything, 0: until all is measured (default 60)")
      ->check(number_check("seconds", true))
      ->type_name("S");
  tool.app->add_option("--shape-budget", request.shape_budget, "at most so many seconds for one shape")
      ->check(number_check("seconds", false))
      ->type_name("S");
  tool.app->add_option("--out", request.out, "tuning file to add to (default: <cache folder>/tuning.jsonl)")
      ->type_name("FILE");
  tool.app->add_option("--report", request.report, "write an HTML page with plots; measures the dense BLAS too")
      ->type_name("FILE");
  tool.app->add_flag("--again", request.again, "measure also what the file already holds, and try quarantined tactics");
  tool.app
      ->add_option("--policy", request.policy,
                   "cold (default): weights come from memory, as in a model; warm: from the last cache, if they fit")
      ->check(
          [](const std::string& p) { return p == "cold" || p == "warm" ? "" : "\"" + p + "\": must be cold or warm"; })
      ->type_name("P");
  tool.app
      ->add_option_function<std::string>(
          "--shard", [&](const std::string& s) { request.shard = Shard::parse(s); },
          "the I-th of N parts of the shapes, from 0, into a file of its own; join them with q4-cache merge")
      ->type_name("I/N");
  tool.app->add_option("--watchdog", request.launch_s, "seconds after which a silent tactic is hung (default 30)")
      ->check(number_check("seconds", false))
      ->type_name("S");
  tool.app->add_flag("--exhaustive", request.exhaustive, "measure every tactic at every m, to check the search itself");
  tool.add_json("print one JSON object instead of tables; progress stays on stderr");
  return tool.run(argc, argv, [&] { return tune(tool, request); });
}
