// What plans, Runtime::warmup and Runtime::numerics_id do alike with arguments and options, before anything is planned or run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/matmul.hpp>
#include <q4/tuning.hpp>
#include <q4/warmup.hpp>
#include <vector>

#include "runtime/backends/experts.hpp"

namespace q4 {

/// The range of memory that `m` rows span.
struct Span {
  std::uintptr_t begin, end;
};
Span span_of(const void* data, std::int64_t stride, std::int64_t cols, std::int64_t m, std::size_t size);

/// Checks one of x and out, `m` rows of `cols` elements; returns the row stride.
std::int64_t check_rows(const char* call, const char* name, const void* data, std::int64_t stride, std::int64_t cols,
                        std::int64_t m, std::size_t alignment, std::int64_t stride_multiple);

/// Throws kInvalidArgument for options that no plan accepts.
void check_options(const PlanOptions& options, Device device);

/// The tuning record that a plan of this matrix follows; null: none, or none of these kernels. See
/// Runtime::Impl::tuned.
const TuningRecord* find_tuned(const Runtime& runtime, const DeviceBackend& device, std::int64_t k, std::int64_t n,
                               std::int64_t group_size, bool act_order, const PlanOptions& options);

/// `shape` as a matrix that a plan with `options` can multiply by: of pairs where its activation is of gates and ups.
MatrixShape planned_shape(const WarmupShape& shape, const PlanOptions& options);

/// Each shape of the matrices that can be loaded, once.
std::vector<WarmupShape> warmup_shapes(const Checkpoint& checkpoint);
/// Each kind of layers of experts once, in plans with as many tokens and the type that `options` say; none where the
/// checkpoint does not say how many experts a token has.
std::vector<WarmupExperts> warmup_layers(const Checkpoint& checkpoint, const PlanOptions& options);
/// W13 and W2 of a layer, checked with its plan's options.
struct PlannedExperts {
  ExpertsShape w13, w2;
};
PlannedExperts planned_experts(const WarmupExperts& layer, Device device);

}  // namespace q4
