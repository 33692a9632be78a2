// Finds, compiles and loads kernels.
#include "runtime/gpu/kernels.hpp"

#include <algorithm>
#include <future>
#include <thread>

#include "runtime/jit/embedded.hpp"

namespace q4::gpu {

std::shared_ptr<const Function> Kernels::get(const jit::Source& source) {
  {
    std::lock_guard lock(mutex_);
    const auto at = loaded_.find(source.text);
    if (at != loaded_.end())
      if (auto found = at->second.lock()) return found;
  }
  const cache::KernelKey key{source.name,         source.text,       jit::headers_digest(),
                             driver_.info().arch, driver_.options(), [this] { return driver_.compiler(); }};
  const auto code = cache_.get(key, [&] { return driver_.compile(source); });
  std::shared_ptr<const Function> function = driver_.load(code, source.name);
  std::lock_guard lock(mutex_);
  std::erase_if(loaded_, [](const auto& entry) { return entry.second.expired(); });
  auto& slot = loaded_[source.text];
  if (auto found = slot.lock()) return found;
  slot = function;
  return function;
}

std::shared_ptr<const Function> Kernels::keep(const jit::Source& source) {
  auto function = get(source);
  std::lock_guard lock(mutex_);
  return kept_.emplace(source.text, std::move(function)).first->second;
}

std::vector<std::shared_ptr<const Function>> Kernels::get_all(const std::vector<jit::Source>& sources) {
  std::vector<std::future<std::shared_ptr<const Function>>> pending;
  const std::size_t workers = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::shared_ptr<const Function>> functions;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    pending.push_back(std::async(std::launch::async, [this, &source = sources[i]] { return get(source); }));
    if (pending.size() - functions.size() >= workers) functions.push_back(pending[functions.size()].get());
  }
  while (functions.size() < pending.size()) functions.push_back(pending[functions.size()].get());
  return functions;
}

}  // namespace q4::gpu
