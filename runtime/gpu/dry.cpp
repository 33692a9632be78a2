// Plans over a driver that has no device: it notes what it is asked to compile.
#include "runtime/gpu/dry.hpp"

#include <mutex>

#include "runtime/base/check.hpp"
#include "runtime/gpu/matrix.hpp"
#include "runtime/gpu/plan.hpp"
#include "runtime/jit/kernel_table.hpp"

namespace q4::gpu {
namespace {

class DryDriver : public Driver {
 public:
  DryDriver(const DeviceInfo& info, const Limits& limits) : info_(info), limits_(limits) {}

  const DeviceInfo& info() const override { return info_; }
  Limits limits() const override { return limits_; }
  void* allocate(std::size_t) override { return memory_; }  // never read nor written
  void release(void*) noexcept override {}
  void copy(void*, const void*, std::size_t, CopyKind) override {}
  void fill(void*, int, std::size_t) override {}
  void synchronize() override {}
  std::vector<double> measure(const std::function<void(void*)>&, int) override { absent("measure"); }
  bool reachable(const void*, std::string&) const override { return true; }
  bool can_compile(std::string&) override { return true; }
  std::string compiler() override { return "none"; }
  std::vector<std::string> options() const override { return {}; }
  std::vector<char> compile(const jit::Source& source, std::string&) override {
    std::lock_guard lock(mutex_);
    noted_.push_back(source);
    return {};
  }
  std::unique_ptr<Function> load(const std::vector<char>&, const std::string&) override {
    return std::make_unique<Function>();
  }
  void launch(const Function&, const LaunchShape&, void*, void**) const override { absent("launch"); }
  TensorMapBytes encode(const TensorMapShape&) const override { absent("encode"); }
  std::unique_ptr<Gemm> gemm(const GemmShape&) override {
    struct NoGemm : Gemm {
      void run(void*, std::int64_t, const void*, std::int64_t, const void*, std::int64_t, void*, std::int64_t,
               const void*, void*) const override {}
      std::size_t workspace_bytes() const override { return 0; }
    };
    return std::make_unique<NoGemm>();
  }

  std::vector<jit::Source> take() { return std::move(noted_); }

 private:
  [[noreturn]] void absent(const char* call) const {
    fail(ErrorCode::kInternal, "{}: {} is planned for, not opened", call, info_.arch);
  }

  const DeviceInfo info_;
  const Limits limits_;
  alignas(256) std::byte memory_[256] = {};
  std::mutex mutex_;
  std::vector<jit::Source> noted_;
};

}  // namespace

std::vector<jit::Source> needed_sources(const DeviceInfo& info, const Limits& limits, const MatrixShape& shape,
                                        const PlanOptions& options, const TuningRecord* tuned) {
  const auto driver = std::make_shared<DryDriver>(info, limits);
  cache::KernelCache nothing({.mode = CacheMode::kOff}, nullptr);
  Kernels kernels(*driver, nothing);
  const auto matrix = std::make_shared<Matrix>();
  static_cast<MatrixShape&>(*matrix) = shape;
  if (shape.has_bias) matrix->bias.resize(1);  // that there is one is all that counts
  if (shape.mapped) matrix->x_map = Buffer(driver, 4);
  kernels.get(jit::pack_source(shape.awq));
  PlanOptions planned = options;
  planned.own_workspace = false;
  const Plan plan(driver, kernels, matrix, planned, tuned);
  kernels.get(column_remap_source());
  return driver->take();
}

}  // namespace q4::gpu
