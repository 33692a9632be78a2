// PyTorch's threads for the work of the CPU backend.
#pragma once

#include <q4/runtime.hpp>

namespace q4::python {

/// Runs tasks on the OpenMP threads that torch uses, where this process has loaded torch; else empty. torch's threads
/// spin for milliseconds after each operation, on the cores that threads of our own would need. At most as many are used
/// as torch.set_num_threads() says. $Q4_TORCH_THREADS=0: empty.
ParallelFor torch_threads();

}  // namespace q4::python
