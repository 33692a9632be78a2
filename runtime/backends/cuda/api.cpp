// Opens the driver.
#include "runtime/backends/cuda/api.hpp"

#include "runtime/base/check.hpp"

namespace q4::cuda {
namespace {

constexpr Result kSuccess = 0, kOutOfMemory = 2, kSticky[] = {700, 702, 710, 715, 716, 717, 718, 719};

}  // namespace

q4::Result<std::shared_ptr<const Api>> Api::open() {
  Library library("Q4_CUDA_DRIVER", {"libcuda.so.1"}, {});
  if (!library) return Failure{"no NVIDIA driver: " + library.problem()};
  // The driver's own state is the process's, so another Runtime's use before the fork counts too.
  static const HomeProcess first_use;
  if (first_use.left()) return Failure{HomeProcess::text()};
  const auto api = std::make_shared<Api>();
#define Q4_BIND(member, symbol, parameters) \
  if (!library.bind(api->member, symbol)) return Failure{library.problem()};
  Q4_CUDA_FUNCTIONS(Q4_BIND)
#undef Q4_BIND
  api->tensor_map_encode = reinterpret_cast<decltype(api->tensor_map_encode)>(library.find("cuTensorMapEncodeTiled"));
  if (const Result result = api->init(0); result != kSuccess)
    return Failure{"cuInit: " + api->describe(result) + "; see whether nvidia-smi works"};
  return std::shared_ptr<const Api>(api);
}

std::string Api::describe(Result result) const {
  const char *name = nullptr, *text = nullptr;
  if (error_name) error_name(result, &name);
  if (error_text) error_text(result, &text);
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
      fail(ErrorCode::kDevice,
           "{}: {}; an earlier kernel of this process failed and the context is lost: restart the process "
           "(compute-sanitizer finds the kernel)",
           call, describe(result));
  fail(ErrorCode::kDevice, "{}: {}", call, describe(result));
}

Current::Current(const Api& api, Context context) : api_(api) {
  api.process.check();
  Context now = nullptr;
  api.check(api.context_current(&now), "cuCtxGetCurrent");
  if (now == context) return;
  api.check(api.context_push(context), "cuCtxPushCurrent");
  pushed_ = true;
}

Current::~Current() {
  Context ignored;
  if (pushed_) api_.context_pop(&ignored);
}

}  // namespace q4::cuda
