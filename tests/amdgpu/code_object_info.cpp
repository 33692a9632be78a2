// The note is MessagePack: "Code Object V3 to V5 Metadata" of LLVM's AMDGPUUsage.
#include "tests/amdgpu/code_object_info.hpp"

#include <nlohmann/json.hpp>

#include "runtime/jit/elf.hpp"

namespace q4::amdgpu {
namespace {

using Json = nlohmann::json;

constexpr std::uint32_t kMetadataNote = 32;
constexpr const char* kCaller = "code_object_info";

std::uint64_t align4(std::uint64_t bytes) { return (bytes + 3) / 4 * 4; }

Json metadata(const jit::Elf& elf) {
  for (const auto& section : elf.sections()) {
    if (section.sh_type != SHT_NOTE) continue;
    for (std::uint64_t at = section.sh_offset; at + sizeof(Elf64_Nhdr) <= section.sh_offset + section.sh_size;) {
      const auto note = elf.at<Elf64_Nhdr>(at);
      const auto name = at + sizeof note, text = name + align4(note.n_namesz);
      if (note.n_type == kMetadataNote && elf.text(name) == "AMDGPU") {
        const auto bytes = elf.bytes(text, note.n_descsz);
        return Json::from_msgpack(bytes.begin(), bytes.end());
      }
      at = text + align4(note.n_descsz);
    }
  }
  fail(ErrorCode::kCorrupt, "{}: no metadata note", kCaller);
}

}  // namespace

CodeObjectInfo code_object_info(std::span<const char> code, const std::string& entry) {
  const jit::Elf elf(code, kCaller);
  try {
    const Json all = metadata(elf);
    for (const Json& kernel : all.at("amdhsa.kernels")) {
      if (kernel.at(".name") != entry) continue;
      CodeObjectInfo info;
      info.target = all.value("amdhsa.target", "");
      info.wave = kernel.at(".wavefront_size");
      info.vgprs = kernel.at(".vgpr_count"), info.agprs = kernel.value(".agpr_count", 0);
      info.sgprs = kernel.at(".sgpr_count");
      info.vgpr_spills = kernel.value(".vgpr_spill_count", 0);
      info.sgpr_spills = kernel.value(".sgpr_spill_count", 0);
      info.scratch_bytes = kernel.at(".private_segment_fixed_size");
      info.lds_bytes = kernel.at(".group_segment_fixed_size");
      info.threads = kernel.at(".max_flat_workgroup_size");
      info.argument_bytes = kernel.at(".kernarg_segment_size");
      for (const Json& argument : kernel.value(".args", Json::array())) {
        const auto kind = argument.at(".value_kind").get<std::string>();
        if (kind == "hidden_block_count_x")
          info.block_count = argument.at(".offset");
        else if (kind == "hidden_group_size_x")
          info.group_size = argument.at(".offset");
        else if (!kind.starts_with("hidden_"))
          info.arguments.push_back({argument.at(".offset"), argument.at(".size")});
      }
      return info;
    }
  } catch (const Json::exception& error) { fail(ErrorCode::kCorrupt, "{}: {}", kCaller, error.what()); }
  fail(ErrorCode::kCorrupt, "{}: no kernel '{}'", kCaller, entry);
}

}  // namespace q4::amdgpu
