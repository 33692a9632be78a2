// Dividing work: tensor-parallel slices of shapes, and shards of a list of shapes.
#pragma once

#include <string>
#include <vector>

#include "autotune/workload.hpp"

namespace q4::tools {

/// What one of `degree` ranks holds of a matrix, by the layer that its label names last. Column-parallel: n / degree
/// (qkv, q, k, v, gate_up, gate, up, lm_head, with or without _proj; w1, w3). Row-parallel: k / degree (o, down,
/// out_proj, w2), where the scales of a group are not divided. Throws kInvalidArgument for another layer, and for what
/// does not divide.
autotune::Problem tensor_parallel(const autotune::Problem& problem, int degree);

/// One of `count` parts of a list, by a hash of what is measured: it depends on neither the list nor the machine.
struct Shard {
  int index = 0, count = 1;
  /// "0/8": 0 <= index < count, as SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX count. Throws kInvalidArgument.
  static Shard parse(const std::string& text);
  bool holds(const autotune::Problem& problem, DType activation) const;
};

}  // namespace q4::tools
