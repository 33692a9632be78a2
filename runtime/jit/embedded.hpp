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

/// SHA-256 over the headers that `text` includes, directly or through others, and nothing else: names and texts. A part
/// of each kernel's key. A header that does not exist counts by its name.
std::string included_digest(const std::string& text, const std::vector<EmbeddedHeader>& headers);
/// The same of the embedded headers: of a generated source, and of one header. Remembered, and thread-safe.
std::string headers_digest(const std::string& source_text);
std::string header_digest(const std::string& header);
/// Digest of the CPU backend, whose kernels are compiled with the library.
const char* cpu_sources_digest();

}  // namespace q4::jit
