// q4-bench: checked times with cold weights, beside the read-only floor, the dense BLAS and other libraries' numbers.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/moe.hpp"
#include "tools/bench/output.hpp"
#include "tools/common/common.hpp"
#include "tools/common/exit.hpp"
#include "tools/common/tool.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr const char* kName = "q4-bench";
constexpr int kInterrupted = 130;

constexpr const char* kExamples =
    "  q4-bench                                      the default sweep on the best device, with its tuning file\n"
    "  q4-bench --shape 4096x4096 --m 1              one point\n"
    "  q4-bench --model llama-3-8b --m 1-64 --untuned --csv decode.csv\n"
    "  q4-bench --shape 8192x8192 --m 16 --tactic 'gemv half2=1'   one tactic of q4-autotune's table\n"
    "  q4-bench --model llama-3-8b --chain 32 --m 1   a decode step's matmuls, with and without overlapped launches\n"
    "  q4-bench --moe 128,8,2048,768 --m 1-64 --csv moe.csv   a layer of experts, both products\n"
    "  q4-bench --shape 4096x4096 --m 1,8,64 --lora 8,16   with 8 adapters of rank 16, beside the matmul alone\n"
    "  q4-bench --shape 4096x28672 --m 1-64 --epilogue silu_mul   gates and ups, out of n / 2 columns\n"
    "  q4-bench --baseline peers.csv --dense         beside other libraries and the dense BLAS\n"
    "\n"
    "Columns: us is the median time of one multiplication whose weights are not in a cache; on a GPU it is a\n"
    "node of a replayed graph. floor us is the time of a kernel that only reads the packed weights, in this\n"
    "run; with --peak that of the operations, if longer. rel_err is ||out - ref|| / ||ref|| against fp64 over\n"
    "sampled rows and columns of outputs that were filled with NaN before. On the CPU the floor is the longer\n"
    "of packed bytes / read bandwidth and operations / best peak, all measured in this run; reconstruct + BLAS\n"
    "is timed at every point, and so is oneDNN where it is installed (dense bf16; 4-bit weights from version\n"
    "3.5 on).\n"
    "\n"
    "Exit status: 0 all within tolerance, 1 a point is over it or failed, 2 wrong usage or unreadable files.\n";

Math parse_math(const std::string& text) {
  if (text == "int8") return Math::kInt8;
  check(text == "auto", "--math = {}: use auto or int8", text);
  return Math::kAuto;
}

[[noreturn]] void unwritable(const std::string& csv) {
  fail(ErrorCode::kIo, "--csv = {}: cannot be written: {}; name a file in a folder that exists, with room", csv,
       std::strerror(errno));
}

/// What cannot be written is reported before an hour of measuring, and no input is written over.
void check_csv(const BenchOptions& options) {
  if (options.csv.empty()) return;
  std::error_code absent;
  for (const auto& [option, file] : {std::pair("--baseline", options.baseline), {"--shapes", options.shapes.csv_file}})
    check(file.empty() || !std::filesystem::equivalent(file, options.csv, absent),
          "--csv = {}: that is the file of {}; name another", options.csv, option);
  if (!std::ofstream(options.csv, std::ios::app)) unwritable(options.csv);
}

/// The shapes in order, as many times as there are layers, for each m.
int bench_chains(const Tool& tool, const Runtime& runtime, Device device,
                 const std::vector<autotune::Problem>& problems, const BenchOptions& options) {
  std::vector<ChainResult> chains;
  for (const auto m : options.m)
    chains.push_back(run_chain(runtime, device, problems, options.activation, options.chain, m));
  fmt::print("{}\n", tool.json ? chains_json(chains).dump(2) : chains_table(chains));
  return 0;
}

/// What the command line names: shapes and others' times.
struct Inputs {
  std::vector<autotune::Problem> problems;
  std::optional<Baseline> baseline;
};

void write_csv(const std::string& csv, const std::string& text) {
  std::ofstream out(csv);
  out << text;
  out.flush();
  if (!out) unwritable(csv);
}

/// `moe`: E,topk,K,I.
int bench_moe(const Tool& tool, const std::string& moe, bool zipf, BenchOptions options) {
  MoeProblem problem = read_input([&] { return parse_moe(moe); });
  problem.group = options.shapes.group, problem.act_order = options.shapes.act_order;
  check(problem.group >= 8 && problem.group % 8 == 0, "--group = {}: it must be a multiple of 8", problem.group);
  const Runtime runtime = bench_runtime(options.untuned);
  const Device device = tool.device(runtime);
  if (options.m.empty()) options.m = powers_of_two(traits_of(device).asynchronous ? 4096 : 256);
  check_csv(options);
  catch_interrupt();
  const MoeBenchOptions with{options.m, options.activation, options.tactic, options.batch_invariant,
                             zipf,      options.seconds};
  const auto points = measure_moe(runtime, device, problem, with);
  const DeviceInfo info = runtime.info(device);
  fmt::print("{}\n", tool.json ? moe_json(points, info, with).dump(2) : moe_table(points, info, with));
  if (!options.csv.empty()) write_csv(options.csv, moe_csv(points, with));
  const auto wrong = std::ranges::count_if(points, [](const MoePoint& p) { return !p.exact; });
  if (wrong > 0)
    fmt::print(stderr, "{}: error: {} points are over the tolerance {:.0e} or raised an error\n", kName, wrong,
               options.tolerance());
  if (interrupted()) return kInterrupted;
  return std::ranges::all_of(points, [](const MoePoint& p) { return p.refused; }) ? kUsage
         : wrong > 0                                                              ? kFailed
                                                                                  : kDone;
}

