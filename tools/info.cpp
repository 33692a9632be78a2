// q4-info: what there is to compute on, what is missing and why, and which files are in use.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <q4/q4.hpp>
#include <set>

#include "runtime/base/check.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_format.hpp"
#include "runtime/tuning_key.hpp"
#include "tools/common/checkpoint_summary.hpp"
#include "tools/common/common.hpp"
#include "tools/common/model_config.hpp"
#include "tools/common/tool.hpp"

namespace {

using namespace q4;
using namespace q4::tools;

constexpr const char* kExamples =
    "  q4-info                     what is here, what is missing and the remedy\n"
    "  q4-info models/llama-3-8b-gptq   format, groups, shapes, and what would not load and why\n"
    "  q4-info model --json > here.json; q4-info model --same-as here.json   on another machine: the same numbers?\n"
    "  q4-info --config models/llama-3-8b/config.json --tp 2   what a rank multiplies by\n"
    "  q4-info --json | jq .devices[0].arch\n"
    "  Q4_LOG=debug q4-info        with the library's own messages\n";

/// What one source of tuning records holds for the devices here.
struct Examined {
  TuningSource source;
  std::size_t records = 0, exact = 0, nearest = 0, stale = 0;
  std::vector<std::string> unknown = {};  ///< tactics of records in use that this version does not know, and why
};

Examined examine(TuningSource source, const Runtime& runtime, const std::vector<DeviceInfo>& devices) {
  Examined found{std::move(source)};
  if (!found.source.records) return found;
  for (const TuningRecord& record : found.source.records->records()) {
    ++found.records;
    for (const DeviceInfo& info : devices) {
      const bool exact = record.key.fingerprint == info.fingerprint;
      if (!exact && record.key.arch != info.arch) continue;
      const auto device = runtime.impl().open(info.device);
      const bool stale = !measured_with(record, tuning_digest(device->kernels_digest()));
      if (!stale)
        for (const auto& reason : device->unknown_tactics(record))
          found.unknown.push_back(
              fmt::format("k = {} n = {} group {}: {}", record.key.k, record.key.n, record.key.group, reason));
      ++(stale ? found.stale : exact ? found.exact : found.nearest);
      break;
    }
  }
  return found;
}

/// Bytes of the compiled kernels in a folder; unreadable ones count as nothing.
std::uintmax_t kernel_bytes(const std::string& folder, std::size_t& files) {
  std::uintmax_t bytes = 0;
  std::error_code error;
  for (auto it = std::filesystem::recursive_directory_iterator(folder, error);
       !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored) || it->path().extension() != ".q4k") continue;
    ++files;
    bytes += it->file_size(ignored);
  }
  return bytes;
}

Json as_json(const DeviceInfo& d) {
  return {{"device", d.device.str()},
          {"name", d.name},
          {"arch", d.arch},
          {"units", d.compute_units},
          {"memory_bytes", d.memory_bytes},
          {"l2_bytes", d.l2_bytes},
          {"shared_bytes", d.shared_bytes},
          {"warp_size", d.warp_size},
          {"driver", d.driver},
          {"fingerprint", d.fingerprint}};
}

void print_json(const Runtime& runtime, const std::vector<DeviceInfo>& devices, const std::vector<Examined>& files) {
  Json out{{"version", Q4_VERSION}, {"backends", Json::array()}, {"devices", Json::array()}};
  for (const BackendStatus& b : runtime.backends()) {
    Json components = Json::object();
    for (const auto& [name, value] : b.components) components[name] = value;
    out["backends"].push_back(
        {{"backend", to_string(b.kind)}, {"available", b.available}, {"reason", b.reason}, {"components", components}});
  }
  for (const DeviceInfo& d : devices) out["devices"].push_back(as_json(d));
  out["best_device"] = devices.empty() ? "" : devices.front().device.str();
  out["cache_dir"] = runtime.cache_dir();
  out["tuning_files"] = Json::array();
  for (const Examined& f : files)
    out["tuning_files"].push_back({{"path", f.source.path},
                                   {"pack", f.source.pack},
                                   {"problem", f.source.problem},
                                   {"records", f.records},
                                   {"exact", f.exact},
                                   {"nearest", f.nearest},
                                   {"stale", f.stale},
                                   {"unknown_tactics", f.unknown}});
  fmt::print("{}\n", out.dump(2));
}

