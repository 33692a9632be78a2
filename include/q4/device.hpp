// Devices and element types: what there is to compute on, and why something is missing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/export.hpp>
#include <string>
#include <utility>
#include <vector>

namespace q4 {

enum class DType : std::uint8_t { kF16, kBF16, kF32, kI32, kI64, kU8 };

Q4_API const char* to_string(DType type) noexcept;  ///< "fp16", "bf16", "fp32", "int32", "int64", "uint8"
Q4_API std::size_t size_of(DType type) noexcept;    ///< bytes of one element

enum class BackendKind : std::uint8_t { kCpu, kCuda, kHip };

Q4_API const char* to_string(BackendKind kind) noexcept;  ///< "cpu", "cuda", "hip"

/// Names one device. "cpu", "cuda:0" and "hip:1" are the textual forms; "cuda" means "cuda:0".
struct Device {
  BackendKind kind = BackendKind::kCpu;
  int ordinal = 0;

  /// Parses a textual form. Throws kInvalidArgument with the accepted forms.
  Q4_API static Device parse(const std::string& text);
  Q4_API std::string str() const;
  friend bool operator==(const Device&, const Device&) = default;
};

/// What a device is. Sizes in bytes.
struct DeviceInfo {
  Device device;
  std::string name;              ///< marketing name, "NVIDIA H200"
  std::string arch;              ///< exact compile target: "sm_90a", "gfx90a", "avx512_bf16"
  int compute_units = 0;         ///< SMs, CUs or usable CPU threads
  std::size_t memory_bytes = 0;  ///< device memory; the host's RAM for the CPU
  std::size_t l2_bytes = 0;      ///< last cache before memory
  std::size_t shared_bytes = 0;  ///< largest shared memory (LDS) of one block; 0 on the CPU
  int warp_size = 0;             ///< 32 or 64; 0 on the CPU
  std::string driver;            ///< driver version as text, empty on the CPU
  /// Identity for tuning: name, arch, units, L2, memory and partitioning (MIG), in one line.
  std::string fingerprint;
};

/// Whether a backend can be used, and why not. Asking never throws and never needs a device.
struct BackendStatus {
  BackendKind kind = BackendKind::kCpu;
  bool available = false;  ///< at least one device can be used
  std::string reason;      ///< empty when available, else what is missing and the remedy
  /// Component and version or reason of absence: {"driver", "13.0"}, {"nvrtc", "13.0 (libnvrtc.so.13)"}, ...
  std::vector<std::pair<std::string, std::string>> components;
};

/// A borrowed native stream: CUstream / cudaStream_t, hipStream_t. Null is the device's default stream. The CPU ignores
/// it: there run() returns when the result is written.
struct Stream {
  void* native = nullptr;
};

}  // namespace q4