int bench(const Tool& tool, BenchOptions options) {
  const Runtime runtime = bench_runtime(options.untuned);
  const Device device = tool.device(runtime);
  const bool gpu = traits_of(device).asynchronous;
  if (options.m.empty()) options.m = powers_of_two(gpu ? 8192 : 512);
  const Inputs inputs = read_input([&] {
    Inputs read{options.shapes.resolve(gpu ? "sweep" : "llama-3-8b"), {}};
    if (!options.baseline.empty()) read.baseline = Baseline::read(options.baseline);
    return read;
  });
  if (options.chain > 0) return bench_chains(tool, runtime, device, inputs.problems, options);
  check_csv(options);
  catch_interrupt();
  BenchRun run{.info = runtime.info(device), .tuning_records = runtime.tuning().size(), .baseline = inputs.baseline};
  measure_points(runtime, device, inputs.problems, options, run);
  fmt::print("{}\n", tool.json ? bench_json(run, options).dump(2) : bench_table(run, options));
  if (!options.csv.empty()) write_csv(options.csv, bench_csv(run, options));
  const auto wrong = std::count_if(run.points.begin(), run.points.end(), [](const Point& p) { return !p.exact; });
  if (wrong > 0)
    fmt::print(stderr, "{}: error: {} points are over the tolerance {:.0e} or raised an error\n", kName, wrong,
               options.tolerance());
  return interrupted() ? kInterrupted : run.refused == run.points.size() ? kUsage : wrong > 0 ? kFailed : kDone;
}

}  // namespace

int main(int argc, char** argv) {
  Tool tool(kName, "Times quantized matmuls on one device with cold weights, after checking each result.", kExamples);
  BenchOptions options;
  tool.add_device();
  options.shapes.add_to(*tool.app, "sweep on a GPU, llama-3-8b on a CPU");
  tool.app
      ->add_option_function<std::string>(
          "--m", [&](const std::string& s) { options.m = parse_m_list(s); },
          "rows of x: 1,8,64 or 1-16 (default: powers of two to 8192 on a GPU, 512 on a CPU)")
      ->type_name("LIST");
  tool.app
      ->add_option_function<std::string>(
          "--activation", [&](const std::string& s) { options.activation = parse_activation(s); },
          "fp16 (default), bf16, or fp32 on the CPU")
      ->type_name("T");
  tool.app
      ->add_option_function<std::string>(
          "--math", [&](const std::string& s) { options.math = parse_math(s); },
          "int8: quantized activations, CPU only")
      ->type_name("T");
  tool.app->add_option("--tactic", options.tactic, "run this tactic everywhere, as q4-autotune prints it")
      ->type_name("T");
  tool.app->add_flag("--batch-invariant", options.batch_invariant,
                     "plans whose rows have the same bits whatever m is (PlanOptions::batch_invariant)");
  tool.app->add_flag("--x-ordered", options.x_ordered,
                     "with --act-order: x comes in the matrix's own order (Gather::kGiven of q4/order.hpp)");
  tool.app->add_flag("--untuned", options.untuned, "read no tuning file");
  tool.app
      ->add_option("--versus", options.versus, "time this tactic too, or the \"default\" one, in turn with what runs")
      ->type_name("T");
  tool.app->add_flag("--dense", options.dense, "time the dense BLAS on unquantized weights too");
  tool.app->add_flag("--scaling", options.scaling, "CPU: time 1, 2, 4, ... threads too, each beside its own ceilings");
  tool.app->add_flag("--summary", options.summary,
                     "print geometric means over classes of m too: time over the floor, the dense BLAS, the best peer");
  tool.app
      ->add_option(
          "--peak", options.peak_tflops,
          "GPU: the tensor cores' rate in TFLOP/s; the floor is then the longer of the read and the operations at it")
      ->check(number_check("TFLOP/s", false))
      ->type_name("TFLOP/s");
  tool.app->add_option("--baseline", options.baseline, "CSV of others' times: peer,k,n,group,act_order,m,us")
      ->type_name("FILE");
  tool.app
      ->add_option_function<std::string>(
          "--lora", [&](const std::string& s) { autotune::parse_lora(s, options.epilogue); },
          "with so many LoRA adapters of this rank, in turn for the rows; the matmul alone is timed too")
      ->type_name("ADAPTERS,RANK");
  tool.app
      ->add_option_function<std::string>(
          "--epilogue", [&](const std::string& s) { autotune::parse_epilogue(s, options.epilogue); },
          "with an activation, a residual or both (silu_mul, gelu+residual); the matmul alone is timed too")
      ->type_name("PARTS");
  tool.app->add_flag("--residual", options.epilogue.rest.residual, "the same as --epilogue residual");
  tool.app->add_option("--csv", options.csv, "write kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err")
      ->type_name("FILE");
  tool.app->add_option("--chain", options.chain, "time the shapes in order, N times over, as one chain of launches")
      ->type_name("N")
      ->check(CLI::Range(1, 1000));
  std::string moe, routing = "uniform";
  auto* const of_moe = tool.app->add_option(
      "--moe", moe, "time a layer of experts: E experts of [K, 2 I] and [I, K], topk of them a token");
  of_moe->type_name("E,topk,K,I");
  tool.app
      ->add_option("--routing", routing, "of --moe: uniform (default) or zipf, where expert e has weight 1 / (e + 1)")
      ->check(CLI::IsMember({"uniform", "zipf"}))
      ->needs(of_moe)
      ->type_name("R");
  tool.app->add_option("--seconds", options.seconds, "most time for one point (default 1)")
      ->check(number_check("seconds", false))
      ->type_name("S");
  tool.add_json("print one JSON object instead of the table");
  return tool.run(argc, argv, [&] {
    return moe.empty() ? bench(tool, options) : bench_moe(tool, moe, routing == "zipf", options);
  });
}
