// q4-cache: builds, packs, checks and bounds compiled kernels, on a machine with or without a GPU.
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <q4/q4.hpp>

#include "runtime/cache/kernel_cache.hpp"
#include "runtime/check.hpp"
#include "runtime/jit/embedded.hpp"
#include "tools/common.hpp"
#include "tools/cross.hpp"
#include "tools/shapes.hpp"

namespace {

using namespace q4;
using namespace q4::tools;
using cache::Entry;

constexpr const char* kExamples =
    "  q4-cache build --target sm_90a,sm_80 --model llama-3-8b --max-m 512   needs NVRTC and no GPU\n"
    "  q4-cache build --target gfx90a,gfx1100 --max-m 512                    needs hipRTC or clang and no GPU\n"
    "  q4-cache pack --out llama.q4pack                                      what a deployment ships\n"
    "  q4-cache verify llama.q4pack                                          0 sound, 1 not, 2 cannot be read\n"
    "  q4-cache ls                                                           each kernel of the folder\n"
    "  q4-cache prune --max-bytes 500MB                                      the least recently used go\n"
    "\n"
    "The folder is --cache-dir, else $Q4_CACHE_DIR, else $XDG_CACHE_HOME/q4, else $HOME/.cache/q4. A program uses a\n"
    "pack through RuntimeOptions::packs or Q4_CACHE_PATH=FOLDER[:FOLDER].\n";
constexpr int kCannotRead = 2;

struct Options {
  std::string folder, target, out, file, tuning;
  ShapeOptions shapes;
  CrossOptions cross;
  std::uint64_t max_bytes = 0;
};

std::string kilobytes(std::size_t bytes) {
  return bytes == 0 ? "0 kB" : fmt::format("{} kB", number(static_cast<double>(bytes) / 1e3));
}

/// The folder's kernels, sound or with what is wrong, in order of their files.
struct Listed {
  std::string path, problem;
  std::uint64_t bytes = 0;
  Entry entry;
};
std::vector<Listed> read_folder(const std::string& folder) {
  if (!std::filesystem::is_directory(folder))
    fail(ErrorCode::kNotFound, "{} is no folder; fill it with q4-cache build, or name another with --cache-dir",
         folder);
  std::vector<Listed> all;
  for (const auto& file : cache::stored_files(folder)) {
    Listed listed{file.path, "", file.bytes, {}};
    if (auto entry = cache::read_entry(file.path, listed.problem))
      listed.entry = std::move(*entry);
    else if (listed.problem.empty())
      continue;  // evicted meanwhile
    all.push_back(std::move(listed));
  }
  std::sort(all.begin(), all.end(), [](const Listed& a, const Listed& b) { return a.path < b.path; });
  return all;
}

bool stale(const Entry& entry) { return entry.headers != jit::headers_digest(); }

/// With and without bias, as the checkpoint's matrices are; else what --bias says.
std::vector<bool> biases(const Options& options) {
  if (options.shapes.checkpoint.empty()) return {options.cross.bias};
  const Checkpoint checkpoint = Checkpoint::open(options.shapes.checkpoint);
  bool with = false, without = false;
  for (const MatrixEntry& entry : checkpoint.matrices()) (entry.has_bias ? with : without) = true;
  std::vector<bool> all;
  if (without) all.push_back(false);
  if (with) all.push_back(true);
  return all;
}

int build(const Tool& tool, const Options& given) {
  Options options = given;
  TuningDb tuning;
  if (!options.tuning.empty()) tuning.load(options.tuning), options.cross.tuning = &tuning;
  const auto targets = parse_targets(options.target);
  const auto shapes = options.shapes.resolve("llama-3-8b");
  const auto bias_variants = biases(options);
  check(options.cross.activation != DType::kF32, "--activation = fp32 is for the CPU, which compiles nothing");
  if (options.folder.empty()) fail(ErrorCode::kIo, "--cache-dir: there is no cache folder; name one");
  if (const auto problem = cache::prepare_folder(options.folder); !problem.empty())
    fail(ErrorCode::kIo, "--cache-dir: {}", problem);
  std::string trouble;
  cache::KernelCache kernels({.folder = options.folder}, [&](LogLevel level, const std::string& text) {
    if (level <= LogLevel::kWarning) fmt::print(stderr, "q4-cache: warning: {}\n", text), trouble = text;
  });
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  Table table({"target", "GPU", "SMs", "kernels", "compiled", "tuned shapes"});
  Json rows = Json::array();
  {
    Progress progress(tool.json);
    double done = 0;
    for (const Target& target : targets) {
      CrossCompiler compiler(target, kernels);
      for (const auto& shape : shapes) {
        progress.update(done++ / static_cast<double>(targets.size() * shapes.size()),
                        fmt::format("{} {}: {}x{}", target.arch, target.name, shape.k, shape.n));
        for (const bool bias : bias_variants) options.cross.bias = bias, compiler.add(shape, options.cross);
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
  }
  if (tool.json)
    fmt::print("{}\n", Json{{"cache_dir", options.folder}, {"seconds", seconds()}, {"targets", rows}}.dump(2));
  else
    fmt::print("{}\n{:.1f} s, in {}\n", table.str(), seconds(), options.folder);
  return trouble.empty() ? 0 : 1;
}

int pack(const Tool& tool, const Options& options) {
  std::vector<std::string> wanted;
  if (!options.target.empty())
    for (const Target& target : parse_targets(options.target)) wanted.push_back(target.arch);
  std::vector<Entry> entries;
  std::size_t old = 0, unsound = 0;
  for (auto& listed : read_folder(options.folder)) {
    if (!listed.problem.empty()) {
      fmt::print(stderr, "q4-cache: warning: {}: {}: left out\n", listed.path, listed.problem);
      ++unsound;
    } else if (stale(listed.entry)) {
      ++old;
    } else if (wanted.empty() || std::find(wanted.begin(), wanted.end(), listed.entry.target) != wanted.end()) {
      entries.push_back(std::move(listed.entry));
    }
  }
  if (entries.empty())
    fail(ErrorCode::kNotFound, "{} holds no kernel of this version{}: run q4-cache build first", options.folder,
         wanted.empty() ? "" : " for " + options.target);
  if (const auto problem = cache::write_pack(options.out, std::move(entries)); !problem.empty())
    fail(ErrorCode::kIo, "--out: {}", problem);
  std::string problem;
  const auto written = cache::Pack::open(options.out, problem);
  if (!written) fail(ErrorCode::kCorrupt, "--out = {}: {}", options.out, problem);
  const auto bytes = std::filesystem::file_size(options.out);
  if (tool.json)
    fmt::print("{}\n", Json{{"out", options.out},
                            {"bytes", bytes},
                            {"stale_left_out", old},
                            {"unsound_left_out", unsound},
                            {"manifest", Json::parse(written->manifest())}}
                           .dump(2));
  else
    fmt::print("{}: kernels: {}, {}; left out: {} of other kernel sources, {} unsound\n", options.out, written->size(),
               megabytes(bytes), old, unsound);
  return unsound ? 1 : 0;
}

int report(const Tool& tool, const std::string& what, std::size_t kernels, const std::vector<std::string>& problems) {
  if (tool.json) {
    fmt::print("{}\n",
               Json{{"file", what}, {"kernels", kernels}, {"sound", problems.empty()}, {"problems", problems}}.dump(2));
  } else {
    for (const auto& problem : problems) fmt::print("{}: {}\n", what, problem);
    fmt::print("{}: {} kernels, {}\n", what, kernels,
               problems.empty() ? "all sound" : fmt::format("{} problems", problems.size()));
  }
  return problems.empty() ? 0 : 1;
}

int verify(const Tool& tool, const Options& options) {
  const std::string what = options.file.empty() ? options.folder : options.file;
  if (std::filesystem::is_directory(what)) {
    std::vector<std::string> problems;
    const auto all = read_folder(what);
    for (const auto& listed : all)
      if (!listed.problem.empty())
        problems.push_back(std::filesystem::path(listed.path).filename().string() + ": " + listed.problem);
    return report(tool, what, all.size(), problems);
  }
  std::FILE* readable = std::fopen(what.c_str(), "rb");
  if (!readable) {
    fmt::print(stderr, "q4-cache: error: {} cannot be read: {}\n", what, std::generic_category().message(errno));
    return kCannotRead;
  }
  std::fclose(readable);
  std::string problem;
  const auto pack = cache::Pack::open(what, problem);
  return report(tool, what, pack ? pack->size() : 0, pack ? pack->verify() : std::vector{problem});
}

int list(const Tool& tool, const Options& options) {
  Table table({"key", "target", "size", "made by", "kernel"});
  Json rows = Json::array();
  for (const auto& l : read_folder(options.folder)) {
    const std::string state = !l.problem.empty() ? l.problem : l.entry.name + (stale(l.entry) ? " (stale)" : "");
    table.add({std::filesystem::path(l.path).filename().string().substr(0, 12), l.entry.target, kilobytes(l.bytes),
               l.entry.compiler, state});
    rows.push_back({{"path", l.path},
                    {"problem", l.problem},
                    {"bytes", l.bytes},
                    {"target", l.entry.target},
                    {"kernel", l.entry.name},
                    {"compiler", l.entry.compiler},
                    {"created", l.entry.created},
                    {"stale", l.problem.empty() && stale(l.entry)}});
  }
  fmt::print("{}", tool.json ? rows.dump(2) + "\n" : table.str());
  return 0;
}

int stat(const Tool& tool, const Options& options) {
  struct Sum {
    std::size_t kernels = 0, stale = 0;
    std::uint64_t bytes = 0;
  };
  std::map<std::string, Sum> sums;
  for (const auto& l : read_folder(options.folder)) {
    Sum& sum = sums[l.problem.empty() ? l.entry.target : "unsound"];
    ++sum.kernels, sum.bytes += l.bytes, sum.stale += l.problem.empty() && stale(l.entry);
  }
  Table table({"target", "kernels", "stale", "size"});
  Json rows = Json::array();
  for (const auto& [target, sum] : sums) {
    table.add({target, std::to_string(sum.kernels), std::to_string(sum.stale), megabytes(sum.bytes)});
    rows.push_back({{"target", target}, {"kernels", sum.kernels}, {"stale", sum.stale}, {"bytes", sum.bytes}});
  }
  if (tool.json)
    fmt::print("{}\n", Json{{"cache_dir", options.folder}, {"targets", rows}}.dump(2));
  else
    fmt::print("{}\n{}", options.folder, table.str());
  return 0;
}

int prune(const Tool& tool, const Options& options) {
  const auto gone = cache::prune(options.folder, options.max_bytes);
  if (tool.json)
    fmt::print("{}\n", Json{{"files", gone.files}, {"bytes", gone.bytes}, {"left", gone.left}}.dump(2));
  else
    fmt::print("{}: kernels removed: {} ({}), left: {}\n", options.folder, gone.files, kilobytes(gone.bytes),
               kilobytes(gone.left));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Tool tool("q4-cache", "Builds, packs and checks the compiled kernels that q4 loads.", kExamples);
  Options options;
  std::function<int(const Tool&, const Options&)> command;
  const auto add = [&](const char* name, const char* purpose, int (*body)(const Tool&, const Options&)) {
    CLI::App* app = tool.app.add_subcommand(name, purpose);
    app->add_flag("--json", tool.json, "print JSON");
    app->add_option("--cache-dir", options.folder, "the folder (default: the user's)")->type_name("DIR");
    app->preparse_callback([&, body](std::size_t) { command = body; });
    return app;
  };
  auto* app = add("build", "compiles what plans of these shapes load, for GPUs that need not be here", build);
  app->add_option("--target", options.target, "sm_90a,sm_80: their usual GPUs; sm_90a/114: that number of SMs")
      ->type_name("T[,T]")
      ->required();
  options.shapes.add_to(*app, "llama-3-8b");
  app->add_option("--max-m", options.cross.max_m, "largest m that the plans accept")
      ->type_name("M")
      ->check(CLI::Range(1, 1 << 20))
      ->default_val(512);
  app->add_option_function<std::string>(
         "--activation", [&](const std::string& text) { options.cross.activation = parse_activation(text); },
         "fp16 (default) or bf16")
      ->type_name("T");
  app->add_flag("--bias", options.cross.bias, "matrices with a bias (a checkpoint says it itself)");
  app->add_option("--tuning", options.tuning, "also what this tuning file chose")->type_name("FILE");
  app = add("pack", "writes the folder's kernels of this version to one file", pack);
  app->add_option("--out", options.out, "the file to write")->type_name("FILE.q4pack")->required();
  app->add_option("--target", options.target, "only these (default: all)")->type_name("T[,T]");
  app = add("verify", "reads everything: 0 all sound, 1 something is not, 2 cannot be read", verify);
  app->add_option("file", options.file, "a pack or a folder (default: the user's folder)")->type_name("FILE");
  add("ls", "lists the kernels of the folder", list);
  add("stat", "counts them by target", stat);
  app = add("prune", "removes the least recently used kernels", prune);
  app->add_option("--max-bytes", options.max_bytes, "what may stay: 0, 1000000, 500MB, 2GB")
      ->type_name("N")
      ->transform(CLI::AsSizeValue(true))
      ->required();
  tool.app.require_subcommand(1);
  return tool.run(argc, argv, [&] {
    options.folder = cache::default_folder(options.folder);
    try {
      return command(tool, options);
    } catch (const Error& error) {
      const bool reading = error.code() == ErrorCode::kNotFound || error.code() == ErrorCode::kInvalidArgument;
      if (!reading) throw;
      fmt::print(stderr, "q4-cache: error: {}\n", error.what());
      return kCannotRead;
    }
  });
}
