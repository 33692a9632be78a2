// Replays graphs, or calls.
#include "autotune/stopwatch.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

namespace q4::autotune {
namespace {

using Microseconds = std::chrono::duration<double, std::micro>;

// Long work reaches the power limit, and what runs next would pay for it: everything timed here starts rested.
constexpr double kRestAfterUs = 500;
constexpr double kRestShare = 10;  // times as long as the work
constexpr Microseconds kRestMost{60e3};

}  // namespace

std::vector<double> time_runs(DeviceBackend& device, const std::function<void(void* stream)>& work, int runs) {
  std::vector<double> times;
  times.reserve(static_cast<std::size_t>(std::max(runs, 0)));
  if (const auto captured = device.capture(work)) {
    for (int run = -1; run < runs; ++run) {
      const double us = captured->replay();
      if (run >= 0) times.push_back(us);
      if (us > kRestAfterUs) std::this_thread::sleep_for(std::min(kRestMost, kRestShare * Microseconds(us)));
    }
    return times;
  }
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    work(nullptr);
    times.push_back(Microseconds(std::chrono::steady_clock::now() - start).count());
  }
  return times;
}

}  // namespace q4::autotune
