// A graph of the HIP runtime with two events around it: DeviceBackend::capture().
#pragma once

#include <functional>
#include <memory>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/hip/api.hpp"

namespace q4::hip {

/// On a stream of its own. What `work` throws is thrown.
std::unique_ptr<CapturedWork> capture(std::shared_ptr<const Api> api, int ordinal,
                                      const std::function<void(void* stream)>& work);

}  // namespace q4::hip
