// Opens the HIP runtime and reads device properties in both of their layouts.
#include "runtime/backends/hip/api.hpp"

#include <cstring>
#include <vector>

#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

constexpr Result kSuccess = 0, kOutOfMemory = 2, kNoDevice[] = {100, 101}, kSticky[] = {700, 702, 710, 719};

/// Offsets in hipDeviceProp_t: 5.x (hipGetDeviceProperties) and, since 6.0, hipDeviceProp_tR0600. The name is at 0.
struct Layout {
  std::size_t memory, shared, registers, wave, units, l2, arch;
};
constexpr Layout kLayout5{256, 264, 272, 276, 336, 340, 396}, kLayout6{288, 296, 304, 308, 388, 616, 1160};
constexpr std::size_t kTextBytes = 256;

template <class T>
T at(const std::vector<char>& bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

}  // namespace

q4::Result<std::shared_ptr<const Api>> Api::open() {
  Library library("Q4_HIP_RUNTIME", {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"}, {"/opt/rocm/lib"});
  if (!library) return Failure{"no HIP runtime: " + library.problem()};
  // The runtime's own state is the process's, so another Runtime's use before the fork counts too.
  static const HomeProcess first_use;
  if (first_use.left()) return Failure{HomeProcess::text()};
  const auto api = std::make_shared<Api>();
  if (!bind_all(library, *api)) return Failure{library.problem()};
  api->path = library.path();
  api->properties_of_6_ = library.find("hipGetDevicePropertiesR0600") != nullptr;
  if (!library.bind(api->properties_, api->properties_of_6_ ? "hipGetDevicePropertiesR0600" : "hipGetDeviceProperties"))
    return Failure{library.problem()};
  int count = 0;
  Result result = api->init(0);
  if (result == kSuccess) result = api->device_count(&count);
  if (result == kSuccess && count > 0) return std::shared_ptr<const Api>(api);
  const bool none = result == kSuccess || result == kNoDevice[0] || result == kNoDevice[1];
  if (none)
    return Failure{
        "no AMD GPU that the HIP runtime can use: see whether rocminfo lists one, whether this user may open "
        "/dev/kfd and /dev/dri/render* (groups render, video), and HIP_VISIBLE_DEVICES"};
  return Failure{fmt::format("the HIP runtime: {}; see whether rocminfo works", api->describe(result))};
}

Properties Api::properties(int ordinal) const {
  std::vector<char> bytes(8192);  // more than either layout, and than what later releases append
  check(properties_(bytes.data(), ordinal), "hipGetDeviceProperties");
  const Layout& layout = properties_of_6_ ? kLayout6 : kLayout5;
  const auto text = [&](std::size_t offset) {
    return std::string(bytes.data() + offset, strnlen(bytes.data() + offset, kTextBytes));
  };
  Properties p;
  p.name = text(0), p.arch = text(layout.arch);
  p.memory_bytes = at<std::size_t>(bytes, layout.memory), p.shared_bytes = at<std::size_t>(bytes, layout.shared);
  p.l2_bytes = static_cast<std::size_t>(at<int>(bytes, layout.l2));
  p.registers = at<int>(bytes, layout.registers), p.wave = at<int>(bytes, layout.wave);
  p.units = at<int>(bytes, layout.units);
  return p;
}

std::string Api::version() const {
  int version = 0;
  if (runtime_version(&version) != kSuccess) return "unknown";
  return fmt::format("{}.{}.{}", version / 10'000'000, version / 100'000 % 100, version % 100'000);
}

std::string Api::describe(Result result) const {
  const char *name = error_name(result), *text = error_text(result);
  return fmt::format("{} ({}): {}", name ? name : "unknown error", result, text ? text : "no text");
}

void Api::check(Result result, const char* call) const {
  if (result == kSuccess) [[likely]]
    return;
  if (result == kOutOfMemory)
    fail(ErrorCode::kOutOfMemory, "{}: {}; free device memory, or use a smaller max_m or fewer matrices", call,
         describe(result));
  for (const auto sticky : kSticky)
    if (result == sticky)
      fail(ErrorCode::kDevice, "{}: {}; an earlier kernel of this process failed: restart the process", call,
           describe(result));
  fail(ErrorCode::kDevice, "{}: {}", call, describe(result));
}

Current::Current(const Api& api, int ordinal) : api_(api) {
  api.process.check();
  int now = -1;
  api.check(api.device_current(&now), "hipGetDevice");
  if (now == ordinal) return;
  api.check(api.device_use(ordinal), "hipSetDevice");
  before_ = now;
}

Current::~Current() {
  if (before_ >= 0) api_.device_use(before_);
}

}  // namespace q4::hip
