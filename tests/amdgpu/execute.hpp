// Executes AMD code objects on the host: gfx9 with waves of 64, gfx10 and gfx11 with waves of 32.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/amdgpu/code_object_info.hpp"
#include "tests/amdgpu/wave.hpp"

namespace q4::amdgpu {

/// A kernel's instructions and what its descriptor asks of the hardware.
struct Kernel {
  std::vector<Instruction> code;
  std::vector<const Instruction*> at;  ///< by (address - first address) / 4; null between instructions
  CodeObjectInfo info;
  u64 entry = 0;
  u32 resources = 0;   ///< COMPUTE_PGM_RSRC2
  u16 properties = 0;  ///< KERNEL_CODE_PROPERTIES: which scalar registers are filled
};

/// Throws std::runtime_error: no llvm-objdump, an instruction that nobody knows, a wish that is not modelled.
std::unique_ptr<Kernel> load_kernel(std::span<const char> code, const std::string& target, const std::string& entry);

struct Launch {
  u32 blocks = 1, threads = 1, shared_bytes = 0;
};

/// Runs every block, one after another; the waves of a block run in turns from barrier to barrier. `arguments` is the
/// argument segment, `memory` what the kernel may touch besides, sorted by address. Throws std::runtime_error with the
/// instruction: an access outside, a race in shared memory, a barrier that some wave never meets, an endless loop.
void execute(const Kernel& kernel, const Launch& launch, std::span<const char> arguments, std::vector<Range> memory);

}  // namespace q4::amdgpu
