// What a g_idx means: the one rule for tensors, checkpoints and warm-up.
#pragma once

#include <cstdint>
#include <q4/device.hpp>
#include <string>
#include <vector>

namespace q4 {

struct GroupIndex {
  std::vector<std::int32_t> rows;  ///< [k] group of each row; empty: no act-order, row r is in group r / group_size
  std::string note;                ///< what was unusual, for the log; empty: nothing
};

/// `data`: k contiguous elements of kI32 or kI64 on the host. No act-order: r / group_size for every row, or (with
/// several groups) 0 for every row or -1 for every row, which tools write for an unset g_idx; the latter are noted. Any
/// other value outside [0, groups) is a kInvalidArgument that names the row; `call` begins its text.
GroupIndex read_group_index(const char* call, DType type, const void* data, std::int64_t k, std::int64_t group_size,
                            std::int64_t groups);

}  // namespace q4
