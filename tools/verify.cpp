// q4-verify: the matrices of a checkpoint on a device against the fp64 reference; or rows of a file multiplied by one.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <q4/q4.hpp>

#include "autotune/tolerance.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"
#include "runtime/runtime.hpp"
#include "tools/common/common.hpp"
#include "tools/common/compare.hpp"
#include "tools/common/csv.hpp"
#include "tools/common/npy.hpp"
#include "tools/common/tool.hpp"
#include "tools/common/weights.hpp"
#include "tools/verify/expert_layers.hpp"

namespace q4::tools {
namespace {

constexpr const char* kPurpose =
    "Loads every quantized matrix of a checkpoint to a device, multiplies random normal rows by it, and compares\n"
    "with a reference in fp64 that reads the tensors by itself. Outputs are filled with NaN before.\n"
    "error is ||out - reference|| / ||reference||; it must be at most 5e-4 (fp16), 4e-3 (bf16), 1e-6 (fp32; 5e-4\n"
    "where scales had to be rounded to fp16). A scale that is not finite and a matrix of zero scales fail.\n"
    "Of large matrices the reference computes a sample of the columns, all rows of each: the first 8, the last 8,\n"
    "random ones, and any whose output is not finite; --columns 0 computes all.\n"
    "Experts (...experts.0.gate_proj and so on; w1, w3, w2) are also run as a layer with SiLU, two for a token.\n\n"
    "CHECKPOINT is a .safetensors file, an index, or a folder with model.safetensors or with shards and their index;\n"
    "4 bits in any format that q4 reads: GPTQ (v1, v2), AWQ (gemm, gemv, gemv_fast), AutoRound, compressed-tensors,\n"
    "Marlin's. With --tensor, --x and --out the rows of an .npy file are multiplied\n"
    "instead and nothing is compared: fp16 ('<f2'), fp32 ('<f4') or bf16 ('<V2' as ml_dtypes.bfloat16 is saved, or\n"
    "its bits as '<u2'), the result in the type of --activation; bf16 is written as '<V2'.\n\n"
    "Exit status: 0 all within tolerance, 1 one is over it or failed, 2 wrong usage or unreadable files.";
constexpr const char* kExamples =
    "  q4-verify models/llama-3-8b-gptq\n"
    "  q4-verify model.safetensors --device cpu --m 1-64 --activation bf16\n"
    "  q4-verify models/m --tensor model.layers.0.mlp.up_proj --columns 0\n"
    "  q4-verify models/m --tensor model.layers.0.mlp.up_proj --x x.npy --out y.npy\n";

struct Options {
  std::string checkpoint, tensor, m = "1,16", x, out, zeros, activation;
  std::int64_t columns = -1;  ///< of the reference: -1 a budget decides, 0 all
};

/// Everything that can be wrong before the first multiplication.
struct Job {
  Runtime runtime;
  Device device;
  Checkpoint checkpoint;
  std::vector<MatrixEntry> matrices, passed_over;  ///< the latter are not supported and were not named
  std::optional<ZeroFormat> zeros;
  std::vector<std::int64_t> m;
  DType activation = DType::kF16;
  NpyArray x;  ///< with --x
};

/// One plan with device memory for its x and out.
class Multiplier {
 public:
  Multiplier(const Job& job, const QuantizedMatrix& matrix, std::int64_t max_m)
      : device_(job.runtime.impl().open(job.device)),
        k_(matrix.k()),
        n_(matrix.n()),
        element_(size_of(job.activation)),
        plan_(job.runtime, matrix, {.max_m = std::max<std::int64_t>(max_m, 1), .activation = job.activation}),
        x_(device_, static_cast<std::size_t>(max_m * k_) * element_),
        out_(device_, static_cast<std::size_t>(max_m * n_) * element_) {}

