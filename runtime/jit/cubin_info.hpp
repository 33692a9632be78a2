// What the compiler made of a kernel, read from the cubin itself: no cuobjdump, no driver, no GPU.
#pragma once

#include <span>
#include <string>

namespace q4::jit {

struct CubinInfo {
  int registers = 0;     ///< of one thread
  int stack_bytes = 0;   ///< of one thread: spilled registers and local arrays; 0 means that nothing spilled
  int shared_bytes = 0;  ///< static shared memory of a block; sm_90 and newer reserve 1024 of it for the system
  int code_bytes = 0;
};

/// Facts about kernel `entry`. Throws kCorrupt if `cubin` is no 64-bit ELF file with that kernel. Any bytes are safe.
CubinInfo cubin_info(std::span<const char> cubin, const std::string& entry);

}  // namespace q4::jit
