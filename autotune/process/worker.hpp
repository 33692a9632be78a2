// The process in which tactics run, so that one which crashes or hangs takes nothing else with it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

namespace q4::autotune {

/// Memory that a worker shares with its supervisor: readable after the worker's death, and writing it disturbs no
/// measurement.
struct Board {
  std::atomic<std::int64_t> deadline_ms;  ///< on the monotonic clock; past it, the worker is hung. 0: none
  std::atomic<int> stop;                  ///< set by the supervisor: end soon, with what is done
  std::atomic<std::int64_t> m;
  std::atomic<std::int64_t> since_ms;  ///< when what runs began
  std::atomic<std::int64_t> runs;      ///< how often it multiplies at most; 0: it also compiles and allocates
  char tactic[1024];                   ///< what runs, or ran; empty: something else than a tactic
};
static_assert(std::atomic<std::int64_t>::is_always_lock_free);

std::int64_t monotonic_ms();

/// Descriptors of a worker: one end of a socket pair, and the board.
constexpr int kWorkerSocket = 3, kWorkerBoard = 4;
constexpr const char* kWorkerArgument = "--worker";

/// main() of `q4-autotune --worker DEVICE SECONDS`; a tactic gets SECONDS for a launch, and more for more arithmetic.
/// For tests and drills, $Q4_AUTOTUNE_FAULT makes it fail in earnest before the first launch of one tactic:
/// abort:TACTIC, hang:TACTIC; or, before or while something else is done, hang-at:open, hang-at:STAGE where STAGE is
/// the beginning of a progress report's text ("packing", "m = 64", "compiling", "crossover", "dense").
int worker_main(const std::string& device, double launch_s);

}  // namespace q4::autotune
