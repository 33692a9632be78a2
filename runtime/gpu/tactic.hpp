// A tactic: one way to multiply on a GPU, as text in tuning files and as a choice here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/gpu/driver.hpp"
#include "runtime/gpu/matrix.hpp"
#include "runtime/jit/kernel_table.hpp"

namespace q4::gpu {

/// "gemv half2=1 rows=1 ...", "remap+decode tiles=2 ..." (x is permuted, or copied to rows of whole lines, by a kernel
/// of its own first), "reconstruct+blas".
struct Tactic {
  bool remap = false;                         ///< x first goes through the remap kernel
  const jit::MatmulKernel* kernel = nullptr;  ///< null: reconstruct + BLAS
  jit::Values values;

  std::string str() const;
  /// Throws kInvalidArgument with what was not understood.
  static Tactic parse(const std::string& text);
  friend bool operator==(const Tactic&, const Tactic&) = default;
};

/// What the kernels are compiled for under this tactic.
Problem make_problem(const Matrix& matrix, bool bf16, const Tactic& tactic);

/// Whether it can run at this m on such a device.
bool usable(const Tactic& tactic, const Matrix& matrix, bool bf16, std::int64_t m, const Limits& limits);

/// What runs when nothing was measured: rules over shape and device, best first by experience on an H200.
/// `direct`: never reconstruct + BLAS.
Tactic default_tactic(const Matrix& matrix, const PlanOptions& options, std::int64_t m, const Limits& limits,
                      bool direct);

/// The tuner's search space for this m, the default first. Reconstruct + BLAS is last.
std::vector<Tactic> all_tactics(const Matrix& matrix, const PlanOptions& options, std::int64_t m, const Limits& limits);

}  // namespace q4::gpu
