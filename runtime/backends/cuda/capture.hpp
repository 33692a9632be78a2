// A graph of the driver with two events around it: DeviceBackend::capture().
#pragma once

#include <functional>
#include <memory>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/cuda/api.hpp"

namespace q4::cuda {

/// On a stream of its own. What `work` throws is thrown.
std::unique_ptr<CapturedWork> capture(std::shared_ptr<const Api> api, Context context,
                                      const std::function<void(void* stream)>& work);

}  // namespace q4::cuda
