// The Runtime: options resolved, backends listed, devices opened, tuning read.
#include "runtime/runtime.hpp"

#include <filesystem>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/choose/kernel.hpp"
#include "runtime/tuning_key.hpp"

namespace q4 {
namespace {

LogLevel level_of_environment() {
  const std::string level = setting("Q4_LOG");
  return level == "debug"   ? LogLevel::kDebug
         : level == "info"  ? LogLevel::kInfo
         : level == "error" ? LogLevel::kError
                            : LogLevel::kWarning;
}

RuntimeOptions resolve(RuntimeOptions options) {
  constexpr int kMostThreads = 4096;
  check(options.cpu_threads >= 0 && options.cpu_threads <= kMostThreads,
        "Runtime: cpu_threads = {} is outside [0, {}]; 0 means what the machine allows", options.cpu_threads,
        kMostThreads);
  check(!options.allocator.allocate == !options.allocator.release,
        "Runtime: allocator has {} alone; set both allocate and release, or neither",
        options.allocator.allocate ? "allocate" : "release");
  if (!options.log)
    options.log = [most = level_of_environment()](LogLevel level, const std::string& text) {
      constexpr const char* kNames[] = {"error", "warning", "info", "debug"};
      if (level <= most) fmt::print(stderr, "q4: {}: {}\n", kNames[static_cast<int>(level)], text);
    };
  return options;
}

}  // namespace

Runtime::Impl::Impl(RuntimeOptions options) : context_{resolve(std::move(options))} {
  auto cache = cache::cache_options(context_.options);
  if (cache.folder.empty() && cache.mode != CacheMode::kOff)
    context_.log(
        LogLevel::kWarning,
        "kernel cache: no folder (set cache_dir, Q4_CACHE_DIR or HOME): compiled kernels are kept in memory only");
  cache.seal = context_.seal;
  cache_ = std::make_unique<cache::KernelCache>(std::move(cache), context_.options.log);
  context_.cache = cache_.get();
  backends_ = make_backends(context_);
  const std::string& record = context_.options.record_untuned;
  untuned_.open(record.empty() ? setting("Q4_RECORD_UNTUNED") : record);
}

std::shared_ptr<DeviceBackend> Runtime::Impl::open(Device device) {
  std::lock_guard lock(mutex_);
  auto& slot = open_[{device.kind, device.ordinal}];
  if (slot) return slot;
  for (auto& backend : backends_) {
    if (backend->kind() != device.kind) continue;
    const auto count = backend->devices().size();
    if (device.ordinal >= 0 && static_cast<std::size_t>(device.ordinal) < count)
      return slot = backend->open(device.ordinal);
  }
  std::string known, reason;
  for (auto& backend : backends_) {
    if (backend->kind() == device.kind) reason = backend->status().reason;
    for (const auto& info : backend->devices()) {
      if (info.device == device) return slot = backend->open(device.ordinal);  // the driver lists it only now
      known += (known.empty() ? "" : ", ") + info.device.str();
    }
  }
  fail(ErrorCode::kNotFound, "device '{}' does not exist{}; there are: {} (q4-info says what is missing and why)",
       device.str(), (reason.empty() ? "" : ": ") + reason, known.empty() ? "none" : known);
}

std::vector<std::shared_ptr<DeviceBackend>> Runtime::Impl::opened() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<DeviceBackend>> all;
  for (const auto& [key, device] : open_)
    if (device) all.push_back(device);
  return all;
}

std::vector<DeviceInfo> Runtime::Impl::devices() {
  std::vector<DeviceInfo> all;
  for (auto& backend : backends_)
    for (auto& info : backend->devices()) all.push_back(std::move(info));
  return all;
}

bool Runtime::Impl::may_be_prebuilt(const std::string& arch) {
  return cache_->mode() == CacheMode::kRequirePrebuilt || cache_->holds(arch, choose::kernel_headers());
}

/// Read under no lock, by several threads at the worst: what fails is tried again by the next call, and a child of fork()
/// finds all or nothing.
const Runtime::Impl::Tuning& Runtime::Impl::read_tuning() {
  if (const Tuning* known = tuning_.load(std::memory_order_acquire)) return *known;
  auto loaded = std::make_unique<const Tuning>(load_tuning());
  const Tuning* known = nullptr;
  if (!tuning_.compare_exchange_strong(known, loaded.get(), std::memory_order_acq_rel, std::memory_order_acquire))
    return *known;
  tuning_owner_ = std::move(loaded);
  for (const auto& problem : tuning_owner_->problems)
    context_.log(LogLevel::kWarning, "tuning: " + problem + "; it is not used");
  return *tuning_owner_;
}

/// Where records may be, in the order of reading, each later one over those before it. What is unnamed exists.
std::vector<TuningSource> Runtime::Impl::places_of_tuning() {
  std::vector<TuningSource> places;
  const auto packs = cache_->packs();
  for (auto pack = packs.rbegin(); pack != packs.rend(); ++pack)  // the first pack wins, as with kernels
    if (!(*pack)->tuning().empty()) places.push_back({(*pack)->path(), true, false, nullptr, {}});
  auto files = context_.options.tuning_files;
  if (files.empty()) files = setting_list("Q4_TUNING");
  for (const auto& file : files) places.push_back({file, false, true, nullptr, {}});
  if (!files.empty()) return places;
  const auto options = cache::cache_options(context_.options);  // the first folder wins: it is read last
  std::vector<std::string> folders = {cache_->folder()};
  folders.insert(folders.end(), options.folders.begin(), options.folders.end());
  folders.insert(folders.end(), options.beside.begin(), options.beside.end());
  for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
    const auto file = *folder + "/tuning.jsonl";
    std::error_code ignored;
    if (!folder->empty() && std::filesystem::exists(file, ignored)) places.push_back({file, false, false, nullptr, {}});
  }
  return places;
}

