// Calls libsodium's crypto_sign (doc.libsodium.org/public-key_cryptography/public-key_signatures), opened with dlopen.
#include "runtime/cache/signature.hpp"

#include <algorithm>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/base/library.hpp"

namespace q4::cache {
namespace {

constexpr std::size_t kSecretBytes = 64;  // the seed, and the public key after it

using Byte = unsigned char;
struct Sodium {
  Library library{"Q4_SODIUM", {"libsodium.so.23", "libsodium.so.26", "libsodium.so"}, {}};
  int (*init)() = nullptr;
  int (*keypair)(Byte* public_key, Byte* secret) = nullptr;
  int (*sign)(Byte* signature, unsigned long long* size, const Byte* data, unsigned long long, const Byte*) = nullptr;
  int (*verify)(const Byte* signature, const Byte* data, unsigned long long, const Byte* public_key) = nullptr;
  std::string problem;

  Sodium() {
    const bool bound = library && library.bind(init, "sodium_init") && library.bind(keypair, "crypto_sign_keypair") &&
                       library.bind(sign, "crypto_sign_detached") &&
                       library.bind(verify, "crypto_sign_verify_detached") && init() >= 0;
    if (!bound) problem = "no libsodium: " + (library ? "it does not start" : library.problem());
  }
};
const Sodium& sodium() {
  static const Sodium opened;
  return opened;
}
const Sodium& required_sodium() {
  const auto& opened = sodium();
  if (!opened.problem.empty())
    fail(ErrorCode::kUnsupported, "signing packs: {}; install libsodium (Debian: libsodium23)", opened.problem);
  return opened;
}

const Byte* bytes(std::string_view text) { return reinterpret_cast<const Byte*>(text.data()); }
Byte* bytes(std::string& text) { return reinterpret_cast<Byte*>(text.data()); }

int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

}  // namespace

std::string bytes_of_hex(std::string_view hex) {
  std::string result;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    if (digit(hex[i]) < 0 || digit(hex[i + 1]) < 0) return {};
    result += static_cast<char>(digit(hex[i]) << 4 | digit(hex[i + 1]));
  }
  return hex.size() % 2 ? std::string() : result;
}

std::string hex_of_bytes(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<Byte>(c));
  return text;
}

std::string signing_problem() { return sodium().problem; }

SigningKeys make_signing_keys() {
  const auto& calls = required_sodium();
  std::string secret(kSecretBytes, '\0'), public_key(kPublicBytes, '\0');
  if (calls.keypair(bytes(public_key), bytes(secret)) != 0)
    fail(ErrorCode::kInternal, "crypto_sign_keypair failed: no randomness?");
  return {hex_of_bytes(secret), hex_of_bytes(public_key)};
}

std::string sign(std::string_view data, const std::string& secret) {
  const auto& calls = required_sodium();
  const std::string key = bytes_of_hex(secret);
  check(key.size() == kSecretBytes, "the signing key is no Ed25519 secret key: {} hex digits, {} expected",
        secret.size(), 2 * kSecretBytes);
  std::string signature(kSignatureBytes, '\0');
  if (calls.sign(bytes(signature), nullptr, bytes(data), data.size(), bytes(key)) != 0)
    fail(ErrorCode::kInternal, "crypto_sign_detached failed");
  return signature + key.substr(kSecretBytes - kPublicBytes);
}

std::string signature_problem(std::string_view data, std::string_view signed_by, const std::string& public_key) {
  const std::string key = bytes_of_hex(public_key);
  if (key.size() != kPublicBytes)
    return fmt::format("the configured public key '{}' is no Ed25519 key: {} hex digits expected", public_key,
                       2 * kPublicBytes);
  if (signed_by.size() != kSignatureBytes + kPublicBytes ||
      std::all_of(signed_by.begin(), signed_by.end(), [](char c) { return c == 0; }))
    return "it is not signed, and a public key is configured";
  if (!signing_problem().empty()) return fmt::format("its signature cannot be checked: {}", signing_problem());
  if (const auto by = signed_by.substr(kSignatureBytes); by != key)
    return fmt::format("it is signed by {}, not by {}", hex_of_bytes(by), public_key);
  if (sodium().verify(bytes(signed_by), bytes(data), data.size(), bytes(key)) != 0)
    return "its signature does not match its content";
  return {};
}

}  // namespace q4::cache
