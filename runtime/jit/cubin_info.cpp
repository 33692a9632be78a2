// A reader of the few ELF sections that NVIDIA's tools read: .text.<kernel>, .nv.shared.<kernel>, .nv.info.
//
// .nv.info is a list of attributes {u8 format, u8 attribute, u16 size, payload}; formats below 4 keep their value in
// the size field. Names as cuobjdump -elf prints them (EIATTR_*); layouts found by comparing with ptxas -v.
#include "runtime/jit/cubin_info.hpp"

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "runtime/check.hpp"

namespace q4::jit {
namespace {

constexpr int kSizedFormat = 4, kFrameSize = 0x11, kRegisterCount = 0x2f;

class Elf {
 public:
  explicit Elf(std::span<const char> bytes) : bytes_(bytes) {
    const auto header = at<Elf64_Ehdr>(0);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64)
      fail(ErrorCode::kCorrupt, "cubin_info: {} bytes that are no 64-bit ELF file", bytes.size());
    for (int i = 0; i < header.e_shnum; ++i)
      sections_.push_back(
          at<Elf64_Shdr>(header.e_shoff + std::uint64_t{header.e_shentsize} * static_cast<unsigned>(i)));
    if (header.e_shstrndx < sections_.size()) names_ = sections_[header.e_shstrndx].sh_offset;
  }

  template <class T>
  T at(std::uint64_t offset) const {
    if (offset > bytes_.size() || bytes_.size() - offset < sizeof(T))
      fail(ErrorCode::kCorrupt, "cubin_info: offset {} lies outside the {} bytes of the cubin", offset, bytes_.size());
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }
  std::string_view text(std::uint64_t offset) const {
    if (offset >= bytes_.size()) return {};
    return {bytes_.data() + offset, strnlen(bytes_.data() + offset, bytes_.size() - offset)};
  }
  const Elf64_Shdr* find(const std::string& name) const {
    for (const auto& section : sections_)
      if (text(names_ + section.sh_name) == name) return &section;
    return nullptr;
  }
  std::uint64_t offset(std::uint64_t section) const {
    return section < sections_.size() ? sections_[section].sh_offset : bytes_.size();
  }

 private:
  std::span<const char> bytes_;
  std::vector<Elf64_Shdr> sections_;
  std::uint64_t names_ = 0;
};

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
  const Elf elf(cubin);
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
