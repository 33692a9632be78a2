// Looks a kernel up, compiles it once when it is nowhere, keeps it, and tells.
#include "runtime/cache/kernel_cache.hpp"

#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <optional>

#include "runtime/base/check.hpp"
#include "runtime/cache/compile_slot.hpp"

namespace q4::cache {
namespace {

class Stopwatch {
 public:
  /// Milliseconds since it was made or last asked.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double ms = std::chrono::duration<double, std::milli>(now - start_).count();
    start_ = now;
    return ms;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::uint64_t& hits_of(CacheCounters& counters, CacheLayer layer) {
  switch (layer) {
    case CacheLayer::kMemory:
      return counters.memory;
    case CacheLayer::kUserFolder:
      return counters.user_folder;
    case CacheLayer::kFolder:
      return counters.folder;
    case CacheLayer::kBesideLibrary:
      return counters.beside_library;
    case CacheLayer::kPack:
      return counters.pack;
    case CacheLayer::kCompiler:
      return counters.compiled;
    case CacheLayer::kNone:
      break;
  }
  return counters.failed;
}

std::string text_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) { return error.what(); } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

KernelCache::KernelCache(CacheOptions options, Log log)
    : options_([&] {
        if (options.mode == CacheMode::kOff) options.folder.clear();
        return std::move(options);
      }()),
      log_(std::move(log)) {}

void KernelCache::log(LogLevel level, const std::string& text) const {
  if (log_) log_(level, "kernel cache: " + text);
}

void KernelCache::warn(const std::string& problem) {
  {
    std::lock_guard lock(counters_mutex_);
    ++counters_.problems;
  }
  const bool first = !warned_.exchange(true);
  log(first ? LogLevel::kWarning : LogLevel::kInfo,
      problem + (options_.mode == CacheMode::kRequirePrebuilt
                     ? "; the other layers are searched"
                     : "; kernels that no other layer holds are compiled, and kept in memory"));
}

CacheCounters KernelCache::counters() const {
  std::lock_guard lock(counters_mutex_);
  CacheCounters result = counters_;
  result.memory = memory_hits_.load(std::memory_order_relaxed);
  return result;
}

KernelCache::Result KernelCache::get(const KernelKey& key, const Compile& compile, const Use& use) {
  std::promise<Shared> promise;
  std::shared_future<Shared> future;
  bool mine = false;
  const std::string text = key.text();
  {
    std::lock_guard lock(mutex_);
    auto [it, inserted] = entries_.try_emplace(text);
    if (inserted) it->second = promise.get_future().share();
    mine = inserted;
    future = it->second;
  }
  if (!mine) {
    Result result{future.get(), {}};
    count_memory_hit();
    result.event.layer = CacheLayer::kMemory;
    if (use) use(*result.code);
    return result;
  }
  Search search{key, key.digest(), {}, {}, {}};
  search.event.key = search.digest, search.event.kernel = key.name, search.event.target = key.target;
  Shared code;
  try {
    code = find_or_make(search, compile);
    promise.set_value(code);
    Stopwatch watch;
    if (use) use(*code);
    search.event.load_ms = watch.lap();
  } catch (...) {
    const auto failure = std::current_exception();
    search.event.layer = CacheLayer::kNone, search.event.error = text_of(failure);
    if (!code) {
      promise.set_exception(failure);
      std::lock_guard lock(mutex_);
      entries_.erase(text);
    }
    tell(search, code.get());
    throw;
  }
  tell(search, code.get());
  return {std::move(code), std::move(search.event)};
}

/// Counters, the log, the dump and the embedder's callback, in this order and with no lock held.
void KernelCache::tell(Search& search, const Code* code) {
  const CacheEvent& event = search.event;
  {
    std::lock_guard lock(counters_mutex_);
    ++hits_of(counters_, event.layer);
    counters_.lookup_ms += event.lookup_ms;
    counters_.compile_ms += event.compile_ms;
    counters_.load_ms += event.load_ms;
  }
  if (!options_.dump_dir.empty()) {
    std::string stem;
    if (auto problem = dump(options_.dump_dir, search.key, event, code, search.log, stem); !problem.empty())
      search.problems.push_back("dump folder: " + problem);
    else if (!event.error.empty())
      log(LogLevel::kInfo, fmt::format("{} failed: what is known of it is in {}.*", event.kernel, stem));
  }
  for (const auto& problem : search.problems) warn(problem);
  if (log_)
    log(LogLevel::kDebug,
        fmt::format("{} {} ({}): {}{}; looked up in {:.2f} ms, compiled in {:.1f} ms, loaded in {:.2f} ms{}",
                    to_string(event.layer), event.key, event.kernel, event.from, event.error, event.lookup_ms,
                    event.compile_ms, event.load_ms, event.missed.empty() ? "" : "; missed: " + event.missed));
  if (!options_.event) return;
  try {
    options_.event(event);
  } catch (...) {  // an observer's trouble is no reason not to multiply
  }
}

bool KernelCache::find(Search& search, Code& code) {
  std::string& missed = search.event.missed;
  missed.clear();
  for (const auto& layer : layers_) {
    Found found{{}, layer.problem};
    const bool sealed = options_.seal && options_.seal->mode() != Sealing::kOff;
    if (layer.folder) found = layer.folder->find(search.digest, search.key.target, !sealed);
    if (layer.pack) found = layer.pack->find(search.digest, search.key.target);
    const std::string& problem = found.problem;
    if (!problem.empty() && layer.problem.empty())
      search.problems.push_back(fmt::format("{}: {}", layer.name, problem));
    if (found.entry) {
      search.event.layer = layer.kind, search.event.from = layer.name;
      code = std::move(found.entry->code);
      return true;
    }
    missed += fmt::format("{}{} ({})", missed.empty() ? "" : ", ", layer.name,
                          problem.empty() ? "does not hold it" : problem);
  }
  if (missed.empty()) missed = "no folder and no pack: there is none";
  return false;
}

KernelCache::Shared KernelCache::find_or_make(Search& search, const Compile& compile) {
  layers();
  Stopwatch watch;
  Code code;
  const bool found = find(search, code);
  search.event.lookup_ms = watch.lap();
  if (found) return std::make_shared<const Code>(std::move(code));
  const KernelKey& key = search.key;
  if (options_.mode == CacheMode::kRequirePrebuilt)
    fail(ErrorCode::kNotFound,
         "kernel cache: kernel {} ({}) for {} is not prebuilt and cache_mode is require-prebuilt; searched: {}. Build "
         "it with q4-cache build --target {}, or use another cache_mode",
         search.digest, key.name, key.target, search.event.missed, key.target);
  const bool writes = options_.mode == CacheMode::kReadWrite && !options_.folder.empty();
  if (options_.seal)
    options_.seal->check(fmt::format("kernel {} is to be compiled for {}{}", key.name, key.target,
                                     writes ? " and written to " + options_.folder : ""));
  std::string problem = writes ? prepare_folder(options_.folder) : std::string();
  std::optional<KeyLock> lock;
  if (writes && problem.empty()) {
    lock.emplace(options_.folder, search.digest, options_.lock_wait_s);
    // Somebody else may have held the lock, and written it, since we looked.
    if (auto entry = layers_.front().folder->find(search.digest, key.target).entry) {
      search.event.lookup_ms += watch.lap();
      search.event.layer = CacheLayer::kUserFolder, search.event.from = layers_.front().name;
      return std::make_shared<const Code>(std::move(entry->code));
    }
  }
  Compiled compiled = [&] {
    const CompileSlot slot;
    return compile();
  }();
  search.event.layer = CacheLayer::kCompiler, search.event.from = compiled.compiler, search.log = compiled.log;
  search.event.compile_ms = watch.lap();
  if (writes && problem.empty())
    problem = layers_.front().folder->store(
        make_entry(key, compiled.compiler, static_cast<std::uint64_t>(std::time(nullptr)), compiled.code),
        options_.max_bytes);
  if (!problem.empty()) search.problems.push_back(problem);
  return std::make_shared<const Code>(std::move(compiled.code));
}

}  // namespace q4::cache
