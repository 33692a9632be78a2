// The text of a code object's instructions, by llvm-objdump.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace q4::amdgpu {

/// "llvm-objdump -d" of a code object for `target` ("gfx90a"); nothing, and why, where no llvm-objdump of 17 or later
/// is found ($Q4_OBJDUMP, else on $PATH).
std::optional<std::string> disassemble(std::span<const char> code, const std::string& target, std::string& problem);

}  // namespace q4::amdgpu
