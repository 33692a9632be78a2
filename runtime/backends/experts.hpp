// What a backend provides for mixtures of experts: packed experts, and plans over them. include/q4/moe.hpp says what
// they compute.
#pragma once

#include <cstdint>
#include <q4/moe.hpp>
#include <string>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// What all experts of one allocation share. `mapped` and `act_order`: of one at least; `packed_k`: the most of any.
struct ExpertsShape : MatrixShape {
  std::int64_t experts = 0;
};

/// Experts in a backend's own layout and memory; made without content.
class PackedExperts {
 public:
  virtual ~PackedExperts() = default;
  virtual const ExpertsShape& shape() const = 0;
  virtual std::size_t bytes() const = 0;
  /// Weights for one expert, as PackedMatrix::update; each expert gets its first ones so, before any plan is made.
  /// `source` has the shape's numbers, columns as they were given (gate, then up), and a row order that is fitted to the
  /// shape: order.k is packed_k, and order.source is there wherever the shape is mapped.
  virtual void update(std::int64_t expert, const MatrixSource& source, void* stream) = 0;
  virtual UnpackedSource unpack(std::int64_t expert) const = 0;  ///< columns as they were given
};

/// The arguments of one MoePlan::run, already checked: pointers aligned and not null, strides resolved,
/// 1 <= tokens <= max_tokens. `workspace` null: the plan's own.
struct MoeCall {
  void* stream = nullptr;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  const std::int32_t* ids = nullptr;  ///< [tokens, topk] of the model's experts; any value
  const float* weights = nullptr;     ///< [tokens, topk]
  void* out = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t tokens = 0;
  void* workspace = nullptr;
};

/// The same of GroupedPlan: one of `ids` and `offsets` is null.
struct GroupedCall {
  void* stream = nullptr;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  const std::int32_t* ids = nullptr;      ///< [rows]
  const std::int32_t* offsets = nullptr;  ///< [experts + 1]
  void* out = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t rows = 0;
  void* workspace = nullptr;
};

/// A prepared plan; Call is MoeCall or GroupedCall. run() launches and does nothing else.
template <class Call>
class ExpertsPlanBackend {
 public:
  virtual ~ExpertsPlanBackend() = default;
  virtual void run(const Call& call) const = 0;
  virtual std::size_t workspace_bytes() const = 0;
  virtual std::string tactic(std::int64_t rows) const = 0;
  virtual std::vector<std::string> tactics(std::int64_t rows) const = 0;
};
using MoePlanBackend = ExpertsPlanBackend<MoeCall>;
using GroupedPlanBackend = ExpertsPlanBackend<GroupedCall>;

}  // namespace q4
