// What the parts of one Runtime share: options, the log, the kernel cache.
#pragma once

#include <memory>
#include <q4/runtime.hpp>
#include <string>

#include "runtime/base/seal.hpp"

namespace q4 {

namespace cache {
class KernelCache;
}

struct BackendContext {
  RuntimeOptions options;  ///< with the log callback filled in
  cache::KernelCache* cache = nullptr;
  std::shared_ptr<Seal> seal = std::make_shared<Seal>();

  void log(LogLevel level, const std::string& text) const {
    if (options.log) options.log(level, text);
  }
};

}  // namespace q4
