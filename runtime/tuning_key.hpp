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

}  // namespace q4
