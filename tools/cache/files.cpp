// q4-cache pack, merge, export, import, keygen, sign: kernels between folders and packs.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <q4/q4.hpp>

#include "runtime/base/check.hpp"
#include "runtime/base/file_system.hpp"
#include "runtime/cache/signature.hpp"
#include "runtime/jit/embedded.hpp"
#include "tools/cache/cache_tool.hpp"

namespace q4::tools {

using cache::Entry;

std::string kilobytes(std::size_t bytes) {
  return bytes == 0 ? "0 kB" : fmt::format("{} kB", number(static_cast<double>(bytes) / 1e3));
}

bool stale(const Entry& entry) { return entry.key.headers != jit::headers_digest(entry.key.source); }

std::vector<Listed> read_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::directory_iterator readable(folder, error);
  if (error)
    fail(ErrorCode::kNotFound, "{} cannot be read: {}; fill a folder with q4-cache build, or name another one", folder,
         error.message());
  std::vector<Listed> all;
  for (const auto& file : cache::stored_files(folder)) {
    auto [entry, problem] = cache::read_entry(file.path);
    if (!entry && problem.empty()) continue;  // evicted meanwhile
    Listed& listed = all.emplace_back(Listed{file.path, std::move(problem), file.bytes, {}});
    if (entry) listed.entry = *std::move(entry);
  }
  std::sort(all.begin(), all.end(), [](const Listed& a, const Listed& b) { return a.path < b.path; });
  return all;
}

std::vector<Listed> read_pack(const cache::Pack& pack) {
  std::vector<Listed> all;
  for (std::size_t i = 0; i < pack.size(); ++i) {
    Listed& listed = all.emplace_back(Listed{pack.path(), "", 0, {}});
    auto entry = pack.entry(i);
    if (entry)
      listed.bytes = entry->code.size(), listed.entry = *std::move(entry);
    else
      listed.problem = entry.reason();
  }
  return all;
}

namespace {

/// The text of a small file, without what stands after its first line.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (endless(path)) fail(ErrorCode::kNotFound, "{} cannot be read: it is a device; name a file", path);
  if (!std::getline(file, line)) fail(ErrorCode::kNotFound, "{} cannot be read: {}", path, std::strerror(errno));
  return line;
}

std::string secret_key(const CacheToolOptions& options) {
  if (options.signing_key.empty()) return {};
  struct stat status;
  if (::stat(options.signing_key.c_str(), &status) == 0 && status.st_mode & 077)
    fail(ErrorCode::kInvalidArgument, "--sign = {}: others may read it: chmod 600 it, or make a new one",
         options.signing_key);
  return first_line(options.signing_key);
}

/// What goes from one place to another.
struct Load {
  std::vector<Entry> entries;
  TuningDb tuning;
  std::size_t old = 0, unsound = 0;
};

/// Adds a folder or a pack, sound kernels alone. `stale_too`: of other versions as well.
void take(Load& load, std::vector<Listed> listed, const std::string& target, bool stale_too) {
  std::vector<std::string> wanted;
  if (!target.empty())
    for (const Target& t : parse_targets(target)) wanted.push_back(t.arch);
  for (auto& l : listed) {
    if (!l.problem.empty()) {
      fmt::print(stderr, "q4-cache: warning: {}: {}: left out\n", l.path, l.problem);
      ++load.unsound;
    } else if (!stale_too && stale(l.entry)) {
      ++load.old;
    } else if (wanted.empty() || std::find(wanted.begin(), wanted.end(), l.entry.key.target) != wanted.end()) {
      load.entries.push_back(std::move(l.entry));
    }
  }
}

void take_source(Load& load, const std::string& source, const CacheToolOptions& options, bool stale_too) {
  if (source.ends_with(".jsonl")) return read_input([&] { load.tuning.load(source); });
  if (!source.ends_with(cache::kPackExtension)) return take(load, read_folder(source), options.target, stale_too);
  const auto opened = cache::Pack::open(source, public_key(options));
  if (!opened) fail(ErrorCode::kNotFound, "{}: {}", source, opened.reason());
  const auto& pack = *opened;
  take(load, read_pack(*pack), options.target, stale_too);
  read_input([&] { load.tuning.parse(pack->tuning(), source); });
}

/// Writes the pack, opens it again and says what is in it.
int write_out(const Tool& tool, const CacheToolOptions& options, const Load& load) {
  const std::string secret = secret_key(options);
  if (const auto problem = cache::write_pack(options.out, load.entries, load.tuning.str(), secret); !problem.empty())
    fail(ErrorCode::kIo, "--out: {}", problem);
  const auto opened = cache::Pack::open(options.out);
  if (!opened) fail(ErrorCode::kCorrupt, "--out = {}: {}", options.out, opened.reason());
  const auto& written = *opened;
  const auto bytes = std::filesystem::file_size(options.out);
  if (tool.json)
    fmt::print("{}\n", Json{{"out", options.out},
                            {"bytes", bytes},
                            {"stale_left_out", load.old},
                            {"unsound_left_out", load.unsound},
                            {"signed_by", written->signer()},
                            {"manifest", Json::parse(written->manifest())}}
                           .dump(2));
  else
    fmt::print("{}: kernels: {}, tuning records: {}, {}{}; left out: {} of other kernel sources, {} unsound\n",
               options.out, written->size(), load.tuning.size(), megabytes(bytes), secret.empty() ? "" : ", signed",
               load.old, load.unsound);
  return load.unsound ? 1 : 0;
}

