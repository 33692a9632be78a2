// The version, names and sizes of the public enumerations, and the textual form of a device.
#include <q4/cache.hpp>
#include <q4/device.hpp>
#include <q4/error.hpp>
#include <q4/matmul.hpp>
#include <q4/version.hpp>

#include "runtime/base/check.hpp"

namespace q4 {

const char* version() noexcept { return Q4_VERSION; }

const char* to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kDevice:
      return "device";
    case ErrorCode::kCompile:
      return "compile";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kNotFound:
      return "not_found";
    case ErrorCode::kInternal:
      return "internal";
  }
  return "unknown";
}

const char* to_string(DType type) noexcept {
  switch (type) {
    case DType::kF16:
      return "fp16";
    case DType::kBF16:
      return "bf16";
    case DType::kF32:
      return "fp32";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kU8:
      return "uint8";
  }
  return "unknown";
}

std::size_t size_of(DType type) noexcept {
  switch (type) {
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
  }
  return 0;
}

const char* to_string(BackendKind kind) noexcept {
  switch (kind) {
    case BackendKind::kCpu:
      return "cpu";
    case BackendKind::kCuda:
      return "cuda";
    case BackendKind::kHip:
      return "hip";
  }
  return "unknown";
}

const char* to_string(Activation activation) noexcept {
  constexpr const char* kNames[] = {"none",     "silu",          "gelu_tanh", "gelu",     "relu2",
                                    "silu_mul", "gelu_tanh_mul", "gelu_mul",  "relu2_mul"};
  return activation <= Activation::kRelu2Mul ? kNames[static_cast<int>(activation)] : "unknown";
}

const char* to_string(CacheLayer layer) noexcept {
  constexpr const char* kNames[] = {"none", "memory", "user-folder", "folder", "beside-library", "pack", "compiler"};
  return layer <= CacheLayer::kCompiler ? kNames[static_cast<int>(layer)] : "unknown";
}

Device Device::parse(const std::string& text) {
  const auto colon = text.find(':');
  const auto name = text.substr(0, colon);
  for (const auto kind : {BackendKind::kCpu, BackendKind::kCuda, BackendKind::kHip}) {
    if (name != to_string(kind)) continue;
    if (colon == text.npos) return {kind, 0};
    const auto digits = text.substr(colon + 1);
    if (!digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == digits.npos)
      return {kind, std::stoi(digits)};
  }
  fail(ErrorCode::kInvalidArgument, "device '{}' is not understood; write cpu, cuda, cuda:N, hip or hip:N", text);
}

std::string Device::str() const {
  return kind == BackendKind::kCpu && ordinal == 0 ? "cpu" : fmt::format("{}:{}", to_string(kind), ordinal);
}

}  // namespace q4
