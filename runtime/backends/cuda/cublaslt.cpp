// Row-major out = x w as cuBLASLt's column-major out^T = w^T x^T.
#include "runtime/backends/cuda/cublaslt.hpp"

#include <cstdlib>

#include "runtime/base/check.hpp"

namespace q4::cuda {
namespace {

// Values of cublasLt.h and library_types.h.
constexpr int kReal16F = 2, kReal16BF = 14, kReal32F = 0, kCompute32F = 68;
constexpr int kDescEpilogue = 7, kDescBiasPointer = 8, kPreferenceWorkspace = 1;
constexpr std::uint32_t kEpilogueBias = 4;
constexpr std::size_t kWorkspace = 32u << 20;

/// cublasLtMatmulDescOpaque_t and cublasLtMatrixLayoutOpaque_t: filled by the library's own init functions.
struct Desc {
  std::uint64_t data[32];
};
struct Layout {
  std::uint64_t data[8];
};
/// cublasLtMatmulHeuristicResult_t
struct Heuristic {
  std::uint64_t algorithm[8];
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

void require(int status, const char* call) {
  if (status != 0)
    fail(ErrorCode::kDevice, "{}: cuBLAS status {}; see cublasStatus_t, and CUBLASLT_LOG_LEVEL=2 for its log", call,
         status);
}

}  // namespace

CublasLt::CublasLt() : library_("Q4_CUBLASLT", {"libcublasLt.so.13", "libcublasLt.so.12"}, {"/usr/local/cuda/lib64"}) {
  problem_ = library_.problem();
  if (!library_) return;
  const bool bound =
      library_.bind(version_, "cublasLtGetVersion") && library_.bind(create_, "cublasLtCreate") &&
      library_.bind(destroy_, "cublasLtDestroy") && library_.bind(desc_init_, "cublasLtMatmulDescInit_internal") &&
      library_.bind(desc_set_, "cublasLtMatmulDescSetAttribute") &&
      library_.bind(layout_init_, "cublasLtMatrixLayoutInit_internal") &&
      library_.bind(preference_create_, "cublasLtMatmulPreferenceCreate") &&
      library_.bind(preference_set_, "cublasLtMatmulPreferenceSetAttribute") &&
      library_.bind(preference_destroy_, "cublasLtMatmulPreferenceDestroy") &&
      library_.bind(heuristic_, "cublasLtMatmulAlgoGetHeuristic") && library_.bind(matmul_, "cublasLtMatmul");
  problem_ = library_.problem();
  if (bound)
    if (const int status = create_(&handle_); status != 0) problem_ = fmt::format("cublasLtCreate: status {}", status);
}

CublasLt::~CublasLt() {
  if (handle_) destroy_(handle_);
}

std::string CublasLt::version() const {
  const auto v = version_ ? version_() : 0;
  return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

class LtGemm : public gpu::Gemm {
 public:
  LtGemm(std::shared_ptr<const CublasLt> lt, const gpu::GemmShape& shape) : lt_(std::move(lt)), shape_(shape) {
    Desc desc = make_desc(nullptr);
    Layout w, x, out;
    make_layouts(w, x, out, shape.n, shape.typical_m, shape.n, shape.k, shape.n);
    void* preference = nullptr;
    require(lt_->preference_create_(&preference), "cublasLtMatmulPreferenceCreate");
    lt_->preference_set_(preference, kPreferenceWorkspace, &kWorkspace, sizeof kWorkspace);
    int found = 0;
    const int status = lt_->heuristic_(lt_->handle_, &desc, &w, &x, &out, &out, preference, 1, &choice_, &found);
    lt_->preference_destroy_(preference);
    require(found ? status : 15, "cublasLtMatmulAlgoGetHeuristic");
  }

  void run(void* stream, std::int64_t m, const void* x, std::int64_t x_stride, const void* w, std::int64_t w_stride,
           void* out, std::int64_t out_stride, const void* bias, void* workspace) const override {
    Desc desc = make_desc(bias);
    Layout lw, lx, lout;
    make_layouts(lw, lx, lout, w_stride, m, w_stride, x_stride, out_stride);
    const float one = 1.f, zero = 0.f;
    // The algorithm was chosen for typical_m and these strides' alignment; where it does not fit, cuBLASLt chooses
    // again.
    int status = lt_->matmul_(lt_->handle_, &desc, &one, w, &lw, x, &lx, &zero, out, &lout, out, &lout,
                              choice_.algorithm, workspace, kWorkspace, stream);
    if (status != 0)
      status = lt_->matmul_(lt_->handle_, &desc, &one, w, &lw, x, &lx, &zero, out, &lout, out, &lout, nullptr,
                            workspace, kWorkspace, stream);
    require(status, "cublasLtMatmul");
  }
  std::size_t workspace_bytes() const override { return kWorkspace; }

 private:
  Desc make_desc(const void* bias) const {
    Desc desc;
    require(lt_->desc_init_(&desc, sizeof desc, kCompute32F, kReal32F), "cublasLtMatmulDescInit");
    if (shape_.bias) {
      require(lt_->desc_set_(&desc, kDescEpilogue, &kEpilogueBias, sizeof kEpilogueBias),
              "cublasLtMatmulDescSetAttribute");
      require(lt_->desc_set_(&desc, kDescBiasPointer, &bias, sizeof bias), "cublasLtMatmulDescSetAttribute");
    }
    return desc;
  }
  void make_layouts(Layout& w, Layout& x, Layout& out, std::int64_t columns, std::int64_t m, std::int64_t w_stride,
                    std::int64_t x_stride, std::int64_t out_stride) const {
    const int type = shape_.bf16 ? kReal16BF : kReal16F;
    const auto rows = static_cast<std::uint64_t>(columns), k = static_cast<std::uint64_t>(shape_.k);
    require(lt_->layout_init_(&w, sizeof w, type, rows, k, w_stride), "cublasLtMatrixLayoutInit");
    require(lt_->layout_init_(&x, sizeof x, type, k, static_cast<std::uint64_t>(m), x_stride),
            "cublasLtMatrixLayoutInit");
    require(lt_->layout_init_(&out, sizeof out, type, rows, static_cast<std::uint64_t>(m), out_stride),
            "cublasLtMatrixLayoutInit");
  }

  std::shared_ptr<const CublasLt> lt_;
  gpu::GemmShape shape_;
  Heuristic choice_{};
};

std::unique_ptr<gpu::Gemm> CublasLt::gemm(std::shared_ptr<const CublasLt> self, const gpu::GemmShape& shape) {
  if (!self->problem_.empty())
    fail(ErrorCode::kUnsupported, "reconstruct + BLAS needs cuBLASLt: {}; install it, or set reconstruct_from = -1",
         self->problem_);
  return std::make_unique<LtGemm>(std::move(self), shape);
}

}  // namespace q4::cuda