/// Puts entries into a folder as files.
int store(const Tool& tool, const std::string& folder, const Load& load) {
  cache::Folder to(folder, true);
  for (const Entry& entry : load.entries)
    if (const auto problem = to.store(entry, 0); !problem.empty()) fail(ErrorCode::kIo, "{}", problem);
  if (tool.json)
    fmt::print("{}\n",
               Json{{"folder", folder}, {"kernels", load.entries.size()}, {"unsound_left_out", load.unsound}}.dump(2));
  else
    fmt::print("{}: kernels written: {}, unsound left out: {}\n", folder, load.entries.size(), load.unsound);
  return load.unsound ? 1 : 0;
}

}  // namespace

std::string public_key(const CacheToolOptions& options) {
  if (options.public_key.empty()) return cache::cache_options({}).public_key;
  return std::filesystem::exists(options.public_key) ? first_line(options.public_key) : options.public_key;
}

int pack_folder(const Tool& tool, const CacheToolOptions& options) {
  Load load;
  take(load, read_folder(options.folder), options.target, false);
  if (load.entries.empty())
    fail(ErrorCode::kNotFound, "{} holds no kernel of this version{}: run q4-cache build first", options.folder,
         options.target.empty() ? "" : " for " + options.target);
  for (const auto& file : options.tuning) read_input([&] { load.tuning.load(file); });
  return write_out(tool, options, load);
}

int merge_sources(const Tool& tool, const CacheToolOptions& options) {
  Load load;
  for (const auto& source : options.sources) take_source(load, source, options, true);
  return write_out(tool, options, load);
}

int export_entries(const Tool& tool, const CacheToolOptions& options) {
  Load load;
  take_source(load, options.file.empty() ? options.folder : options.file, options, true);
  const int status = store(tool, options.out, load);
  if (load.tuning.size() > 0) load.tuning.save(options.out + "/tuning.jsonl");
  return status;
}

int import_entries(const Tool& tool, const CacheToolOptions& options) {
  Load load;
  for (const auto& source : options.sources) take_source(load, source, options, true);
  if (options.folder.empty()) fail(ErrorCode::kIo, "--cache-dir: there is no cache folder; name one");
  return store(tool, options.folder, load);
}

int make_keys(const Tool& tool, const CacheToolOptions& options) {
  check(!std::filesystem::path(options.out).filename().empty(), "--out = {}: write a name behind the folder",
        options.out);
  const auto keys = cache::make_signing_keys();
  std::vector<std::string> made;
  const auto write = [&](const std::string& path, const std::string& text, unsigned mode) {
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    const std::string line = text + "\n";
    if (file >= 0) made.push_back(path);
    bool written = file >= 0 && ::write(file, line.data(), line.size()) == static_cast<ssize_t>(line.size());
    const int error = errno;
    if (file >= 0) written &= ::close(file) == 0;
    if (written) return;
    for (const std::string& half : made) ::unlink(half.c_str());  // half a pair is of no use
    fail(ErrorCode::kIo, "--out: {}: {}; {}", path, std::strerror(error),
         error == EEXIST ? "name another pair, keys are not replaced" : "name a pair in a folder that can be written");
  };
  write(options.out + ".secret", keys.secret, 0600);
  write(options.out + ".public", keys.public_key, 0644);
  if (tool.json)
    fmt::print("{}\n", Json{{"secret", options.out + ".secret"}, {"public_key", keys.public_key}}.dump(2));
  else
    fmt::print("{0}.secret: keep it to yourself; {0}.public: {1}\n", options.out, keys.public_key);
  return 0;
}

int sign_file(const Tool& tool, const CacheToolOptions& options) {
  if (const auto problem = cache::sign_pack(options.file, secret_key(options)); !problem.empty())
    fail(ErrorCode::kIo, "{}: {}", options.file, problem);
  const auto opened = cache::Pack::open(options.file);
  if (!opened) fail(ErrorCode::kCorrupt, "{}: {}", options.file, opened.reason());
  const auto& pack = *opened;
  if (tool.json)
    fmt::print("{}\n", Json{{"file", options.file}, {"signed_by", pack->signer()}}.dump(2));
  else
    fmt::print("{}: signed by {}\n", options.file, pack->signer());
  return 0;
}

}  // namespace q4::tools