void print_backends(const Runtime& runtime) {
  fmt::print("Backends\n");
  for (const BackendStatus& b : runtime.backends()) {
    fmt::print("  {:<5} {}\n", to_string(b.kind), b.available ? "ready" : "not available: " + b.reason);
    for (const auto& [name, value] : b.components)
      fmt::print("          {:<16} {}\n", name, value == b.reason ? "missing" : value);
  }
}

void print_files(const Runtime& runtime, const std::vector<Examined>& files) {
  const std::string folder = runtime.cache_dir();
  if (folder.empty()) {
    fmt::print("\nKernel cache   in memory only: set Q4_CACHE_DIR or HOME\n");
  } else {
    std::size_t count = 0;
    const auto bytes = kernel_bytes(folder, count);
    fmt::print("\nKernel cache   {} (kernels: {}, {})\n", folder, count, bytes == 0 ? "0 MB" : megabytes(bytes));
  }
  if (files.empty())
    fmt::print("Tuning files   none: defaults are used; q4-autotune {}\n",
               folder.empty() ? "--out FILE writes one" : "writes " + default_tuning_file(runtime));
  for (const Examined& f : files) {
    const char* const what = f.source.pack ? "Tuning pack " : "Tuning file ";
    if (!f.source.problem.empty())
      fmt::print("{}   {}: {}: {}\n", what, f.source.path, f.source.named ? "every plan fails" : "not used",
                 f.source.problem);
    else
      fmt::print(
          "{}   {}: records: {}, {} for a device here, {} for a similar one (same arch), {} stale (other kernels)\n",
          what, f.source.path, f.records, f.exact, f.nearest, f.stale);
    for (const auto& reason : f.unknown) fmt::print("               not used, the default is: {}\n", reason);
  }
}

/// A damaged tuning file is an input that cannot be read.
int status_of(const std::vector<Examined>& files) {
  int status = kDone;
  for (const Examined& f : files) {
    if (f.source.problem.empty()) continue;
    fmt::print(stderr, "q4-info: error: {}\n", f.source.problem);
    status = kUsage;
  }
  return status;
}

int info(const Tool& tool) {
  const Runtime runtime;
  const auto devices = runtime.devices();
  std::vector<Examined> files;
  for (TuningSource& source : runtime.tuning_sources()) files.push_back(examine(std::move(source), runtime, devices));
  if (tool.json) {
    print_json(runtime, devices, files);
    return status_of(files);
  }
  fmt::print("q4 {}\n\n", Q4_VERSION);
  print_backends(runtime);
  Table table({"device", "name", "arch", "units", "memory", "last cache", "driver"});
  for (const DeviceInfo& d : devices)
    table.add({d.device.str(), d.name, d.arch, std::to_string(d.compute_units), megabytes(d.memory_bytes),
               megabytes(d.l2_bytes), d.driver.empty() ? "-" : d.driver});
  fmt::print("\nDevices (best first)\n{}", table.str());
  print_files(runtime, files);
  return status_of(files);
}

/// What ranks compare: numerics ids of the model's plans in fp16 for up to kRows rows, by device. A device that cannot be
/// opened has none.
constexpr std::int64_t kRows = 64;
Json numerics_of(const std::string& path) {
  const Runtime runtime;
  const Checkpoint checkpoint = Checkpoint::open(path);
  PlanOptions options;
  options.max_m = kRows;
  Json ids = Json::object();
  for (const DeviceInfo& info : runtime.devices()) {
    try {
      ids[info.device.str()] = runtime.numerics_id(info.device, checkpoint, options);
    } catch (const Error&) {}
  }
  return ids;
}

/// The distinct ids of the devices that a machine computes on: its GPUs, or the CPU where there is none.
std::set<std::string> ids_that_count(const Json& ids) {
  std::set<std::string> of_gpus, all;
  for (const auto& [device, id] : ids.items()) {
    all.insert(id.get<std::string>());
    if (!device.starts_with("cpu")) of_gpus.insert(id.get<std::string>());
  }
  return of_gpus.empty() ? all : of_gpus;
}

