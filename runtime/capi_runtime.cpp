// What the calls of the C ABI share.
#include "runtime/capi_runtime.hpp"

#include <chrono>

namespace q4::capi {

std::uint32_t first_generation(const void* owner) {
  const auto now = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  std::uint64_t v = reinterpret_cast<std::uintptr_t>(owner) ^ now << 20;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;  // splitmix64's finalizer
  v = (v ^ v >> 27) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(v >> 32) | 1u;
}

std::string& last_error() {
  static thread_local std::string text;
  return text;
}

q4_status report(ErrorCode code, const char* call, const char* text) noexcept {
  try {
    last_error() = fmt::format("{}: {}", call, text);
  } catch (...) {
    last_error().clear();  // no memory even for the text: the status must do
  }
  return static_cast<q4_status>(code);
}

void dead_handle(bool issued, const char* what, std::uint64_t id) {
  fail(ErrorCode::kInvalidArgument, "{} {:#x} {}", what, id,
       issued    ? "was destroyed: make another one"
       : id == 0 ? "is no handle: use one that a call of this runtime wrote"
                 : "is of another runtime or of another kind: use one that a call of this runtime wrote");
}

}  // namespace q4::capi
