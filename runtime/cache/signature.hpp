// Ed25519 signatures of packs, by libsodium where it is installed: opened at first need, so that q4 links without it.
#pragma once

#include <string>
#include <string_view>

namespace q4::cache {

inline constexpr std::size_t kPublicBytes = 32, kSignatureBytes = 64;

/// Both in hex: 128 and 64 digits.
struct SigningKeys {
  std::string secret, public_key;
};

/// Empty text if signatures can be made and checked here; else why not ($Q4_SODIUM names another libsodium).
std::string signing_problem();
/// Throws kUnsupported without libsodium.
SigningKeys make_signing_keys();
/// The signature's kSignatureBytes, and the public key's kPublicBytes after them. Throws kUnsupported without
/// libsodium, kInvalidArgument if `secret` is no key.
std::string sign(std::string_view data, const std::string& secret);
/// Empty text if `signed_by` (what sign() gave) is this data's signature by `public_key` (hex); else what is wrong.
/// Without libsodium something always is.
std::string signature_problem(std::string_view data, std::string_view signed_by, const std::string& public_key);

/// Hex digits as bytes; empty for anything else.
std::string bytes_of_hex(std::string_view hex);
std::string hex_of_bytes(std::string_view bytes);

}  // namespace q4::cache
