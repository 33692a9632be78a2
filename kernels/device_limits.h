// What one device offers. It includes nothing: most of the host's code needs no more of a kernel than this.
#pragma once

namespace q4 {

/// What one device offers a config.
struct Limits {
  int arch = 0;              ///< CUDA: 75, 80, 90, ...; HIP: 0
  int units = 1;             ///< SMs or CUs
  int shared_bytes = 49152;  ///< of one block
  int registers = 65536;     ///< of one SM
};

}  // namespace q4
