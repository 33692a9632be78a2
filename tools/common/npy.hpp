// NumPy's .npy files, as far as rows of activations need them.
// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/device.hpp>
#include <string>
#include <vector>

namespace q4::tools {

/// A C-ordered array. fp16 is '<f2', fp32 '<f4'. NumPy has no bf16: arrays of ml_dtypes.bfloat16 are written as '<V2',
/// and
/// '|V2' and '<u2' (the bits as uint16, as torch's view(torch.uint16) gives them) are read as bf16 too.
struct NpyArray {
  DType dtype = DType::kF16;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;

  std::int64_t rows() const;  ///< all extents but the last multiplied; 1 for a vector
  std::int64_t cols() const;  ///< the last extent; 1 for a scalar
};

/// Throws kNotFound, kIo, kCorrupt, or kUnsupported (other types, big-endian, Fortran order) with the remedy.
NpyArray read_npy(const std::string& path);
/// bf16 is written as '<V2': np.load(path).view(ml_dtypes.bfloat16). Throws kIo; an incomplete file is removed.
void write_npy(const std::string& path, const NpyArray& array);

}  // namespace q4::tools
