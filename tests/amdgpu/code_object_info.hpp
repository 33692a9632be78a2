// What the compiler made of a kernel, read from the AMD code object itself: no llvm-readelf, no driver, no GPU.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace q4::amdgpu {

struct CodeObjectInfo {
  std::string target;  ///< "amdgcn-amd-amdhsa--gfx90a"
  int wave = 0;
  int vgprs = 0;  ///< of one lane, AGPRs included
  int agprs = 0;
  int sgprs = 0;                          ///< of one wave
  int vgpr_spills = 0;                    ///< that went to scratch
  int sgpr_spills = 0;                    ///< that went to lanes of a VGPR: a few cost little
  int scratch_bytes = 0;                  ///< of one lane: spilled registers and local arrays
  int lds_bytes = 0;                      ///< static shared memory of a block
  int threads = 0;                        ///< largest block
  int argument_bytes = 0;                 ///< of the kernel's argument segment, hidden ones included
  int block_count = -1, group_size = -1;  ///< where among them those hidden ones are, along x: 4 and 2 bytes
  struct Argument {
    int offset = 0, size = 0;
  };
  std::vector<Argument> arguments;  ///< those of the source, in its order
};

/// Facts about kernel `entry`, from the metadata note. Throws kCorrupt if `code` has none. Any bytes are safe.
CodeObjectInfo code_object_info(std::span<const char> code, const std::string& entry);

}  // namespace q4::amdgpu
