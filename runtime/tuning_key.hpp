// What a tuning record is filed under, for whoever writes or looks for one.
#pragma once

#include <cstdint>
#include <q4/device.hpp>
#include <q4/tuning.hpp>
#include <string>

namespace q4 {

/// Raise when the tuner searches or measures otherwise, so that records of before are stale.
constexpr int kSearchVersion = 1;
/// TuningKey::kernels of what is measured on a device now, from its kernels_digest().
inline std::string tuning_digest(const std::string& kernels_digest) {
  return kernels_digest + "/" + std::to_string(kSearchVersion);
}

/// `kernels` as tuning_digest() gives it. Plans look for the policy "cold".
inline TuningKey tuning_key(const DeviceInfo& info, const std::string& kernels, std::int64_t k, std::int64_t n,
                            std::int64_t group, bool act_order, DType activation, const std::string& policy = "cold",
                            const std::string& epilogue = {}) {
  return {info.fingerprint, info.arch, info.compute_units, k, n, group, act_order, activation, policy,
          kernels,          epilogue};
}

/// TuningKey::epilogue of a layer of experts. Its k is that of W13, its n that of W2, m counts tokens, and a tactic names
/// one for either product. The activation between them is not told apart: it moves times by little.
inline std::string experts_text(std::int64_t experts, std::int64_t topk, std::int64_t width) {
  return "experts=" + std::to_string(experts) + " topk=" + std::to_string(topk) + " width=" + std::to_string(width);
}
inline bool is_of_experts(const TuningKey& key) { return key.epilogue.starts_with("experts="); }

}  // namespace q4
