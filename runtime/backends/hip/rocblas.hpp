// Dense GEMM through rocBLAS, opened at first need. rocBLAS and not hipBLAS or hipBLASLt: rocblas_gemm_ex has had one
// ABI since ROCm 3, hipBLAS only forwards to it, and it picks hipBLASLt's kernels itself where they are better.
#pragma once

#include <memory>
#include <mutex>

#include "runtime/backends/hip/api.hpp"
#include "runtime/base/library.hpp"
#include "runtime/gpu/driver.hpp"

namespace q4::hip {

/// One handle, of the device that was current when it was made. Thread-safe: calls take turns, since the stream belongs
/// to the handle.
class Rocblas {
 public:
  Rocblas();  ///< librocblas.so.5, .4, .0 ($Q4_ROCBLAS); never throws
  ~Rocblas();

  const std::string& problem() const { return problem_; }  ///< empty: usable
  const std::string& path() const { return library_.path(); }
  /// `self` keeps the handle alive as long as the product.
  static std::unique_ptr<gpu::Gemm> gemm(std::shared_ptr<const Rocblas> self, std::shared_ptr<const Api> api,
                                         int ordinal, const gpu::GemmShape& shape);

 private:
  friend class RocblasGemm;

  Library library_;
  std::string problem_;
  void* handle_ = nullptr;
  mutable std::mutex mutex_;
  int (*create_)(void**) = nullptr;
  int (*destroy_)(void*) = nullptr;
  int (*stream_)(void*, void*) = nullptr;
  int (*gemm_)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
               const void*, int, int, void*, int, int, int, int, std::int32_t, std::uint32_t) = nullptr;
};

}  // namespace q4::hip
