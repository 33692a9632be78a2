// The table.
#include "runtime/backends/hip/target.hpp"

namespace q4::hip {

// Units as the HIP runtime counts them: compute units on GCN and CDNA, pairs of them (WGPs) on RDNA. hipRTC and clang:
// the releases that first list the processor; where ROCm and LLVM disagree, the earlier, since a compiler that aborts
// after all does so in a process of its own.
const std::vector<Target>& targets() {
  constexpr int kLds = 65536;
  static const std::vector<Target> table = {
      {"gfx906", "MI50, Radeon VII", 64, kLds, MatrixCore::kNone, 502, kOldestClang, 60},
      {"gfx908", "MI100", 64, kLds, MatrixCore::kMfma, 502, kOldestClang, 120},
      {"gfx90a", "MI210, MI250", 64, kLds, MatrixCore::kMfma, 502, kOldestClang, 104},
      {"gfx942", "MI300X, MI325X", 64, kLds, MatrixCore::kMfma, 600, kOldestClang, 304},
      {"gfx1030", "RX 6900, RX 6800", 32, kLds, MatrixCore::kNone, 502, kOldestClang, 40},
      {"gfx1100", "RX 7900", 32, kLds, MatrixCore::kWmma, 505, kOldestClang, 48},
      {"gfx1151", "Strix Halo", 32, kLds, MatrixCore::kWmma, 601, kOldestClang, 20},
      {"gfx1200", "RX 9060", 32, kLds, MatrixCore::kWmma, 602, 18, 16},
      {"gfx1201", "RX 9070", 32, kLds, MatrixCore::kWmma, 602, 18, 32},
  };
  return table;
}

const Target* find_target(const std::string& arch) {
  const std::string name = arch.substr(0, arch.find(':'));
  for (const auto& target : targets())
    if (name == target.name) return &target;
  constexpr int kNever = 1 << 20;
  static const Target nvidia{"sm_90a", "H100, H200", 32, 232448, MatrixCore::kNone, 0, kNever, 132};
  return name == nvidia.name ? &nvidia : nullptr;
}

std::string target_names() {
  std::string names;
  for (const auto& target : targets()) names += (names.empty() ? "" : ", ") + std::string(target.name);
  return names;
}

}  // namespace q4::hip
