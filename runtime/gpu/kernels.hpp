// Kernels of one device, ready to launch: source -> cache -> code -> loaded function.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "runtime/cache/kernel_cache.hpp"
#include "runtime/gpu/driver.hpp"

namespace q4::gpu {

/// The key under which code of `source` for this target is cached.
cache::KernelKey key_of(const jit::Source& source, const std::string& arch, const std::vector<std::string>& options);

/// Thread-safe. Functions are shared: a plan keeps those it launches.
class Kernels {
 public:
  Kernels(Driver& driver, cache::KernelCache& cache) : driver_(driver), cache_(cache) {}

  /// Compiles or finds, loads, and remembers while somebody uses it.
  std::shared_ptr<const Function> get(const jit::Source& source) { return get(source, nullptr); }
  /// Finds, or compiles, and keep()s: what came of it. A failure is in the event, not thrown.
  CacheEvent warm(const jit::Source& source);
  /// The same for a kernel that serves every shape: it stays loaded, so that launches and captured graphs outlive
  /// callers.
  std::shared_ptr<const Function> keep(const jit::Source& source);
  /// The same for several, compiled side by side on the host's cores. Equal sources give one function.
  std::vector<std::shared_ptr<const Function>> get_all(const std::vector<jit::Source>& sources);

 private:
  std::shared_ptr<const Function> get(const jit::Source& source, CacheEvent* event);
  /// Counts the code as the device's memory while it is loaded.
  std::shared_ptr<const Function> load(const std::vector<char>& code, const std::string& name);

  Driver& driver_;
  cache::KernelCache& cache_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<const Function>> loaded_;  ///< by source text
  std::map<std::string, std::shared_ptr<const Function>> kept_;
};

}  // namespace q4::gpu
