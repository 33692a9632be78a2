// Finds, compiles and loads kernels.
#include "runtime/gpu/kernels.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/base/jobs.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4::gpu {

cache::KernelKey key_of(const jit::Source& source, const std::string& arch, const std::vector<std::string>& options) {
  return {source.name, source.text, jit::headers_digest(source.text), arch, options};
}

std::shared_ptr<const Function> Kernels::load(const std::vector<char>& code, const std::string& name) {
  auto loaded = driver_.load(code, name);
  const auto bytes = static_cast<std::ptrdiff_t>(code.size());
  driver_.ledger().count_code(bytes);
  return {loaded.release(), [&driver = driver_, bytes](const Function* function) {
            delete function;
            driver.ledger().count_code(-bytes);
          }};
}

std::shared_ptr<const Function> Kernels::get(const jit::Source& source, CacheEvent* event) {
  {
    std::lock_guard lock(mutex_);
    const auto at = loaded_.find(source.text);
    if (at != loaded_.end())
      if (auto found = at->second.lock()) {
        cache_.count_memory_hit();
        if (event) event->layer = CacheLayer::kMemory;
        return found;
      }
  }
  std::shared_ptr<const Function> function;
  auto result = cache_.get(
      key_of(source, driver_.info().arch, driver_.options()),
      [&] {
        cache::Compiled compiled;
        compiled.code = driver_.compile(source, compiled.log);
        compiled.compiler = driver_.compiler();
        return compiled;
      },
      [&](const std::vector<char>& code) { function = load(code, source.name); });
  if (event) *event = std::move(result.event);
  std::lock_guard lock(mutex_);
  std::erase_if(loaded_, [](const auto& entry) { return entry.second.expired(); });
  auto& slot = loaded_[source.text];
  if (auto found = slot.lock()) return found;
  slot = function;
  return function;
}

CacheEvent Kernels::warm(const jit::Source& source) {
  CacheEvent event;
  try {
    auto function = get(source, &event);
    std::lock_guard lock(mutex_);
    kept_.emplace(source.text, std::move(function));
  } catch (const std::exception& error) { event.layer = CacheLayer::kNone, event.error = error.what(); }
  if (event.key.empty()) event.key = key_of(source, driver_.info().arch, driver_.options()).digest();
  event.kernel = source.name, event.target = driver_.info().arch;
  return event;
}

std::shared_ptr<const Function> Kernels::keep(const jit::Source& source) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = kept_.find(source.text); at != kept_.end()) {
      cache_.count_memory_hit();
      return at->second;
    }
  }
  auto function = get(source);
  std::lock_guard lock(mutex_);
  return kept_.emplace(source.text, std::move(function)).first->second;
}

std::vector<std::shared_ptr<const Function>> Kernels::get_all(const std::vector<jit::Source>& sources) {
  std::vector<std::shared_ptr<const Function>> functions(sources.size());
  run_jobs(sources.size(), static_cast<std::size_t>(usable_threads()),
           [&](std::size_t i) { functions[i] = get(sources[i]); });
  return functions;
}

}  // namespace q4::gpu
