// Runs kernels on the host: every lane is a fiber or a thread, blocks one after the other, shared memory starts as
// NaNs.
//
// kernels/device.h only declares its functions for a C++ compiler; the files of this folder define them, so that a test
// that links them can call `gemv<C>(args)` inside emulate(). Fibers are fast, deterministic and find lanes that wait
// for each other in vain. Threads show ThreadSanitizer every access, so a missing barrier becomes its report.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>

namespace q4::emulation {

enum class Engine { kFibers, kThreads };
/// Threads in a build with ThreadSanitizer (which cannot follow fibers), else fibers.
Engine default_engine();

struct Launch {
  std::int64_t grid = 1;  ///< blocks
  int threads = 32;       ///< lanes of a block, a multiple of 32
  int shared_bytes = 0;
  int warp = 32;    ///< lanes that sync_warp() joins, 32 or 64; shuffles are among 32 either way
  int cluster = 1;  ///< blocks that run at the same time
  Engine engine = default_engine();
};

/// What a kernel did that a GPU would not survive: lanes that wait at different barriers, or for one that has returned;
/// writes past the end of shared memory.
class EmulationError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Calls `kernel` once a lane of every block. Under fibers an exception of a lane, or EmulationError, comes out here;
/// under threads it ends the process, and a lane that waits for ever is the test's timeout.
void emulate(const Launch& launch, const std::function<void()>& kernel);

}  // namespace q4::emulation
