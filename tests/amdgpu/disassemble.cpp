// Finds llvm-objdump and runs it.
#include "tests/amdgpu/disassemble.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "runtime/backends/hip/process.hpp"
#include "runtime/backends/hip/target.hpp"

namespace q4::amdgpu {
namespace {

std::string find_objdump() {
  std::vector<std::string> names = {"/opt/rocm/llvm/bin/llvm-objdump"};
  for (int major = hip::kNewestClang; major >= hip::kOldestClang; --major)
    names.push_back("llvm-objdump-" + std::to_string(major));
  if (const char* given = std::getenv("Q4_OBJDUMP")) names = {given};
  for (const auto& name : names)
    if (hip::run_program({name, "--version"}, "").status == 0) return name;
  return "";
}

}  // namespace

Result<std::string> disassemble(std::span<const char> code, const std::string& target) {
  static const std::string objdump = find_objdump();
  if (objdump.empty())
    return Failure{fmt::format("no llvm-objdump-{} or later (apt-get install llvm-19)", hip::kOldestClang)};
  const auto outcome = hip::run_program({objdump, "-d", "--mcpu=" + target, "-"}, {code.data(), code.size()});
  if (outcome.status == 0) return outcome.out;
  return Failure{fmt::format("{}: {}{}", objdump, outcome.problem, outcome.error)};
}

}  // namespace q4::amdgpu
