// What a Runtime handle points to.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <q4/runtime.hpp>
#include <q4/tuning.hpp>
#include <set>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/context.hpp"
#include "runtime/base/fork.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/untuned.hpp"

namespace q4 {

/// Backends are made with the Runtime and open their libraries at first need; devices stay open once used.
class [[gnu::visibility("hidden")]] Runtime::Impl {
 public:
  explicit Impl(RuntimeOptions options);

  std::vector<std::unique_ptr<Backend>>& backends() { return backends_; }
  /// The device, opened at its first use. Throws kNotFound with those that exist.
  std::shared_ptr<DeviceBackend> open(Device device);
  std::vector<DeviceInfo> devices();
  const TuningDb& tuning() { return read_tuning().records; }
  std::vector<TuningSource> tuning_sources();
  /// The record that a plan of this problem uses; null: defaults. Says once what is stale, only nearest, or not known
  /// to this version, and notes what is untuned.
  const TuningRecord* tuned(Device device, TuningKey key);
  /// The cache holds kernels of this version for such a GPU: no compiler is asked for before one is missing.
  bool may_be_prebuilt(const std::string& arch);
  cache::KernelCache& cache() { return *cache_; }
  std::vector<std::shared_ptr<DeviceBackend>> opened();
  Seal& seal() { return *context_.seal; }
  void log(LogLevel level, const std::string& text) const { context_.log(level, text); }
  void say_once(LogLevel level, const std::string& text);  ///< only the first time that this runtime says it

 private:
  struct Tuning {
    TuningDb records;
    bool named = false;  ///< by the caller: trouble with the files is an error
    std::vector<std::string> problems;
  };
  std::vector<TuningSource> places_of_tuning();
  Tuning load_tuning();
  const Tuning& read_tuning();

  BackendContext context_;
  std::unique_ptr<cache::KernelCache> cache_;
  std::vector<std::unique_ptr<Backend>> backends_;
  ForkSafeMutex mutex_;
  std::map<std::pair<BackendKind, int>, std::shared_ptr<DeviceBackend>> open_;
  std::atomic<const Tuning*> tuning_ = nullptr;  ///< what was read first
  std::unique_ptr<const Tuning> tuning_owner_;
  std::set<std::string> said_;  ///< guarded by mutex_
  UntunedLog untuned_;
};

}  // namespace q4