namespace {

void read(TuningDb& db, const TuningSource& place, cache::KernelCache& cache) {
  if (!place.pack) return db.load(place.path);
  for (const auto& pack : cache.packs())
    if (pack->path() == place.path) return db.parse(pack->tuning(), place.path);
}

}  // namespace

Runtime::Impl::Tuning Runtime::Impl::load_tuning() {
  Tuning tuning;
  for (const auto& place : places_of_tuning()) {
    tuning.named |= place.named;
    try {
      read(tuning.records, place, *cache_);
    } catch (const Error& error) {
      if (place.named) throw;
      tuning.problems.push_back(error.what());
    }
  }
  return tuning;
}

std::vector<TuningSource> Runtime::Impl::tuning_sources() {
  auto sources = places_of_tuning();
  for (auto& source : sources) try {
      auto db = std::make_shared<TuningDb>();
      read(*db, source, *cache_);
      db->records();  // each line is read whole
      source.records = std::move(db);
    } catch (const Error& error) { source.problem = error.what(); }
  return sources;
}

void Runtime::Impl::say_once(LogLevel level, const std::string& text) {
  {
    const std::lock_guard lock(mutex_);
    if (!said_.insert(text).second) return;
  }
  context_.log(level, text);
}

const TuningRecord* Runtime::Impl::tuned(Device device, TuningKey key) {
  TuningMatch match = TuningMatch::kNone;
  const TuningRecord* record = nullptr;
  const Tuning& known = read_tuning();
  const TuningDb& db = known.records;
  try {
    // An epilogue moves times by little: what was measured without it serves too.
    if (!key.epilogue.empty() && !is_of_experts(key) && !db.find(key)) key.epilogue.clear();
    record = db.find(key, &match);
  } catch (const Error& error) {
    if (known.named) throw;
    say_once(LogLevel::kWarning, std::string("tuning: ") + error.what() + "; defaults are used");
  }
  if (match == TuningMatch::kStale)
    say_once(LogLevel::kWarning,
             fmt::format("tuning: records for \"{}\" were measured with other kernels than these and are stale: "
                         "defaults are used, run q4-autotune again",
                         key.fingerprint));
  if (match == TuningMatch::kNearest)
    say_once(LogLevel::kWarning, fmt::format("tuning: no record for \"{}\": those for \"{}\" (same arch) are used",
                                             key.fingerprint, record->key.fingerprint));
  if (record)
    for (const auto& reason : open(device)->unknown_tactics(*record))
      say_once(LogLevel::kWarning,
               fmt::format("tuning: record for \"{}\" k = {} n = {} group {}: {}; the default is used there",
                           record->key.fingerprint, record->key.k, record->key.n, record->key.group, reason));
  if (match != TuningMatch::kExact && !is_of_experts(key)) {
    if (const auto noted = untuned_.note(key); !noted) context_.log(LogLevel::kWarning, noted.reason());
  }
  return record;
}

Runtime::Runtime(RuntimeOptions options) : impl_(std::make_shared<Impl>(std::move(options))) {}

std::vector<DeviceInfo> Runtime::devices() const { return impl_->devices(); }

std::vector<BackendStatus> Runtime::backends() const {
  std::vector<BackendStatus> all;
  for (auto& backend : impl_->backends()) all.push_back(backend->status());
  return all;
}

Device Runtime::best_device() const {
  const auto all = impl_->devices();
  if (all.empty())
    fail(ErrorCode::kNotFound, "Runtime::best_device: there is no usable device, not even the CPU; q4-info says why");
  // A GPU that nothing can be compiled for serves nobody by default; with prebuilt kernels no compiler is asked for.
  for (const auto& info : all) {
    if (impl_->may_be_prebuilt(info.arch)) return info.device;
    const auto ready = impl_->open(info.device)->ready();
    if (ready) return info.device;
    impl_->log(LogLevel::kWarning,
               fmt::format("{} ({}) is passed over: {}", info.device.str(), info.name, ready.reason()));
  }
  return all.front().device;
}

DeviceInfo Runtime::info(Device device) const { return impl_->open(device)->info(); }

std::string Runtime::cache_dir() const { return impl_->cache().folder(); }

const TuningDb& Runtime::tuning() const { return impl_->tuning(); }

std::vector<TuningSource> Runtime::tuning_sources() const { return impl_->tuning_sources(); }

CacheCounters Runtime::cache_counters() const { return impl_->cache().counters(); }

std::vector<MemoryUse> Runtime::memory() const {
  std::vector<MemoryUse> all;
  for (const auto& device : impl_->opened()) all.push_back(device->ledger().use());
  return all;
}

void Runtime::trim() const {
  for (const auto& device : impl_->opened()) device->trim();
}

void Runtime::seal(Sealing mode) const {
  check(mode <= Sealing::kError, "Runtime::seal: mode = {} is not a value of Sealing", static_cast<int>(mode));
  impl_->seal().set(mode, [impl = impl_.get()](const std::string& text) { impl->log(LogLevel::kWarning, text); });
}

void Runtime::seal() const {
  const std::string mode = is_set("Q4_SEAL") ? setting("Q4_SEAL") : "error";
  check(mode == "off" || mode == "warn" || mode == "error",
        "Runtime::seal: Q4_SEAL = '{}' is not one of off, warn, error", mode);
  seal(mode == "off" ? Sealing::kOff : mode == "warn" ? Sealing::kWarn : Sealing::kError);
}

}  // namespace q4
