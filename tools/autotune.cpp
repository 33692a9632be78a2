// q4-autotune: measures a model's shapes on one device and writes the tuning file that a Runtime reads.
#include <cstdlib>
#include <cstring>

#include "runtime/base/check.hpp"
#include "tools/common/common.hpp"
#include "tools/common/tool.hpp"
#include "tools/tuning_session.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr const char* kExamples =
    "  q4-autotune                                      llama-3-8b on the best device, about a minute\n"
    "  q4-autotune --model llama-2-70b --budget 300     more time, fewer gaps\n"
    "  q4-autotune --checkpoint ~/models/my-gptq        exactly the shapes of a checkpoint\n"
    "  q4-autotune --m 1-16 --activation bf16           decode only: buckets 1, 2, 4, 8, 16\n"
    "  q4-autotune --out h200.jsonl                     a file to ship; use it with Q4_TUNING=h200.jsonl\n"
    "  q4-autotune --report tuning.html                 what was found as a page with plots\n"
    "  q4-autotune --model llama-2-70b --tp 4 --shard 0/8 --out h200.jsonl     one of eight jobs (docs/tuning.md)\n"
    "\n"
    "Each shape is saved as soon as it is done: run the same command again to go on after Ctrl-C. A tactic replaces "
    "the\n"
    "default only if it is more than 2% faster beyond the noise, so tuning never makes a program slower.\n"
    "\n"
    "Columns: default and tuned us are medians of one multiplication with cold weights; gain is their ratio less 1\n"
    "(geomean gain: over all m); GB/s counts packed weights, x and out; of floor: a kernel that only reads these "
    "bytes\n"
    "would take that share of the time. reconstruct from m: the first m at which\n"
    "reconstructing W for the BLAS wins; \"never to M\": at no m up to M. math: half2 or fp32, what won at the "
    "smallest\n"
    "m (half2 us, fp32 us: the best of each there), or either. copies: of the weights, used in turn so that no cache\n"
    "holds them. tactics: how many were measured; pruned: a bound says that they\n"
    "cannot win; quarantined: crashed or hung, and not tried again.\n";

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], autotune::kWorkerArgument) == 0)
    return autotune::worker_main(argv[2], std::atof(argv[3]));
  Tool tool(
      "q4-autotune",
      "Measures which kernels are fastest for a model's shapes on a device: the tactic of each range of m, half2 or "
      "fp32 math, and the m from which reconstructing W for the BLAS wins. Saves a file that every q4 Runtime reads.",
      kExamples);
  TuningRequest options;
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
  tool.app.add_option("--shape-budget", options.shape_budget, "at most so many seconds for one shape")
      ->check(seconds_check(false))
      ->type_name("S");
  tool.app.add_option("--out", options.out, "tuning file to add to (default: <cache folder>/tuning.jsonl)")
      ->type_name("FILE");
  tool.app.add_option("--report", options.report, "write an HTML page with plots; measures the dense BLAS too")
      ->type_name("FILE");
  tool.app.add_flag("--again", options.again, "measure also what the file already holds, and try quarantined tactics");
  tool.app
      .add_option("--policy", options.policy,
                  "cold (default): weights come from memory, as in a model; warm: from the last cache, if they fit")
      ->check(
          [](const std::string& p) { return p == "cold" || p == "warm" ? "" : "\"" + p + "\": must be cold or warm"; })
      ->type_name("P");
  tool.app.add_option("--tp", options.tensor_parallel, "tune the slices of a rank of so many")
      ->check(CLI::Range(1, 64))
      ->type_name("N");
  tool.app
      .add_option_function<std::string>(
          "--shard", [&](const std::string& s) { options.shard = Shard::parse(s); },
          "the I-th of N parts of the shapes, from 0, into a file of its own; join them with q4-cache merge")
      ->type_name("I/N");
  tool.app.add_option("--watchdog", options.launch_s, "seconds after which a silent tactic is hung (default 30)")
      ->check(seconds_check(false))
      ->type_name("S");
  tool.app.add_flag("--exhaustive", options.exhaustive, "measure every tactic at every m, to check the search itself");
  tool.add_json("print one JSON object instead of tables; progress stays on stderr");
  return tool.run(argc, argv, [&] {
    catch_interrupt();  // before the device is opened, which can take seconds
    return TuningSession(tool, options).run();
  });
}
