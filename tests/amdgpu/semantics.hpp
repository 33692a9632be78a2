// What each instruction does: one table, in four parts.
#pragma once

#include <string>
#include <unordered_map>

#include "tests/amdgpu/wave.hpp"

namespace q4::amdgpu {

using Table = std::unordered_map<std::string, Execute>;

void add_scalar(Table& table);
void add_integer(Table& table);
void add_real(Table& table);
void add_memory(Table& table);
void add_matrix(Table& table);

/// Sets `execute` of the instruction and of its second half. Throws std::runtime_error for a name that is not in the
/// table: nothing is ever skipped.
void resolve(Instruction& instruction);

/// Runs `body(lane)` for each active lane.
template <class Body>
void each_lane(Wave& w, const Body& body) {
  const u64 exec = w.mask(kExec);
  for (int lane = 0; lane < w.lanes; ++lane)
    if (exec >> lane & 1) body(lane);
}

}  // namespace q4::amdgpu
