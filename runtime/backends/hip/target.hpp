// The AMD processors that q4 compiles for: one row each. Nothing is compiled for what is not in the table.
#pragma once

#include <string>
#include <vector>

namespace q4::hip {

/// The oldest clang that serves any target, and the newest that is looked for by its number. clang 14 accepts gfx908
/// and then fails within the kernels: it guesses another wave size for builtins of the matrix cores.
constexpr int kOldestClang = 17, kNewestClang = 25;

/// The instructions that multiply tiles (kernels/mma_tile.h).
enum class MatrixCore { kNone, kMfma, kWmma };

struct Target {
  const char* name;      ///< "gfx90a", without features: its code runs with every setting of sramecc and xnack
  const char* products;  ///< examples
  int wave;              ///< lanes that run together
  int lds_bytes;         ///< shared memory of a block
  MatrixCore matrix;
  int hiprtc_since;  ///< first ROCm whose hipRTC knows it, 502 for 5.2: an older one aborts the process
  int clang_since;   ///< first clang that compiles q4's kernels for it: kOldestClang or later
  int units;         ///< of the first of `products`, for cross compiling
};

const std::vector<Target>& targets();

/// The row of "gfx90a" or "gfx90a:sramecc+:xnack-"; null if there is none. HIP's NVIDIA platform, on which the host
/// code is tested, has an unlisted row.
const Target* find_target(const std::string& arch);
/// "gfx906, gfx908, ..."
std::string target_names();

}  // namespace q4::hip
