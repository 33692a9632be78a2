// A packaged BLAS, opened at first need: OpenBLAS, or whatever provides cblas_sgemm. Its absence is no error.
#pragma once

#include <cstdint>
#include <string>

namespace q4::cpu {

struct Blas {
  std::string name;  ///< the library that was opened, or why there is none
  bool available = false;

  /// c[m, n] = a[m, k] b[k, n], row-major with leading dimensions.
  void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda, const float* b,
                std::int64_t ldb, float* c, std::int64_t ldc) const;

  void (*sgemm)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*,
                int) = nullptr;
};

/// $Q4_BLAS names a library; else libopenblas.so.0, then libblas.so.3. Opened once for the process and never closed:
/// OpenBLAS keeps threads.
const Blas& blas();

}  // namespace q4::cpu
