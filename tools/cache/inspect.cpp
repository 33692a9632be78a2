// q4-cache verify, ls, stat and prune: what is in a folder or a pack.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <q4/tuning.hpp>

#include "runtime/base/check.hpp"
#include "tools/cache/cache_tool.hpp"

namespace q4::tools {
namespace {

int report(const Tool& tool, const std::string& what, std::size_t kernels, const std::string& signer,
           const std::vector<std::string>& problems) {
  if (tool.json) {
    fmt::print("{}\n", Json{{"file", what},
                            {"kernels", kernels},
                            {"signed_by", signer},
                            {"sound", problems.empty()},
                            {"problems", problems}}
                           .dump(2));
  } else {
    for (const auto& problem : problems) fmt::print("{}: {}\n", what, problem);
    fmt::print("{}: {} kernels, {}{}\n", what, kernels,
               signer.empty() ? "" : "signed by " + signer.substr(0, 16) + ", ",
               problems.empty() ? "all sound" : fmt::format("{} problems", problems.size()));
  }
  return problems.empty() ? 0 : 1;
}

/// What is wrong with a pack: everything in it is read.
std::vector<std::string> problems_of(const std::string& path, const std::string& key, std::size_t& kernels,
                                     std::string& signer) {
  const auto opened = cache::Pack::open(path, key);
  if (!opened) return {opened.reason()};
  const auto& pack = *opened;
  kernels += pack->size(), signer = pack->signer();
  auto problems = pack->verify();
  try {
    TuningDb().parse(pack->tuning(), "tuning records");
  } catch (const Error& error) { problems.push_back(error.what()); }
  return problems;
}

}  // namespace

int verify(const Tool& tool, const CacheToolOptions& options) {
  const std::string what = options.file.empty() ? options.folder : options.file, key = public_key(options);
  std::size_t kernels = 0;
  std::string signer;
  if (!std::filesystem::is_directory(what)) {
    const int readable = ::open(what.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (readable < 0) fail(ErrorCode::kNotFound, "{} cannot be read: {}", what, std::strerror(errno));
    ::close(readable);
    const auto problems = problems_of(what, key, kernels, signer);
    return report(tool, what, kernels, signer, problems);
  }
  std::vector<std::string> problems;
  const auto all = read_folder(what);
  for (const auto& listed : all)
    if (!listed.problem.empty())
      problems.push_back(std::filesystem::path(listed.path).filename().string() + ": " + listed.problem);
  kernels = all.size();
  for (const auto& file : std::filesystem::directory_iterator(what))
    if (file.path().extension() == cache::kPackExtension)
      for (const auto& problem : problems_of(file.path(), key, kernels, signer))
        problems.push_back(file.path().filename().string() + ": " + problem);
  return report(tool, what, kernels, "", problems);
}

int list(const Tool& tool, const CacheToolOptions& options) {
  Table table({"key", "target", "size", "made by", "kernel"});
  Json rows = Json::array();
  for (const auto& l : read_folder(options.folder)) {
    const std::string state = !l.problem.empty() ? l.problem : l.entry.key.name + (stale(l.entry) ? " (stale)" : "");
    table.add({std::filesystem::path(l.path).filename().string().substr(0, 12), l.entry.key.target, kilobytes(l.bytes),
               l.entry.compiler, state});
    rows.push_back({{"path", l.path},
                    {"problem", l.problem},
                    {"bytes", l.bytes},
                    {"key", l.entry.digest},
                    {"target", l.entry.key.target},
                    {"kernel", l.entry.key.name},
                    {"options", l.entry.key.options},
                    {"compiler", l.entry.compiler},
                    {"created", l.entry.created},
                    {"stale", l.problem.empty() && stale(l.entry)}});
  }
  fmt::print("{}", tool.json ? rows.dump(2) + "\n" : table.str());
  return 0;
}

int stat(const Tool& tool, const CacheToolOptions& options) {
  struct Sum {
    std::size_t kernels = 0, stale = 0;
    std::uint64_t bytes = 0;
  };
  std::map<std::string, Sum> sums;
  for (const auto& l : read_folder(options.folder)) {
    Sum& sum = sums[l.problem.empty() ? l.entry.key.target : "unsound"];
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

int prune_folder(const Tool& tool, const CacheToolOptions& options) {
  const auto gone = cache::prune(options.folder, options.max_bytes);
  if (tool.json)
    fmt::print("{}\n", Json{{"files", gone.files}, {"bytes", gone.bytes}, {"left", gone.left}}.dump(2));
  else
    fmt::print("{}: kernels removed: {} ({}), left: {}\n", options.folder, gone.files, kilobytes(gone.bytes),
               kilobytes(gone.left));
  return 0;
}

}  // namespace q4::tools
