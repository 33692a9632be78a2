// Looks a kernel up, compiles it once when it is nowhere, and keeps it.
#include "runtime/cache/kernel_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>

#include "runtime/cache/sha256.hpp"
#include "runtime/check.hpp"

namespace q4::cache {

std::string KernelKey::digest() const {
  Sha256 sha;
  sha.field("q4 kernel key 2").field(source).field(headers).field(target);
  for (const auto& option : options) sha.field(option);
  return sha.hex();
}

std::string default_folder(const std::string& explicit_folder) {
  if (!explicit_folder.empty()) return explicit_folder;
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value ? value : "";
  };
  if (const auto own = variable("Q4_CACHE_DIR"); !own.empty()) return own;
  if (const auto base = variable("XDG_CACHE_HOME"); !base.empty()) return base + "/q4";
  if (const auto home = variable("HOME"); !home.empty()) return home + "/.cache/q4";
  return {};
}

CacheOptions cache_options(const RuntimeOptions& options) {
  CacheOptions result;
  result.folder = default_folder(options.cache_dir);
  result.mode = options.cache_mode;
  result.folders = options.cache_folders, result.packs = options.packs;
  result.max_bytes = options.cache_max_bytes;
  const char* path = std::getenv("Q4_CACHE_PATH");
  for (std::string rest = path ? path : ""; !rest.empty();) {
    const auto end = std::min(rest.find(':'), rest.size());
    if (end > 0) result.folders.push_back(rest.substr(0, end));
    rest.erase(0, end + 1);
  }
  return result;
}

KernelCache::KernelCache(CacheOptions options, Log log) : options_(std::move(options)), log_(std::move(log)) {
  if (options_.mode == CacheMode::kOff) options_.folder.clear();
}

void KernelCache::log(LogLevel level, const std::string& text) const {
  if (log_) log_(level, "kernel cache: " + text);
}

void KernelCache::add_folder(const std::string& path) {
  std::error_code error;
  Layer layer{"folder " + path, "", nullptr, nullptr};
  if (std::filesystem::is_directory(path, error))
    layer.folder = std::make_shared<Folder>(path, false);
  else
    layer.problem = error ? error.message() : "not a folder";
  layers_.push_back(std::move(layer));
}

void KernelCache::add_pack(const std::string& path) {
  Layer layer{"pack " + path, "", nullptr, nullptr};
  layer.pack = Pack::open(path, layer.problem);
  if (layer.pack) log(LogLevel::kDebug, fmt::format("{}: {} kernels", layer.name, layer.pack->size()));
  layers_.push_back(std::move(layer));
}

void KernelCache::open_layers() {
  if (options_.mode == CacheMode::kOff) return;
  if (!options_.folder.empty())
    layers_.push_back({"user folder " + options_.folder, "",
                       std::make_shared<Folder>(options_.folder, options_.mode == CacheMode::kReadWrite), nullptr});
  auto packs = options_.packs;
  for (const auto& folder : options_.folders) {
    if (folder.ends_with(kPackExtension)) {
      packs.push_back(folder);
      continue;
    }
    add_folder(folder);
    std::vector<std::string> found;
    std::error_code error;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
      if (it->path().extension() == kPackExtension) found.push_back(it->path().string());
    std::sort(found.begin(), found.end());
    packs.insert(packs.end(), found.begin(), found.end());
  }
  for (const auto& pack : packs) add_pack(pack);
  for (const auto& layer : layers_)
    if (!layer.problem.empty()) warn_once(fmt::format("{}: {}", layer.name, layer.problem));
}

void KernelCache::warn_once(const std::string& text) {
  {
    std::lock_guard lock(mutex_);
    if (warned_) return;
    warned_ = true;
  }
  log(LogLevel::kWarning, text + (options_.mode == CacheMode::kRequirePrebuilt
                                      ? "; the other layers are searched"
                                      : "; kernels that no other layer holds are compiled, and kept in memory"));
}

KernelCache::Code KernelCache::get(const KernelKey& key, const std::function<Code()>& compile) {
  const std::string digest = key.digest();
  std::promise<Code> promise;
  std::shared_future<Code> future;
  bool mine = false;
  {
    std::lock_guard lock(mutex_);
    auto [it, inserted] = entries_.try_emplace(digest);
    if (inserted) it->second = promise.get_future().share();
    mine = inserted;
    future = it->second;
  }
  if (!mine) return future.get();
  try {
    promise.set_value(find_or_make(key, digest, compile));
  } catch (...) {
    promise.set_exception(std::current_exception());
    std::lock_guard lock(mutex_);
    entries_.erase(digest);
  }
  return future.get();
}

std::optional<Entry> KernelCache::find(const KernelKey& key, const std::string& digest, std::string& searched) {
  searched.clear();
  for (const auto& layer : layers_) {
    std::string problem = layer.problem;
    std::optional<Entry> entry;
    if (layer.folder) entry = layer.folder->find(digest, key.target, problem);
    if (layer.pack) entry = layer.pack->find(digest, key.target, problem);
    if (!problem.empty() && layer.problem.empty()) warn_once(fmt::format("{}: {}", layer.name, problem));
    if (entry) {
      log(LogLevel::kDebug,
          fmt::format("hit {} ({}) in {}, made by {}", digest, key.name, layer.name, entry->compiler));
      return entry;
    }
    searched += fmt::format("{}{} ({})", searched.empty() ? "" : ", ", layer.name,
                            problem.empty() ? "does not hold it" : problem);
  }
  if (searched.empty()) searched = "no folder and no pack: there is none";
  return std::nullopt;
}

KernelCache::Code KernelCache::find_or_make(const KernelKey& key, const std::string& digest,
                                            const std::function<Code()>& compile) {
  std::call_once(opened_, [this] { open_layers(); });
  std::string searched;
  if (auto entry = find(key, digest, searched)) return std::move(entry->code);
  if (options_.mode == CacheMode::kRequirePrebuilt)
    fail(ErrorCode::kNotFound,
         "kernel cache: kernel {} ({}) for {} is not prebuilt and cache_mode is require-prebuilt; searched: {}. Build "
         "it "
         "with q4-cache build --target {}, or use another cache_mode",
         digest, key.name, key.target, searched, key.target);
  const bool writes = options_.mode == CacheMode::kReadWrite && !options_.folder.empty();
  std::string problem = writes ? prepare_folder(options_.folder) : std::string();
  std::optional<KeyLock> lock;
  if (writes && problem.empty()) {
    lock.emplace(options_.folder, digest, options_.lock_wait_s);
    // Somebody else may have held the lock, and written it, since we looked.
    std::string ignored;
    if (auto entry = layers_.front().folder->find(digest, key.target, ignored)) return std::move(entry->code);
  }
  Code code = compile();
  if (writes && problem.empty())
    problem = layers_.front().folder->store({digest, key.target, key.name, key.compiler(), key.headers,
                                             static_cast<std::uint64_t>(std::time(nullptr)), code},
                                            options_.max_bytes);
  if (!problem.empty()) warn_once(problem);
  return code;
}

}  // namespace q4::cache
