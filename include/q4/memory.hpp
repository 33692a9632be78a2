// Device memory: where it comes from, what is held, and when no more may be taken.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <q4/device.hpp>

namespace q4 {

/// Where every byte of device memory comes from instead of the driver (on the CPU: instead of malloc): weights,
/// workspaces, temporary buffers of loads. Both functions are called from any thread, never during run(). Kernels'
/// code is loaded by the driver and is not part of this.
struct Allocator {
  /// At least `bytes` (never 0) of memory of `device` that is aligned to `alignment` (a power of two, at most 256) and
  /// may be used at once on any stream. Null, or any exception, means that there is none: the call that needed it
  /// throws kOutOfMemory. `stream` is the native stream that the memory is for; null: the default stream, or no one
  /// stream.
  std::function<void*(std::size_t bytes, std::size_t alignment, Device device, void* stream)> allocate = {};
  /// Takes it back, with the same `bytes`. The device may still be using it on its default stream. Must not throw.
  std::function<void(void* memory, std::size_t bytes, Device device, void* stream)> release = {};
  /// Asked before each allocation: false leaves it to the driver. Empty: every device is served.
  std::function<bool(Device device)> serves = {};
};

/// Bytes that a Runtime holds on one device. Memory of the caller that matrices use in place is not counted.
struct MemoryUse {
  Device device;
  std::size_t weights = 0;      ///< packed matrices
  std::size_t workspace = 0;    ///< plans' workspaces and what loads keep for the next load
  std::size_t code = 0;         ///< code of the kernels that are loaded, as the compiler wrote it
  std::size_t allocations = 0;  ///< pieces that weights and workspace consist of
  std::size_t total() const { return weights + workspace + code; }
};

/// What Runtime::seal() makes of a kernel that is compiled, and of device memory that is taken, after warm-up.
enum class Sealing : std::uint8_t {
  kOff,   ///< everything is allowed
  kWarn,  ///< it happens, and a warning says what was missing, once each
  kError  ///< it is refused: kUnsupported, with what was missing
};

}  // namespace q4
