// PyTorch's threads for the work of the CPU backend.
#pragma once

#include <q4/runtime.hpp>

namespace q4::python {

/// With $Q4_TORCH_THREADS=1, where this process has loaded torch: runs tasks on the OpenMP threads that torch uses, at
/// most as many as torch.set_num_threads() says. Else empty. torch's threads spin for milliseconds after each operation,
/// on the cores that threads of our own would need; but each job waits for the whole team, also for a thread that has no core.
ParallelFor torch_threads();

}  // namespace q4::python
