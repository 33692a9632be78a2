// What a build in which the emulation runs lanes as threads leaves out, and says so.
#pragma once

#include <string>

#include "report.hpp"
#include "tests/emulation/emulation.hpp"

namespace q4::test {

inline const bool kThreads = emulation::default_engine() == emulation::Engine::kThreads;

/// True, and `what` is reported as skipped, where lanes are threads (ThreadSanitizer), which are slow.
inline bool skipped_on_threads(const std::string& what = "further shapes") {
  if (kThreads) skip(what + ": lanes are threads in this build");
  return kThreads;
}

}  // namespace q4::test
