// How a kernel is launched.
#pragma once

#include <cstdint>

namespace q4 {

struct LaunchShape {
  std::int64_t blocks = 1;
  int threads = 1;
  int shared_bytes = 0;
  int cluster = 1;                ///< blocks of a thread-block cluster
  bool overlap_previous = false;  ///< programmatic dependent launch
};

}  // namespace q4
