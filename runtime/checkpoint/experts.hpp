// What a checkpoint says of its mixtures of experts.
#pragma once

#include <cstdint>
#include <string>

namespace q4::checkpoint {

/// Experts of a token: num_experts_per_tok of the folder's config.json, at any depth; 0: it does not say.
std::int64_t experts_per_token(const std::string& folder);

}  // namespace q4::checkpoint
