// A tactic: one way to multiply on a GPU, as text in tuning files and as a choice here.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matmul.hpp>
#include <string>
#include <vector>

#include "runtime/choose/epilogue.hpp"
#include "runtime/choose/kernel.hpp"
#include "runtime/choose/shape.hpp"

namespace q4::choose {

/// "gemv half2=1 rows=1 ...", "remap+decode tiles=2 ..." (x is permuted, or copied to rows of whole lines, by a kernel
/// of its own first, or normalized where the plan has a norm), "decode+silu_mul+residual tiles=2 ...", "reconstruct+blas".
struct Tactic {
  bool remap = false;              ///< x first goes through the remap kernel, or that of the norm
  const Kernel* kernel = nullptr;  ///< null: reconstruct + BLAS
  Values values;
  Epilogue epilogue;  ///< of the plan; none with reconstruct + BLAS

  std::string str() const;
  static Result<Tactic> parse(const std::string& text);
  friend bool operator==(const Tactic&, const Tactic&) = default;
};

/// "one | other": of a layer of experts, a tactic for each product; else the text itself.
constexpr const char* kBetweenProducts = " | ";
std::vector<std::string> product_texts(const std::string& text);

/// What the kernels are compiled for under this tactic.
Problem make_problem(const MatrixShape& matrix, bool bf16, const Tactic& tactic);

/// Its kernel, bound, if it can run at this m on such a device; else, and for reconstruct + BLAS, null.
std::shared_ptr<const BoundKernel> bind(const Tactic& tactic, const MatrixShape& matrix, bool bf16, std::int64_t m,
                                        const Limits& limits);
/// Whether it can run at this m on such a device.
bool usable(const Tactic& tactic, const MatrixShape& matrix, bool bf16, std::int64_t m, const Limits& limits);

/// What runs when nothing was measured: rules over shape and device, best first by experience on an H200.
/// `direct`: never reconstruct + BLAS.
Tactic default_tactic(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m, const Limits& limits,
                      bool direct);

/// The tuner's search space for this m, the default first. Reconstruct + BLAS is last.
std::vector<Tactic> all_tactics(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m,
                                const Limits& limits);

}  // namespace q4::choose
