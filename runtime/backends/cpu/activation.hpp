// What stands between the two matrices of an expert, for a row of a tile in fp32.
#pragma once

#include <q4/moe.hpp>

namespace q4::cpu {

struct Activation {
  MoeActivation kind = MoeActivation::kNone;
  float alpha = 0, limit = 0;

  bool gated() const { return kind != MoeActivation::kNone; }
  /// gate[i] = act(gate[i]) * up[i] for `count` values. A NaN of either stays one.
  void multiply(float* gate, const float* up, int count) const;
};

}  // namespace q4::cpu
