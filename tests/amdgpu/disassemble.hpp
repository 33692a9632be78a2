// The text of a code object's instructions, by llvm-objdump.
#pragma once

#include <span>
#include <string>

#include "runtime/base/result.hpp"

namespace q4::amdgpu {

/// "llvm-objdump -d" of a code object for `target` ("gfx90a"); a failure where no llvm-objdump of 17 or later
/// is found ($Q4_OBJDUMP, else on $PATH).
Result<std::string> disassemble(std::span<const char> code, const std::string& target);

}  // namespace q4::amdgpu
