// Sections and bytes of an ELF file in memory, as cubins and AMD code objects are.
#pragma once

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.hpp"

namespace q4::jit {

/// Every access is checked: kCorrupt, with the caller's name. `bytes` outlive it.
class Elf {
 public:
  Elf(std::span<const char> bytes, const char* caller) : bytes_(bytes), caller_(caller) {
    const auto header = at<Elf64_Ehdr>(0);
    if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64)
      fail(ErrorCode::kCorrupt, "{}: {} bytes that are no 64-bit ELF file", caller, bytes.size());
    for (int i = 0; i < header.e_shnum; ++i)
      sections_.push_back(
          at<Elf64_Shdr>(header.e_shoff + std::uint64_t{header.e_shentsize} * static_cast<unsigned>(i)));
    if (header.e_shstrndx < sections_.size()) names_ = sections_[header.e_shstrndx].sh_offset;
  }

  template <class T>
  T at(std::uint64_t offset) const {
    if (offset > bytes_.size() || bytes_.size() - offset < sizeof(T))
      fail(ErrorCode::kCorrupt, "{}: offset {} lies outside the {} bytes of the code", caller_, offset, bytes_.size());
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

  const std::vector<Elf64_Shdr>& sections() const { return sections_; }
  std::span<const char> bytes(std::uint64_t from, std::uint64_t count) const {
    if (from > bytes_.size() || bytes_.size() - from < count)
      fail(ErrorCode::kCorrupt, "{}: {} bytes at {} lie outside the {} bytes of the code", caller_, count, from,
           bytes_.size());
    return bytes_.subspan(from, count);
  }

 private:
  std::span<const char> bytes_;
  const char* caller_;
  std::vector<Elf64_Shdr> sections_;
  std::uint64_t names_ = 0;
};

}  // namespace q4::jit
