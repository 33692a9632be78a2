// A reader of the few ELF sections that NVIDIA's tools read: .text.<kernel>, .nv.shared.<kernel>, .nv.info.
//
// .nv.info is a list of attributes {u8 format, u8 attribute, u16 size, payload}; formats below 4 keep their value in
// the size field. Names as cuobjdump -elf prints them (EIATTR_*); layouts found by comparing with ptxas -v.
#include "runtime/jit/cubin_info.hpp"

#include <cstdint>
#include <string_view>

#include "runtime/base/check.hpp"
#include "runtime/jit/elf.hpp"

namespace q4::jit {
namespace {

constexpr int kSizedFormat = 4, kFrameSize = 0x11, kRegisterCount = 0x2f;

/// Attributes of .nv.info name their function by its index in the symbol table.
std::uint32_t symbol_index(const Elf& elf, const std::string& entry) {
  const auto* symbols = elf.find(".symtab");
  const std::uint64_t count = symbols ? symbols->sh_size / sizeof(Elf64_Sym) : 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto symbol = elf.at<Elf64_Sym>(symbols->sh_offset + i * sizeof(Elf64_Sym));
    if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC && elf.text(elf.offset(symbols->sh_link) + symbol.st_name) == entry)
      return static_cast<std::uint32_t>(i);
  }
  fail(ErrorCode::kCorrupt, "cubin_info: no symbol of a kernel '{}'", entry);
}

}  // namespace

CubinInfo cubin_info(std::span<const char> cubin, const std::string& entry) {
  const Elf elf(cubin, "cubin_info");
  const auto *code = elf.find(".text." + entry), *info = elf.find(".nv.info"),
             *shared = elf.find(".nv.shared." + entry);
  if (!code || !info) fail(ErrorCode::kCorrupt, "cubin_info: no section .text.{} or no .nv.info", entry);
  CubinInfo result;
  result.code_bytes = static_cast<int>(code->sh_size);
  if (shared) result.shared_bytes = static_cast<int>(shared->sh_size);

  const std::uint32_t function = symbol_index(elf, entry);
  for (std::uint64_t at = info->sh_offset; at - info->sh_offset + 4 <= info->sh_size;) {
    const int format = elf.at<std::uint8_t>(at), attribute = elf.at<std::uint8_t>(at + 1);
    const auto size = elf.at<std::uint16_t>(at + 2);
    at += 4;
    if (format != kSizedFormat) continue;
    if (size == 8 && elf.at<std::uint32_t>(at) == function) {
      const auto value = static_cast<int>(elf.at<std::uint32_t>(at + 4));
      if (attribute == kRegisterCount) result.registers = value;
      if (attribute == kFrameSize) result.stack_bytes = value;
    }
    at += size;
  }
  if (result.registers == 0) fail(ErrorCode::kCorrupt, "cubin_info: .nv.info counts no registers for '{}'", entry);
  return result;
}

}  // namespace q4::jit
