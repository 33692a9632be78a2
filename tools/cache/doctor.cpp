// q4-cache doctor: whether the cache folder, its file system and every layer are as they should be.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/base/file_system.hpp"
#include "runtime/cache/signature.hpp"
#include "runtime/cache/trust.hpp"
#include "tools/cache/cache_tool.hpp"

namespace q4::tools {
namespace {

namespace fs = std::filesystem;

enum class State { kOk, kNote, kBad };

class Findings {
 public:
  void add(State state, const std::string& what, const std::string& text) {
    constexpr const char* kNames[] = {"ok", "note", "BAD"};
    table_.add({kNames[static_cast<int>(state)], what, text});
    rows_.push_back({{"state", kNames[static_cast<int>(state)]}, {"check", what}, {"text", text}});
    bad_ += state == State::kBad;
  }
  int print(const Tool& tool, const std::string& folder) const {
    if (tool.json)
      fmt::print("{}\n", Json{{"cache_dir", folder}, {"bad", bad_}, {"checks", rows_}}.dump(2));
    else
      fmt::print("{}\n{}{}\n", folder, table_.str(), bad_ ? fmt::format("{} are bad", bad_) : "all is well");
    return bad_ ? 1 : 0;
  }

 private:
  Table table_{{"state", "check", "what was found"}};
  Json rows_ = Json::array();
  int bad_ = 0;
};

/// Whether a folder that is not there could be made: it is, and what was made for that is removed again.
std::string try_to_make(const std::string& folder) {
  std::vector<fs::path> missing;
  std::error_code error;
  for (fs::path path = folder; !path.empty() && !fs::exists(path, error); path = path.parent_path()) {
    if (error) break;
    if (path.has_filename()) missing.push_back(path);
  }
  const std::string problem = cache::prepare_folder(folder);
  for (const fs::path& path : missing) ::rmdir(path.c_str());  // not where another process has put something meanwhile
  return problem;
}

/// A folder of the environment that depends on where a program is started is another one for each program.
void check_path(Findings& findings, const std::string& folder) {
  const bool moves = fs::path(folder).is_relative() && folder == cache::default_folder("");
  if (moves)
    findings.add(State::kBad, "path",
                 fmt::format("{} is relative: each working directory has a cache of its own; set Q4_CACHE_DIR, "
                             "XDG_CACHE_HOME or HOME to an absolute path",
                             folder));
}

void check_file_system(Findings& findings, long magic) {
  const FileSystem system = file_system(magic);
  findings.add(system.shared ? State::kNote : State::kOk, "file system",
               fmt::format("{}{}", system.name,
                           system.shared ? ", which other machines may share: locks may hold on this machine only, so "
                                           "that several compile the same kernel; a folder on a local disk, or a pack, "
                                           "avoids that"
                                         : ""));
}

void check_folder(Findings& findings, const std::string& folder) {
  check_path(findings, folder);
  const bool writes = cache::cache_options({}).mode == CacheMode::kReadWrite;
  const State unwritable = writes ? State::kBad : State::kNote;  // in other modes nothing is written
  struct stat status;
  if (::lstat(folder.c_str(), &status) != 0) {
    const int error = errno;
    const std::string problem = error == ENOENT ? try_to_make(folder) : std::strerror(error);
    return problem.empty() ? findings.add(State::kNote, "folder", "not there yet: made at the first write")
                           : findings.add(unwritable, "folder",
                                          fmt::format("not there, and cannot be made: {}: kernels are kept in memory "
                                                      "only; set Q4_CACHE_DIR to a folder that you may write",
                                                      problem));
  }
  if (S_ISLNK(status.st_mode) || !S_ISDIR(status.st_mode))
    return findings.add(State::kBad, "folder",
                        "not a folder (symbolic links are refused): set Q4_CACHE_DIR to a folder of its own");
  findings.add(State::kOk, "folder", "there");
  const cache::Trust trust = cache::trust_of_environment();
  const bool writes_here = status.st_uid == ::geteuid() || trust == cache::Trust::kGroup;
  findings.add(writes_here ? State::kOk : State::kBad, "owner",
               status.st_uid == ::geteuid() ? "you"
                                            : fmt::format("user {}, not you{}", status.st_uid,
                                                          writes_here ? "; group trusted" : ": nothing is written"));
  const std::string open = cache::untrusted(status, trust);
  findings.add(open.empty() ? State::kOk : State::kBad, "mode",
               fmt::format("{:o}{}{}", status.st_mode & 07777, open.empty() ? "" : ": ", open));
  const auto written = cache::write_file(folder, ".doctor", "x");
  ::unlink((folder + "/.doctor").c_str());
  findings.add(written.empty() ? State::kOk : unwritable, "writing", written.empty() ? "works" : written);
  const cache::KeyLock lock(folder, std::string(64, 'f'), 0);
  findings.add(lock.held() ? State::kOk : State::kNote, "locks",
               lock.held() ? "work" : "do not work here: processes may compile the same kernel twice");
  struct statfs system;
  if (::statfs(folder.c_str(), &system) == 0) check_file_system(findings, static_cast<long>(system.f_type));
  struct statvfs space;
  if (::statvfs(folder.c_str(), &space) == 0) {
    const auto free = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
    const bool tight = free < (64u << 20);
    findings.add(tight ? State::kBad : State::kOk, "free space", megabytes(free) + (tight ? ": less than 64 MB" : ""));
  }
}

void check_files(Findings& findings, const std::string& folder) {
  std::error_code error;
  std::size_t temporary = 0, foreign = 0;
  std::string one;
  for (const auto& file : fs::directory_iterator(folder, error)) {
    const std::string name = file.path().filename().string();
    if (name.starts_with(cache::kTemporary)) {
      ++temporary;
    } else if (!name.ends_with(cache::kExtension) && !name.ends_with(cache::kPackExtension) && name != ".lock" &&
               !name.ends_with(".jsonl")) {
      ++foreign, one = name;
    }
  }
  if (error) return;
  findings.add(temporary ? State::kNote : State::kOk, "temporary files",
               temporary
                   ? fmt::format("{} of writers that run or were killed: gone an hour later, or by prune", temporary)
                   : "none");
  findings.add(foreign ? State::kNote : State::kOk, "other tools' files",
               foreign ? fmt::format("{}, such as {}: left alone", foreign, one) : "none");
  std::map<std::string, std::size_t> problems, compilers;
  std::size_t old = 0, kernels = 0;
  std::uint64_t bytes = 0;
  for (const auto& l : read_folder(folder)) {
    if (!l.problem.empty()) {
      ++problems[l.problem];
      continue;
    }
    ++kernels, bytes += l.bytes, old += stale(l.entry), ++compilers[l.entry.compiler];
  }
  findings.add(State::kOk, "kernels", fmt::format("{}, {}", kernels, megabytes(bytes)));
  for (const auto& [problem, count] : problems)
    findings.add(State::kBad, "unsound kernels",
                 fmt::format("{}: {}; they are compiled anew when needed", count, problem));
  findings.add(old ? State::kNote : State::kOk, "versions",
               old ? fmt::format("{} kernels are another version's: prune takes them when it needs room", old)
                   : "all kernels are this version's");
  if (compilers.size() > 1)
    for (const auto& [compiler, count] : compilers)
      findings.add(State::kNote, "compilers", fmt::format("{} kernels by {}", count, compiler));
}

void check_layers(Findings& findings, const CacheToolOptions& options) {
  RuntimeOptions runtime;
  runtime.cache_dir = options.folder, runtime.cache_mode = CacheMode::kReadOnly;
  cache::KernelCache cache(cache::cache_options(runtime), nullptr);
  for (const auto& layer : cache.layers()) {
    if (layer.kind == CacheLayer::kUserFolder) continue;
    const bool fine = layer.problem.empty();
    std::string text = fine ? "" : layer.problem;
    if (layer.pack)
      text = fmt::format("{} kernels{}", layer.pack->size(), layer.pack->signer().empty() ? "" : ", signed");
    if (layer.folder) text = fmt::format("{} kernels", cache::stored_files(layer.folder->path()).size());
    findings.add(fine ? State::kOk : layer.absent ? State::kNote : State::kBad, layer.name, text);
  }
}

}  // namespace

int doctor(const Tool& tool, const CacheToolOptions& options) {
  Findings findings;
  if (options.folder.empty()) {
    findings.add(State::kBad, "folder", "none: set Q4_CACHE_DIR, XDG_CACHE_HOME or HOME, else nothing is kept");
  } else {
    check_folder(findings, options.folder);
    if (fs::is_directory(fs::symlink_status(options.folder))) check_files(findings, options.folder);
  }
  check_layers(findings, options);
  const cuda::Nvrtc nvrtc;
  findings.add(nvrtc.available() ? State::kOk : State::kNote, "compiler",
               nvrtc.available() ? nvrtc.identity() : nvrtc.problem() + ": kernels must be prebuilt");
  const auto signing = cache::signing_problem();
  findings.add(signing.empty() ? State::kOk : State::kNote, "signatures", signing.empty() ? "can be checked" : signing);
  return findings.print(tool, options.folder);
}

}  // namespace q4::tools
