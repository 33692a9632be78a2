// SHA-256 (FIPS 180-4), for content-derived keys and file checks.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace q4::cache {

class Sha256 {
 public:
  Sha256& update(const void* data, std::size_t size);
  /// Length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
  Sha256& field(std::string_view text);
  std::array<std::uint8_t, 32> digest();  ///< finishes; the object is spent
  std::string hex();                      ///< digest() as 64 lower-case hex digits

 private:
  void block(const std::uint8_t* data);

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> pending_{};
  std::uint64_t total_ = 0;
};

}  // namespace q4::cache
