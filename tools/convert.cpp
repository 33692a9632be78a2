// q4-convert: the same weights in another packing, exactly.
#include "tools/convert/convert.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <chrono>
#include <iterator>

#include "runtime/base/check.hpp"
#include "tools/common/common.hpp"
#include "tools/common/tool.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr int kInterrupted = 130;
constexpr const char* kPurpose =
    "Writes a checkpoint in another packing: the same codes, zeros and scales, bit for bit, read back before the new\n"
    "folder gets its name. What the packing cannot hold exactly is refused.";
constexpr const char* kExamples =
    "  q4-convert models/llama-awq models/llama-gptq --to gptq_v2\n"
    "  q4-convert models/llama-gptq models/llama-ct --to compressed-tensors --shard-size 2GB\n"
    "  q4-info models/llama-gptq   says what it is now\n";

struct Interrupted {};

int run(const Tool& tool, const convert::Request& request, bool quiet) {
  const auto start = std::chrono::steady_clock::now();
  catch_interrupt();
  Progress bar(quiet || tool.json);
  convert::Converted result;
  try {
    result = convert::convert(request, [&](double share, const std::string& what) {
      if (interrupted()) throw Interrupted();
      bar.update(share, what);
    });
  } catch (const Interrupted&) {
    bar.line("interrupted; nothing was kept");
    return kInterrupted;
  }
  bar.clear();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (tool.json) {
    const Json all = {{"in", request.in},
                      {"out", request.out},
                      {"from", result.from},
                      {"to", to_string(request.format)},
                      {"matrices", result.matrices},
                      {"copied_tensors", result.copied},
                      {"files", result.files},
                      {"bytes", result.bytes},
                      {"left_out", result.left_out},
                      {"seconds", seconds}};
    fmt::print("{}\n", all.dump(2, ' ', false, Json::error_handler_t::replace));
    return kDone;
  }
  fmt::print("{}: {} matrices of {} are {} now, {} other tensors are copied\n", request.out, result.matrices,
             result.from, to_string(request.format), result.copied);
  fmt::print("{} in {} {}, read back and compared, {:.1f} s\n", megabytes(result.bytes), result.files,
             result.files == 1 ? "file" : "files", seconds);
  for (const std::string& name : result.left_out) fmt::print("not copied: {}\n", name);
  return kDone;
}

}  // namespace

int main(int argc, char** argv) {
  Tool tool("q4-convert", kPurpose, kExamples);
  convert::Request request;
  bool quiet = false;
  tool.app->add_option("IN", request.in, "a .safetensors file or the folder of a model")->required();
  tool.app->add_option("OUT", request.out, "a new folder; its parent must exist")->required();
  tool.app
      ->add_option_function<std::string>(
          "--to",
          [&](const std::string& name) {
            for (std::size_t i = 0; i < std::size(convert::kFormatNames); ++i)
              if (name == convert::kFormatNames[i]) request.format = static_cast<convert::Format>(i);
          },
          "gptq (v1 zeros), gptq_v2, compressed-tensors (pack-quantized) or awq (gemm)")
      ->check(
          CLI::IsMember(std::vector<std::string>(std::begin(convert::kFormatNames), std::end(convert::kFormatNames))))
      ->required()
      ->type_name("FORMAT");
  tool.app
      ->add_option_function<std::string>(
          "--shard-size",
          [&](const std::string& text) {
            request.shard_bytes = parse_bytes(text, "--shard-size");
            check(request.shard_bytes > 0, "--shard-size = {}: it must be above 0", text);
          },
          "largest file: a number with B, KB, MB or GB (default: 5GB)")
      ->type_name("SIZE");
  tool.app->add_flag("--force", request.force,
                     "replace OUT, if it holds nothing but a checkpoint with the files of IN");
  tool.app->add_flag("--quiet", quiet, "no progress on stderr");
  tool.add_json("print one JSON object");
  return tool.run(argc, argv, [&] { return run(tool, request, quiet); });
}
