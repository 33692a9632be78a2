// What a QuantizedExperts handle points to.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/moe.hpp>
#include <vector>

#include "runtime/backends/experts.hpp"

namespace q4 {

class [[gnu::visibility("hidden")]] QuantizedExperts::Impl {
 public:
  Runtime runtime;  ///< keeps caches and backends alive
  std::shared_ptr<DeviceBackend> device;
  std::shared_ptr<PackedExperts> packed;
  std::vector<ZeroFormat> zeros;  ///< [experts] what was applied

  const ExpertsShape& shape() const { return packed->shape(); }
  Device where() const { return device->info().device; }
};

constexpr std::int64_t kMostExperts = 65536;  ///< of one allocation

/// What every use of a handle begins with.
const QuantizedExperts::Impl& require(const QuantizedExperts& experts, const char* call);

/// Throws kInvalidArgument for options that no MoePlan over such experts accepts.
void check_moe(const char* call, Device device, const ExpertsShape& w13, const ExpertsShape& w2,
               const MoeOptions& options);

/// The tuning record that a MoePlan over such experts follows; null: none, or the options leave nothing to choose.
const TuningRecord* find_tuned(const Runtime& runtime, const DeviceBackend& device, const ExpertsShape& w13,
                               const ExpertsShape& w2, const MoeOptions& options);

}  // namespace q4
