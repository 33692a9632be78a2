// Row-major out = x w as rocBLAS's column-major out^T = w^T x^T.
#include "runtime/backends/hip/rocblas.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

// Values of rocblas-types.h.
constexpr int kNoTranspose = 111, kHalf = 150, kFloat = 151, kBfloat = 168, kStandard = 0;
/// Rows whose bias is written at once: a vector of that many ones is the workspace.
constexpr std::int64_t kOnes = 8192;
constexpr unsigned short kOneHalf = 0x3c00, kOneBfloat = 0x3f80;

}  // namespace

Rocblas::Rocblas()
    : library_("Q4_ROCBLAS", {"librocblas.so.5", "librocblas.so.4", "librocblas.so.0"}, {"/opt/rocm/lib"}) {
  problem_ = library_.problem();
  if (!library_) return;
  const bool bound = library_.bind(create_, "rocblas_create_handle") &&
                     library_.bind(destroy_, "rocblas_destroy_handle") &&
                     library_.bind(stream_, "rocblas_set_stream") && library_.bind(gemm_, "rocblas_gemm_ex");
  problem_ = library_.problem();
  if (bound)
    if (const int status = create_(&handle_); status != 0)
      problem_ = fmt::format("rocblas_create_handle: status {}", status);
}

Rocblas::~Rocblas() {
  if (handle_) destroy_(handle_);
}

class RocblasGemm : public gpu::Gemm {
 public:
  RocblasGemm(std::shared_ptr<const Rocblas> blas, std::shared_ptr<const Api> api, int ordinal,
              const gpu::GemmShape& shape)
      : blas_(std::move(blas)), api_(std::move(api)), ordinal_(ordinal), shape_(shape) {}

  void run(void* stream, std::int64_t m, const void* x, std::int64_t x_stride, const void* w, std::int64_t w_stride,
           void* out, std::int64_t out_stride, const void* bias, void* workspace) const override {
    const Current current(*api_, ordinal_);
    const std::lock_guard lock(blas_->mutex_);
    require(blas_->stream_(blas_->handle_, stream), "rocblas_set_stream");
    // The bias is written first, as bias[n] times one, and the product added to it: one rounding. The columns of a
    // slice of W are w_stride.
    if (bias) {
      api_->check(api_->fill16_async(workspace, shape_.bf16 ? kOneBfloat : kOneHalf,
                                     static_cast<std::size_t>(std::min(m, kOnes)), static_cast<StreamHandle>(stream)),
                  "hipMemsetD16Async");
      for (std::int64_t row = 0; row < m; row += kOnes)
        multiply(w_stride, std::min(kOnes, m - row), 1, bias, w_stride, workspace, 1,
                 static_cast<char*>(out) + row * out_stride * 2, out_stride, 0.f);
    }
    multiply(w_stride, m, shape_.k, w, w_stride, x, x_stride, out, out_stride, bias ? 1.f : 0.f);
  }
  std::size_t workspace_bytes() const override { return kOnes * 2; }

 private:
  static void require(int status, const char* call) {
    if (status != 0)
      fail(ErrorCode::kDevice, "{}: rocBLAS status {}; see rocblas_status, and ROCBLAS_LAYER=1 for its log", call,
           status);
  }
  /// out[n, m] = w[n, k] x[k, m] + old * out, all column-major.
  void multiply(std::int64_t n, std::int64_t m, std::int64_t k, const void* w, std::int64_t w_stride, const void* x,
                std::int64_t x_stride, void* out, std::int64_t out_stride, float old) const {
    const std::int64_t largest = std::max({n, m, k, w_stride, x_stride, out_stride});
    if (largest > INT32_MAX) fail(ErrorCode::kUnsupported, "rocblas_gemm_ex: {} exceeds {}", largest, INT32_MAX);
    const int type = shape_.bf16 ? kBfloat : kHalf;
    const float one = 1.f;
    const auto whole = [](std::int64_t v) { return static_cast<int>(v); };
    require(blas_->gemm_(blas_->handle_, kNoTranspose, kNoTranspose, whole(n), whole(m), whole(k), &one, w, type,
                         whole(w_stride), x, type, whole(x_stride), &old, out, type, whole(out_stride), out, type,
                         whole(out_stride), kFloat, kStandard, 0, 0),
            "rocblas_gemm_ex");
  }

  std::shared_ptr<const Rocblas> blas_;
  std::shared_ptr<const Api> api_;
  int ordinal_;
  gpu::GemmShape shape_;
};

std::unique_ptr<gpu::Gemm> Rocblas::gemm(std::shared_ptr<const Rocblas> self, std::shared_ptr<const Api> api,
                                         int ordinal, const gpu::GemmShape& shape) {
  if (!self->problem_.empty())
    fail(ErrorCode::kUnsupported, "reconstruct + BLAS needs rocBLAS: {}; install it, or set reconstruct_from = -1",
         self->problem_);
  return std::make_unique<RocblasGemm>(std::move(self), std::move(api), ordinal, shape);
}

}  // namespace q4::hip
