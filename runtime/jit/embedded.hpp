// The kernel headers, as they were when the library was built.
#pragma once

#include <string>
#include <vector>

namespace q4::jit {

struct EmbeddedHeader {
  const char* name;  ///< "gemv.h": how generated source includes it
  const char* text;
};

/// Sorted by name.
const std::vector<EmbeddedHeader>& embedded_headers();

/// SHA-256 over all of them, names and texts: a part of every kernel's key, and what a tuning record was measured with.
const std::string& headers_digest();
/// The same of the CPU backend, whose kernels are compiled with the library.
const char* cpu_sources_digest();
std::string digest_of(const std::vector<EmbeddedHeader>& headers);

}  // namespace q4::jit
