// Tunes a layer of experts: the tactics of both products for each number of tokens.
#pragma once

#include "autotune/tuner.hpp"

namespace q4::autotune {

/// What tune() does for a problem of experts, with uniform routings: first every tactic of one product beside the default
/// of the other, then the best of both together.
Tuned tune_experts(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options);

}  // namespace q4::autotune
