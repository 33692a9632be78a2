// Looks a kernel up, compiles it once when it is nowhere, and keeps it.
#include "runtime/cache/kernel_cache.hpp"

#include <fmt/format.h>

#include <cstdlib>

#include "runtime/cache/entry.hpp"
#include "runtime/cache/sha256.hpp"
#include "runtime/check.hpp"
#include "runtime/jit/source.hpp"

namespace q4::cache {

std::string KernelKey::digest() const {
  Sha256 sha;
  sha.field("q4 kernel key 1").field(source).field(headers).field(target).field(compiler);
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

KernelCache::KernelCache(std::string folder, CacheMode mode, Log log)
    : folder_(mode == CacheMode::kOff ? std::string() : std::move(folder)), mode_(mode), log_(std::move(log)) {}

void KernelCache::warn_once(const std::string& text) {
  {
    std::lock_guard lock(mutex_);
    if (warned_) return;
    warned_ = true;
  }
  if (log_) log_(LogLevel::kWarning, text + "; kernels are compiled when they are not found and kept in memory");
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

KernelCache::Code KernelCache::find_or_make(const KernelKey& key, const std::string& digest,
                                            const std::function<Code()>& compile) {
  const std::string file = digest + ".q4k";
  if (!folder_.empty()) {
    std::string problem;
    if (auto entry = read_entry(folder_ + "/" + file, digest, key.target, problem)) {
      if (log_) log_(LogLevel::kDebug, fmt::format("kernel cache: hit {} ({})", digest, key.name));
      return std::move(entry->code);
    }
    if (!problem.empty()) warn_once(fmt::format("kernel cache: {}/{}: {}", folder_, file, problem));
  }
  if (mode_ == CacheMode::kRequirePrebuilt)
    fail(ErrorCode::kNotFound,
         "kernel cache: kernel {} ({}) for {} is not prebuilt and cache_mode is require-prebuilt; searched: {}. Build "
         "it with "
         "q4-autotune on such a machine, or use another cache_mode",
         digest, key.name, key.target, folder_.empty() ? "no folder" : folder_);
  Code code = compile();
  if (mode_ == CacheMode::kReadWrite && !folder_.empty()) {
    std::string problem = prepare_folder(folder_);
    if (problem.empty()) problem = write_entry(folder_, file, {digest, key.target, jit::kEntry, code});
    if (!problem.empty()) warn_once("kernel cache: " + problem);
  }
  return code;
}

}  // namespace q4::cache
