// Dense GEMM through cuBLASLt, opened at first need.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/base/library.hpp"
#include "runtime/gpu/driver.hpp"

namespace q4::cuda {

/// One handle; it belongs to the context that was current when it was made. Thread-safe.
class CublasLt {
 public:
  CublasLt();  ///< libcublasLt.so.13, then .12 ($Q4_CUBLASLT); never throws
  ~CublasLt();

  const std::string& problem() const { return problem_; }  ///< empty: usable
  std::string version() const;
  /// `self` keeps the library's handle alive as long as the product.
  static std::unique_ptr<gpu::Gemm> gemm(std::shared_ptr<const CublasLt> self, const gpu::GemmShape& shape);

 private:
  friend class LtGemm;

  Library library_;
  std::string problem_;
  void* handle_ = nullptr;
  std::size_t (*version_)() = nullptr;
  int (*create_)(void**) = nullptr;
  int (*destroy_)(void*) = nullptr;
  int (*desc_init_)(void*, std::size_t, int, int) = nullptr;
  int (*desc_set_)(void*, int, const void*, std::size_t) = nullptr;
  int (*layout_init_)(void*, std::size_t, int, std::uint64_t, std::uint64_t, std::int64_t) = nullptr;
  int (*preference_create_)(void**) = nullptr;
  int (*preference_set_)(void*, int, const void*, std::size_t) = nullptr;
  int (*preference_destroy_)(void*) = nullptr;
  int (*heuristic_)(void*, void*, void*, void*, void*, void*, void*, int, void*, int*) = nullptr;
  int (*matmul_)(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                 void*, void*, const void*, void*, std::size_t, void*) = nullptr;
};

}  // namespace q4::cuda