/// Whether the devices here compute with the same bits as those of the machine that wrote `path` (q4-info CHECKPOINT --json).
int compare_numerics(const Json& here, const std::string& path) {
  const Json there = read_input([&] {
    std::ifstream file(path);
    const Json read = Json::parse(file, nullptr, false);
    const auto ids = read.is_object() ? read.find("numerics_ids") : read.end();
    const bool fits = ids != read.end() && ids->is_object() && !ids->empty() &&
                      std::all_of(ids->begin(), ids->end(), [](const Json& id) { return id.is_string(); });
    check(fits, "--same-as {}: no numerics ids in it; write it with q4-info CHECKPOINT --json", path);
    return *ids;
  });
  const auto ours = ids_that_count(here), theirs = ids_that_count(there);
  if (ours.size() == 1 && ours == theirs) return kDone;
  fmt::print(stderr, "q4-info: the numerics ids here are {}, those of {} are {}: results have other bits\n",
             fmt::join(ours, ", "), path, fmt::join(theirs, ", "));
  return kFailed;
}

int print_summary(const Tool& tool, const std::string& checkpoint, const std::string& same_as) {
  Json summary = read_input([&] { return summarize_checkpoint(checkpoint); });
  summary["numerics_ids"] = numerics_of(checkpoint);
  const int status = same_as.empty() ? kDone : compare_numerics(summary["numerics_ids"], same_as);
  if (tool.json) {
    fmt::print("{}\n", summary.dump(2, ' ', false, Json::error_handler_t::replace));
    return status;
  }
  fmt::print("{}", summary_text(summary));
  for (const auto& [device, id] : summary["numerics_ids"].items())
    fmt::print("  numerics id on {} (fp16, up to {} rows): {}\n", device, kRows, id.get<std::string>());
  return status;
}

/// The linear layers of a config.json, as a rank has them.
int print_matmuls(const Tool& tool, const std::string& path, const ModelShapeOptions& options) {
  const ModelShapes shapes = read_input([&] { return model_shapes(read_config_file(path), path, options); });
  Table table({"layer", "k", "n", "bias", "matrices"});
  Json list = Json::array();
  for (const ModelMatmul& m : shapes.matmuls) {
    table.add({m.label, std::to_string(m.k), std::to_string(m.n), m.bias ? "yes" : "no", std::to_string(m.count)});
    list.push_back(
        {{"layer", m.label}, {"k", m.k}, {"n", m.n}, {"bias", m.bias}, {"expert", m.expert}, {"count", m.count}});
  }
  const Json group = shapes.group_size ? Json(*shapes.group_size) : Json();
  const Json act_order = shapes.act_order ? Json(*shapes.act_order) : Json();
  const Json all = {{"model_type", shapes.type}, {"group_size", group}, {"act_order", act_order}, {"matmuls", list}};
  if (tool.json)
    fmt::print("{}\n", all.dump(2));
  else
    fmt::print("model_type {}, group size {}, act-order {}\n{}", shapes.type,
               group.is_null() ? "not said" : group.dump(), act_order.is_null() ? "not said" : act_order.dump(),
               table.str());
  return kDone;
}

}  // namespace

int main(int argc, char** argv) {
  Tool tool("q4-info", "Lists the devices that q4 can use, what is missing for the others, and the files in use.",
            kExamples);
  std::string checkpoint;
  tool.app->add_option("CHECKPOINT", checkpoint,
                       "a model's folder or .safetensors file, which is described instead of the devices");
  std::string same_as;
  tool.app
      ->add_option("--same-as", same_as,
                   "with CHECKPOINT: exit status 1 unless this machine computes the same bits as the one that wrote "
                   "FILE with --json")
      ->type_name("FILE");
  std::string config;
  ModelShapeOptions options;
  bool separate = false;
  auto* const of_config =
      tool.app->add_option("--config", config, "lists the linear layers of a Hugging Face config.json");
  of_config->type_name("FILE");
  tool.app->add_option("--tp", options.tensor_parallel, "with --config: the layers as one of N ranks has them")
      ->needs(of_config)
      ->check(CLI::Range(1, 64))
      ->type_name("N");
  tool.app->add_flag("--separate", separate, "with --config: q, k, v, gate and up as separate matrices")
      ->needs(of_config);
  tool.add_json("print one JSON object");
  return tool.run(argc, argv, [&] {
    check(config.empty() || checkpoint.empty(), "CHECKPOINT and --config exclude each other");
    check(same_as.empty() || !checkpoint.empty(), "--same-as needs a CHECKPOINT");
    options.fused = !separate;
    if (!config.empty()) return print_matmuls(tool, config, options);
    return checkpoint.empty() ? info(tool) : print_summary(tool, checkpoint, same_as);
  });
}
