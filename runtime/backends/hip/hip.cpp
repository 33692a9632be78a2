// Finds the HIP runtime's GPUs and opens them.
#include "runtime/backends/hip/hip.hpp"

#include "runtime/backends/hip/driver.hpp"
#include "runtime/base/check.hpp"
#include "runtime/gpu/device.hpp"

namespace q4::hip {
namespace {

/// What docs/amd.md says at length; q4-info prints it.
constexpr const char* kVerified =
    "by compilers, by interpreting the code objects, and on NVIDIA through HIP; never run on AMD silicon (docs/amd.md)";

class HipBackend : public Backend {
 public:
  explicit HipBackend(const BackendContext& context) : context_(context) {}

  BackendKind kind() const override { return BackendKind::kHip; }
  BackendStatus status() override;
  std::vector<DeviceInfo> devices() override {
    auto found = enumerate();
    return found ? *std::move(found) : std::vector<DeviceInfo>();
  }
  std::shared_ptr<DeviceBackend> open(int ordinal) override;

 private:
  const Api* api() {
    std::call_once(once_, [&] {
      auto opened = Api::open();
      if (opened)
        api_ = *std::move(opened);
      else
        absent_ = opened.reason();
    });
    return api_.get();
  }
  DeviceInfo describe(int ordinal, const Properties& properties) const;
  q4::Result<std::vector<DeviceInfo>> enumerate();

  const BackendContext& context_;
  std::once_flag once_;
  std::string absent_;  ///< written once, before api_ is asked
  std::shared_ptr<const Api> api_;
  std::shared_ptr<Compiler> compiler_ = std::make_shared<Compiler>();
};

DeviceInfo HipBackend::describe(int ordinal, const Properties& p) const {
  DeviceInfo info;
  info.device = {BackendKind::kHip, ordinal};
  info.name = p.name;
  // Without features: code for "gfx90a" runs with every setting of them, and one pack serves all.
  info.arch = p.arch.substr(0, p.arch.find(':'));
  info.compute_units = p.units;
  info.memory_bytes = p.memory_bytes, info.l2_bytes = p.l2_bytes, info.shared_bytes = p.shared_bytes;
  info.warp_size = p.wave;
  info.driver = api_->version();
  info.fingerprint = fmt::format("{} {} units={} l2={} memory={}GiB", p.name, p.arch, p.units, p.l2_bytes,
                                 (p.memory_bytes + (1u << 29)) >> 30);
  return info;
}

q4::Result<std::vector<DeviceInfo>> HipBackend::enumerate() {
  if (!api()) return Failure{absent_};
  std::vector<DeviceInfo> found;
  try {
    api_->process.check();
    int count = 0;
    api_->check(api_->device_count(&count), "hipGetDeviceCount");
    for (int i = 0; i < count; ++i) {
      found.push_back(describe(i, api_->properties(i)));
      const Target* target = find_target(found.back().arch);
      if (target && target->wave != found.back().warp_size)
        fail(ErrorCode::kUnsupported, "hip:{} = {} has waves of {}, not {}: q4 does not know this mode", i,
             found.back().arch, found.back().warp_size, target->wave);
    }
  } catch (const Error& error) { return Failure{error.what()}; }
  return found;
}

BackendStatus HipBackend::status() {
  BackendStatus status;
  status.kind = BackendKind::kHip;
  const auto found = enumerate();  // not empty: the runtime is opened only where it lists a GPU
  status.available = static_cast<bool>(found);
  if (!found) status.reason = found.reason();
  status.components.emplace_back("runtime", api_ ? fmt::format("{} ({})", api_->version(), api_->path) : absent_);
  const auto& hiprtc = compiler_->hiprtc();
  status.components.emplace_back(
      "hiprtc", hiprtc.available() ? fmt::format("{} ({})", hiprtc.identity(), hiprtc.path()) : hiprtc.problem());
  status.components.emplace_back("clang", compiler_->clang_text());
  const Library blas("Q4_ROCBLAS", {"librocblas.so.5", "librocblas.so.4", "librocblas.so.0"}, {"/opt/rocm/lib"});
  status.components.emplace_back("rocblas", blas ? blas.path() : blas.problem());
  status.components.emplace_back("verified", kVerified);
  return status;
}

std::shared_ptr<DeviceBackend> HipBackend::open(int ordinal) {
  const Properties properties = api_->properties(ordinal);
  return std::make_shared<gpu::GpuDevice>(
      std::make_shared<HipDriver>(api_, compiler_, describe(ordinal, properties), properties.registers), context_);
}

}  // namespace

std::unique_ptr<Backend> make_hip_backend(const BackendContext& context) {
  return std::make_unique<HipBackend>(context);
}

}  // namespace q4::hip