  /// `x`: m * k elements. Returns m * n elements.
  std::vector<std::byte> run(const std::vector<std::byte>& x, std::int64_t m) {
    std::vector<std::byte> result(static_cast<std::size_t>(m * n_) * element_);
    if (m == 0) return result;
    device_->copy(x_.get(), x.data(), static_cast<std::size_t>(m * k_) * element_, CopyKind::kToDevice);
    device_->fill(out_.get(), 0xff, out_.bytes());  // a NaN in fp16, bf16 and fp32
    plan_.run({}, {x_.get()}, {out_.get()}, m);
    device_->synchronize();
    device_->copy(result.data(), out_.get(), result.size(), CopyKind::kToHost);
    return result;
  }
  std::string tactic(std::int64_t m) const { return plan_.tactic(m); }

 private:
  std::shared_ptr<DeviceBackend> device_;
  std::int64_t k_, n_;
  std::size_t element_;
  MatmulPlan plan_;
  Buffer x_, out_;
};

struct Result {
  MatrixEntry matrix;
  bool act_order = false, detected = false;
  ZeroFormat zeros = ZeroFormat::kAuto;
  double error = 0, limit = 0;
  std::int64_t columns = 0;
  double load_seconds = 0;
  std::vector<std::string> tactics;
  std::string failure;  ///< why there is no error
  bool ok() const { return failure.empty() && error <= limit; }
};

Weights weights_of(const Job& job, const std::string& name) {
  if (job.checkpoint.find(name).format == QuantFormat::kAwq) return Weights(job.checkpoint.awq(name));
  GptqTensors tensors = job.checkpoint.gptq(name);
  tensors.zeros = job.zeros.value_or(tensors.zeros);
  return Weights(tensors);
}

void verify_matrix(const Job& job, std::int64_t wanted_columns, Result& result) {
  const std::string& name = result.matrix.name;
  result.limit = autotune::tolerance(job.activation);
  const auto start = std::chrono::steady_clock::now();
  const QuantizedMatrix matrix = job.checkpoint.load(job.runtime, job.device, name, job.zeros);
  job.runtime.impl().open(job.device)->synchronize();  // a GPU may still be packing
  result.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.act_order = matrix.act_order();
  result.zeros = matrix.zeros();
  result.detected = matrix.zeros_detected();
  const Weights weights = weights_of(job, name);
  result.failure = weights.problem();
  if (!result.failure.empty()) return;
  if (!weights.scales_fit_fp16()) result.limit = autotune::tolerance_of_rounded_scales(job.activation);
  const std::int64_t k = weights.k(), n = weights.n(), most = job.m.back();
  Multiplier multiplier(job, matrix, most);
  const std::vector<std::byte> x = random_rows(job.activation, most * k);
  std::vector<std::vector<std::byte>> outs;
  std::set<std::int64_t> chosen = sample_columns(k, n, most, wanted_columns);
  for (const std::int64_t m : job.m) {
    outs.push_back(multiplier.run(x, m));
    add_suspects(job.activation, outs.back(), m, n, chosen);
    result.tactics.push_back(multiplier.tactic(m));
  }
  // Rows are the same for every m, so one reference serves all.
  std::vector<double> wide(static_cast<std::size_t>(most * k));
  for (std::size_t i = 0; i < wide.size(); ++i) {
    wide[i] = value_of(job.activation, x.data(), static_cast<std::int64_t>(i));
  }
  const std::vector<std::int64_t> columns(chosen.begin(), chosen.end());
  const std::vector<double> reference = multiply(weights, wide, most, columns);
  result.columns = static_cast<std::int64_t>(columns.size());
  for (std::size_t i = 0; i < job.m.size(); ++i) {
    result.error = std::max(result.error, relative_error(job.activation, outs[i], reference, job.m[i], n, columns));
  }
}

/// How fast matrices were loaded. The first one is left out where there are others: it opens the device too.
struct LoadSpeed {
  std::size_t matrices = 0;
  double bytes = 0, seconds = 0;
  void add(const Result& result) {
    if (result.load_seconds == 0) return;
    if (matrices++ == 1) bytes = seconds = 0;
    bytes += static_cast<double>(result.matrix.bytes), seconds += result.load_seconds;
  }
  double mb_per_s() const { return seconds > 0 ? bytes / seconds / 1e6 : 0; }
};

std::string zeros_text(const Result& result) {
  if (result.zeros == ZeroFormat::kAuto) return "-";
  return std::string(result.zeros == ZeroFormat::kV1 ? "v1" : "v2") + (result.detected ? " (detected)" : "");
}

Json to_json(const Job& job, const Result& result) {
  const MatrixEntry& matrix = result.matrix;
  Json tactics = Json::object();
  for (std::size_t i = 0; i < result.tactics.size(); ++i) tactics[std::to_string(job.m[i])] = result.tactics[i];
  Json json = {{"name", matrix.name},
               {"k", matrix.k},
               {"n", matrix.n},
               {"group_size", matrix.group_size},
               {"act_order", result.act_order},
               {"zeros", result.zeros == ZeroFormat::kV1 ? "v1" : "v2"},
               {"zeros_detected", result.detected},
               {"error", result.error},  // null: not finite
               {"tolerance", result.limit},
               {"columns", result.columns},
               {"bytes", matrix.bytes},
               {"load_ms", result.load_seconds * 1e3},
               {"tactics", tactics},
               {"ok", result.ok()}};
  if (!result.failure.empty()) json["failure"] = result.failure;
  return json;
}

int verify(const Job& job, const Options& options, bool json) {
  const double limit = autotune::tolerance(job.activation);
  std::size_t width = 4, failed = 0;
  for (const MatrixEntry& matrix : job.matrices) width = std::max(width, matrix.name.size());
  if (!json) {
    fmt::print("{:<{}}  {:>7}  {:>7}  {:>6}  {:<9}  {:<13}  {}\n", "name", width, "k", "n", "group", "act-order",
               "zeros", "error");
  }
  Json list = Json::array();
  double worst = 0;
  LoadSpeed speed;
  bool sampled = false;
  for (const MatrixEntry& matrix : job.matrices) {
    Result result;
    result.matrix = matrix;
    try {
      verify_matrix(job, options.columns, result);
    } catch (const Error& error) {
      // After a launch failed the device may be unusable: no later result would mean anything.
      if (error.code() == ErrorCode::kDevice || error.code() == ErrorCode::kInternal) throw;
      result.failure = error.what();
    }
    const bool ok = result.ok();
    if (!ok) ++failed;
    worst = std::max(worst, result.error);
    speed.add(result);
    sampled |= result.failure.empty() && result.columns < result.matrix.n;
    if (json) {
      list.push_back(to_json(job, result));
      continue;
    }
    fmt::print(
        "{:<{}}  {:>7}  {:>7}  {:>6}  {:<9}  {:<13}  {}{}\n", without_controls(matrix.name), width, matrix.k, matrix.n,
        matrix.group_size, result.act_order ? "yes" : "no", zeros_text(result),
        result.failure.empty() ? fmt::format("{:.2e}", result.error) : "failed: " + without_controls(result.failure),
        ok || !result.failure.empty() ? "" : "  OVER TOLERANCE");
    std::fflush(stdout);
  }
  VerifiedLayers layers;  // which are loaded as the checkpoint says
  if (!job.zeros)
    layers = verify_layers(job.runtime, job.device, job.checkpoint, job.matrices, job.activation, job.m.back(), !json);
  failed += layers.failed, worst = std::max(worst, layers.worst);
  const DeviceInfo info = job.runtime.info(job.device);
  if (json) {
    Json unsupported = Json::array();
    for (const auto& matrix : job.passed_over)
      unsupported.push_back({{"name", matrix.name}, {"reason", matrix.unsupported}});
    const Json all = {{"device", job.device.str()},
                      {"device_name", info.name},
                      {"activation", to_string(job.activation)},
                      {"m", job.m},
                      {"tolerance", limit},
                      {"failed", failed},
                      {"load_mb_per_s", speed.mb_per_s()},
                      {"unsupported", unsupported},
                      {"matrices", list},
                      {"layers", layers.list}};
    fmt::print("{}\n", all.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("\n{} matrices{} on {} ({}), {}, m = {}: ", job.matrices.size(),
               layers.list.empty() ? "" : fmt::format(" and {} layers of experts", layers.list.size()),
               job.device.str(), info.name, to_string(job.activation), fmt::join(job.m, ", "));
    fmt::print("{}, tolerance {:.0e}, largest error {:.2e}\n",
               failed == 0 ? "all passed" : fmt::format("{} FAILED", failed), limit, worst);
    if (speed.seconds > 0)
      fmt::print("loaded {:.1f} MB in {:.3f} s: {:.0f} MB/s{}\n", speed.bytes / 1e6, speed.seconds, speed.mb_per_s(),
                 speed.matrices > 1 ? ", without the first matrix" : "");
    for (const auto& matrix : job.passed_over)
      fmt::print("not supported, passed over: {}\n",
                 without_controls(fmt::format("{}: {}", matrix.name, matrix.unsupported)));
    if (sampled) fmt::print("The reference computed a sample of the columns; --columns 0 computes all.\n");
  }
  return failed == 0 ? kDone : kFailed;
}

/// --x and --out: one matrix, the rows of a file.
int multiply_file(const Job& job, const Options& options, bool json) {
  const std::string& name = job.matrices[0].name;
  const QuantizedMatrix matrix =
      read_input([&] { return job.checkpoint.load(job.runtime, job.device, name, job.zeros); });
  const std::int64_t m = job.x.rows();
  std::vector<std::byte> x(static_cast<std::size_t>(m * matrix.k()) * size_of(job.activation));
  for (std::int64_t i = 0; i < m * matrix.k(); ++i) {
    set_value(job.activation, x.data(), i, value_of(job.x.dtype, job.x.data.data(), i));
  }
  Multiplier multiplier(job, matrix, m);
  NpyArray out{job.activation, job.x.shape, multiplier.run(x, m)};
  out.shape.back() = matrix.n();
  write_npy(options.out, out);
  const std::string tactic = m == 0 ? "none" : multiplier.tactic(m);
  if (json) {
    const Json all = {{"tensor", name},     {"device", job.device.str()}, {"activation", to_string(job.activation)},
                      {"shape", out.shape}, {"tactic", tactic},           {"out", options.out}};
    fmt::print("{}\n", all.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{}: {} x {}: [{}, {}] @ [{}, {}] on {}, {}\nwritten: {}\n", without_controls(name), options.x,
               to_string(job.activation), m, matrix.k(), matrix.k(), matrix.n(), job.device.str(), tactic, options.out);
  }
  return 0;
}

/// The matrix of this name, else all below it ("model.layers.0"), else kNotFound with the nearest names. One that is
/// not supported counts where it is named in full or damaged, else it is passed over.
void choose(const Options& options, Job& job) {
  for (const MatrixEntry& matrix : job.checkpoint.matrices()) {
    const bool named = matrix.name == options.tensor;
    if (!options.tensor.empty() && !named && matrix.name.rfind(options.tensor + ".", 0) != 0) continue;
    (matrix.unsupported.empty() || matrix.damaged || named ? job.matrices : job.passed_over).push_back(matrix);
  }
  if (job.matrices.empty() && !job.passed_over.empty()) {
    fail(ErrorCode::kUnsupported, "{}: none of {} quantized matrices is supported; the first: {}", options.checkpoint,
         job.passed_over.size(), job.passed_over[0].unsupported);
  }
  if (job.matrices.empty() && !options.tensor.empty()) job.checkpoint.find(options.tensor);  // throws
  if (job.matrices.empty()) {
    fail(ErrorCode::kNotFound,
         "{}: no quantized matrix (no name ends in .qweight or .weight_packed); name a checkpoint that q4-info lists",
         options.checkpoint);
  }
  check(options.x.empty() || job.matrices.size() == 1,
        "--tensor = \"{}\": names {} matrices, --x multiplies by one; the first is {}", options.tensor,
        job.matrices.size(), job.matrices[0].name);
  check(options.x.empty() || job.matrices[0].unsupported.empty(), "--tensor = \"{}\": {}", options.tensor,
        job.matrices[0].unsupported);
}

Job prepare(const Tool& tool, const Options& options) {
  Job job;
  job.checkpoint = Checkpoint::open(options.checkpoint);
  choose(options, job);
  job.device = tool.device(job.runtime);
  job.m = parse_m_list(options.m);
  if (!options.zeros.empty()) job.zeros = options.zeros == "v1" ? ZeroFormat::kV1 : ZeroFormat::kV2;
  check(job.zeros != ZeroFormat::kV1 || job.checkpoint.config().format == QuantFormat::kGptq,
        "--zeros = v1: the checkpoint is AWQ, which stores zeros as they are; leave it out");
  if (!options.x.empty()) {
    std::error_code absent;
    check(!std::filesystem::equivalent(options.x, options.out, absent),
          "--out = {}: that is the file of --x; name another", options.out);
    job.x = read_npy(options.x);
    const std::int64_t k = job.matrices[0].k;
    if (job.x.cols() != k || job.x.shape.empty()) {
      fail(ErrorCode::kInvalidArgument, "--x = {}: shape ({}), the last extent must be {}, the in_features of {}",
           options.x, fmt::join(job.x.shape, ", "), k, job.matrices[0].name);
    }
    const bool narrow = job.x.dtype != DType::kF32 || traits_of(job.device).fp32_activations;
    job.activation = narrow ? job.x.dtype : DType::kF16;
  }
  if (!options.activation.empty()) job.activation = parse_activation(options.activation);
  check(job.activation != DType::kF32 || traits_of(job.device).fp32_activations,
        "--activation = fp32: {} multiplies fp16 and bf16, only the cpu fp32", job.device.str());
  return job;
}

int run(const Tool& tool, const Options& options) {
  const Job job = read_input([&] { return prepare(tool, options); });
  return options.x.empty() ? verify(job, options, tool.json) : multiply_file(job, options, tool.json);
}

}  // namespace
}  // namespace q4::tools

int main(int argc, char** argv) {
  using namespace q4::tools;
  Tool tool("q4-verify", kPurpose, kExamples);
  Options options;
  tool.app->add_option("CHECKPOINT", options.checkpoint, "a .safetensors file or the folder of a model")->required();
  auto* const tensor =
      tool.app->add_option("--tensor", options.tensor, "only the matrix of this name, or all below it (model.layers.0)")
          ->type_name("PREFIX");
  tool.add_device();
  tool.app->add_option("--m", options.m, "numbers of rows: 8, 1,16, or 1-64 for the powers of two")
      ->type_name("M")
      ->capture_default_str();
  auto* const x = tool.app->add_option("--x", options.x, "multiply the rows of this file")->type_name("X.npy");
  auto* const out = tool.app->add_option("--out", options.out, "and write the result here")->type_name("Y.npy");
  x->needs(out)->needs(tensor);
  out->needs(x);
  tool.app->add_option("--zeros", options.zeros, "read stored zeros as v1 (+1) or v2, whatever the checkpoint says")
      ->check(CLI::IsMember({"v1", "v2"}));
  tool.app
      ->add_option("--activation", options.activation,
                   "fp16, bf16, or fp32 on the cpu (default: fp16, or the type of --x)")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}));
  tool.app->add_option("--columns", options.columns, "columns that the reference computes; 0: all")
      ->check(CLI::Validator(
          [](std::string& text) {
            return parse_whole(text, "--columns") < 0 ? "it is negative; 0: all" : std::string();
          },
          ""))
      ->type_name("N");
  tool.add_json("print the results as JSON");
  return tool.run(argc, argv, [&] { return run(tool, options); });
}
