// The quantized matrices among a checkpoint's tensors: which belong together, and whether their shapes agree.
#pragma once

#include <optional>
#include <q4/checkpoint.hpp>
#include <string>
#include <vector>

#include "runtime/checkpoint/config.hpp"
#include "runtime/checkpoint/files.hpp"

namespace q4::checkpoint {

/// The tensors of one matrix, all shapes and dtypes checked; or, where entry.unsupported is not empty, what is known.
struct Matrix {
  MatrixEntry entry;
  ErrorCode code = ErrorCode::kUnsupported;  ///< of entry.unsupported
  Located qweight, qzeros, scales;           ///< qzeros.tensor is null where every zero is 8 and none is stored
  Located g_idx, bias;                       ///< tensor is null when absent
};

struct Matrices {
  QuantConfig config;
  std::vector<Matrix> list;  ///< sorted by name, numbers in numeric order
};

/// Every prefix with a qweight. `claimed` is checked against the shapes and fills in what they leave open; without it
/// everything comes from the shapes. A matrix that cannot be loaded is listed with the reason.
Matrices find_matrices(const FileSet& files, const std::optional<ClaimedConfig>& claimed);

/// "F16" as the public type, nothing for a type that DType has not.
std::optional<DType> public_type(const std::string& dtype);

}  // namespace q4::checkpoint
