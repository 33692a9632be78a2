// What a LoraAdapters handle points to.
#pragma once

#include <memory>
#include <q4/lora.hpp>
#include <vector>

#include "runtime/backends/adapters.hpp"
#include "runtime/backends/backend.hpp"

namespace q4 {

class [[gnu::visibility("hidden")]] LoraAdapters::Impl {
 public:
  Runtime runtime;  ///< keeps backends alive
  std::shared_ptr<DeviceBackend> device;
  std::unique_ptr<AdapterTable> table;
  std::vector<std::int64_t> ranks;
};

}  // namespace q4
