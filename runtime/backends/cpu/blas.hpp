// A packaged BLAS that is worth using, opened at first need: OpenBLAS, or another with a fast cblas_sgemm. Its absence
// is not an error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace q4::cpu {

struct Blas {
  std::string name;  ///< the library that was opened, or why there is none and the remedy
  bool available = false;

  /// c[m, n] = a[m, k] b[k, n], row-major with leading dimensions.
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda, const float* b,
                std::int64_t ldb, float* c, std::int64_t ldc) const;

  void (*sgemm)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*,
                int) = nullptr;
};

/// $Q4_BLAS names a library; else libopenblas.so.0, then libblas.so.3. Opened once for the process and never closed:
/// OpenBLAS keeps threads. Everything that uses a BLAS on the CPU uses this one.
const Blas& blas();

/// The first of `names` that can be used. Passed over, with the reason in `name` if no other serves: netlib's reference
/// BLAS (its sums over a long k miss the fp32 tolerance, and it is slower than a plain loop), whatever else is no
/// faster than a plain loop or gives wrong products, and a BLAS whose integers have 64 bits.
Blas open_blas(const std::vector<std::string>& names);

}  // namespace q4::cpu
