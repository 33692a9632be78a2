// How a test says that it could not run here: shown as skipped, never as passed.
#pragma once

#include <string>

namespace q4::test {

/// By how much limits of time are wider under a sanitizer.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr int kSlower = 10;
#else
inline constexpr int kSlower = 1;
#endif

/// Records a reason; the binary prints it at the end, and CTest marks the file's entry as skipped if nothing failed.
/// The caller returns right after.
void skip(const std::string& reason);

}  // namespace q4::test
