// Finds NVIDIA GPUs and opens them.
#include "runtime/backends/cuda/cuda.hpp"

#include "runtime/backends/cuda/driver.hpp"
#include "runtime/base/check.hpp"
#include "runtime/gpu/device.hpp"

namespace q4::cuda {
namespace {

constexpr int kUnits = 16, kMajor = 75, kMinor = 76, kL2 = 38, kSharedOptIn = 97, kWarp = 10;

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendContext& context) : context_(context) {}

  BackendKind kind() const override { return BackendKind::kCuda; }
  BackendStatus status() override;
  std::vector<DeviceInfo> devices() override;
  std::shared_ptr<DeviceBackend> open(int ordinal) override;

 private:
  const Api* api() {
    std::call_once(once_, [&] {
      auto opened = Api::open();
      if (opened)
        api_ = *std::move(opened);
      else
        no_driver_ = opened.reason();
    });
    return api_.get();
  }
  int attribute(DeviceHandle device, int id) {
    int value = 0;
    api_->check(api_->device_attribute(&value, id, device), "cuDeviceGetAttribute");
    return value;
  }
  DeviceInfo describe(int ordinal);
  q4::Result<std::vector<DeviceInfo>> enumerate();

  const BackendContext& context_;
  std::once_flag once_;
  std::string no_driver_;  ///< written once, before api_ is asked
  std::shared_ptr<const Api> api_;
  std::shared_ptr<SharedNvrtc> nvrtc_ = std::make_shared<SharedNvrtc>();
};

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

/// The target that has all of a device's instructions: from 9.0 on, the architecture-specific one.
std::string target(int major, int minor) { return fmt::format("sm_{}{}{}", major, minor, major >= 9 ? "a" : ""); }

DeviceInfo CudaBackend::describe(int ordinal) {
  DeviceHandle device = 0;
  api_->check(api_->device_get(&device, ordinal), "cuDeviceGet");
  char name[256] = {};
  DeviceInfo info;
  api_->check(api_->device_name(name, sizeof name, device), "cuDeviceGetName");
  api_->check(api_->device_memory(&info.memory_bytes, device), "cuDeviceTotalMem");
  int version = 0;
  api_->driver_version(&version);
  info.device = {BackendKind::kCuda, ordinal};
  info.name = name;
  info.arch = target(attribute(device, kMajor), attribute(device, kMinor));
  info.compute_units = attribute(device, kUnits);
  info.l2_bytes = static_cast<std::size_t>(attribute(device, kL2));
  info.shared_bytes = static_cast<std::size_t>(attribute(device, kSharedOptIn));
  info.warp_size = attribute(device, kWarp);
  info.driver = version_text(version);
  info.fingerprint = fmt::format("{} {} units={} l2={} memory={}GiB", info.name, info.arch, info.compute_units,
                                 info.l2_bytes, (info.memory_bytes + (1u << 29)) >> 30);
  return info;
}

std::vector<DeviceInfo> CudaBackend::devices() {
  auto found = enumerate();
  return found ? *std::move(found) : std::vector<DeviceInfo>();
}

q4::Result<std::vector<DeviceInfo>> CudaBackend::enumerate() {
  if (!api()) return Failure{no_driver_};
  std::vector<DeviceInfo> found;
  try {
    api_->process.check();
    int count = 0;
    api_->check(api_->device_count(&count), "cuDeviceGetCount");
    for (int i = 0; i < count; ++i) found.push_back(describe(i));
    if (found.empty()) return Failure{"the driver lists no GPU; see CUDA_VISIBLE_DEVICES"};
  } catch (const Error& error) {
    if (found.empty()) return Failure{error.what()};
  }
  return found;
}

BackendStatus CudaBackend::status() {
  BackendStatus status;
  status.kind = BackendKind::kCuda;
  const auto found = enumerate();
  status.available = static_cast<bool>(found);
  if (!found) status.reason = found.reason();
  int version = 0;
  if (api_) api_->driver_version(&version);
  status.components.emplace_back("driver", api_ ? version_text(version) : no_driver_);
  const auto& nvrtc = nvrtc_->get();
  status.components.emplace_back(
      "nvrtc", nvrtc.available() ? fmt::format("{} ({})", nvrtc.identity(), nvrtc.path()) : nvrtc.problem());
  const Library blas("Q4_CUBLASLT", {"libcublasLt.so.13", "libcublasLt.so.12"}, {"/usr/local/cuda/lib64"});
  status.components.emplace_back("cublaslt", blas ? blas.path() : blas.problem());
  return status;
}

std::shared_ptr<DeviceBackend> CudaBackend::open(int ordinal) {
  const DeviceInfo info = describe(ordinal);
  DeviceHandle device = 0;
  api_->check(api_->device_get(&device, ordinal), "cuDeviceGet");
  const int capability = attribute(device, kMajor) * 10 + attribute(device, kMinor);
  return std::make_shared<gpu::GpuDevice>(std::make_shared<CudaDriver>(api_, nvrtc_, info, capability), context_);
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendContext& context) {
  return std::make_unique<CudaBackend>(context);
}

}  // namespace q4::cuda
