// From a backend's UnpackedSource to the tensors that a matrix was made of.
#pragma once

#include <q4/matrix.hpp>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// `zeros`: the format that was applied, in which they are written again. The g_idx is the source's own.
UnpackedMatrix to_unpacked(UnpackedSource plain, const MatrixShape& shape, ZeroFormat zeros);

}  // namespace q4
