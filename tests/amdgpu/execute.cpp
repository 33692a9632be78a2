// Loads a kernel from a code object and runs its waves.
#include "tests/amdgpu/execute.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "runtime/jit/elf.hpp"
#include "tests/amdgpu/disassemble.hpp"
#include "tests/amdgpu/semantics.hpp"

namespace q4::amdgpu {
namespace {

constexpr u64 kMostInstructions = 100'000'000;  // of a wave

/// Kernel descriptor, 64 bytes (LLVM's AMDGPUUsage, "Kernel Descriptor").
constexpr u64 kDescriptorEntry = 16, kDescriptorResources = 52, kDescriptorProperties = 56, kDescriptorPreload = 58;

/// KERNEL_CODE_PROPERTIES: what the first scalar registers hold, in this order; `count` registers each.
struct UserScalars {
  int bit, count;
};
constexpr UserScalars kPrivateBuffer{0, 4}, kDispatch{1, 2}, kArguments{3, 2};
constexpr u16 kModelled = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 10 | 1 << 11;  // bit 10: waves of 32

/// hsa_kernel_dispatch_packet_t, as far as kernels read it.
struct Packet {
  u16 header, setup, threads_x, threads_y, threads_z, reserved;
  u32 grid_x, grid_y, grid_z;
  u32 rest[10];
};
static_assert(sizeof(Packet) == 64);

u64 find_descriptor(const jit::Elf& elf, const std::string& entry, u64& address) {
  for (const auto& table : elf.sections()) {
    if (table.sh_type != SHT_DYNSYM && table.sh_type != SHT_SYMTAB) continue;
    const auto& names = elf.sections().at(table.sh_link);
    for (u64 at = table.sh_offset; at < table.sh_offset + table.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = elf.at<Elf64_Sym>(at);
      if (elf.text(names.sh_offset + symbol.st_name) != entry + ".kd") continue;
      const auto& section = elf.sections().at(symbol.st_shndx);
      address = symbol.st_value;
      return section.sh_offset + symbol.st_value - section.sh_addr;
    }
  }
  throw std::runtime_error("amdgpu: no kernel descriptor of " + entry);
}

/// The registers that a wave begins with.
void prepare(Wave& w, const Kernel& kernel, const Launch& launch, u32 block, const void* arguments,
             const Packet* packet) {
  int next = 0;
  const auto put = [&](const UserScalars& what, const void* pointer) {
    if (!(kernel.properties >> what.bit & 1)) return;
    const auto value = reinterpret_cast<u64>(pointer);
    if (pointer) w.scalars[next] = static_cast<u32>(value), w.scalars[next + 1] = static_cast<u32>(value >> 32);
    next += what.count;
  };
  put(kPrivateBuffer, nullptr), put(kDispatch, packet), put(kArguments, arguments);
  int system = static_cast<int>(kernel.resources >> 1 & 31);  // the descriptor's own count of user registers
  for (const int dimension : {0, 1, 2})
    if (kernel.resources >> (7 + dimension) & 1) w.scalars[system++] = dimension == 0 ? block : 0;
  const int live = std::min(w.lanes, static_cast<int>(launch.threads) - w.number * w.lanes);
  w.set_mask(kExec, live == 64 ? ~u64{0} : (u64{1} << live) - 1);
  if (w.lanes == 32) w.scalars[kExec + 1] = 0;
  for (int lane = 0; lane < live; ++lane)  // x of the thread; packed with y and z, which are zero
    w.vectors[static_cast<std::size_t>(lane)] = static_cast<u32>(w.number * w.lanes + lane);
}

/// Up to a barrier or the end; true at a barrier.
bool run_to_barrier(Wave& w, const Kernel& kernel) {
  const u64 base = kernel.code.front().address;
  for (;;) {
    const u64 index = (w.pc - base) / 4;
    if (w.pc < base || index >= kernel.at.size() || !kernel.at[index])
      throw std::runtime_error(fmt::format("amdgpu: wave {} runs to {:#x}, outside the kernel", w.number, w.pc));
    const Instruction& i = *kernel.at[index];
    w.pc = i.next;
    if (++w.executed > kMostInstructions) fail("endless loop", i);
    w.deferred = !i.second.empty();
    i.execute(w, i);
    w.deferred = false;
    if (!i.second.empty()) i.second[0].execute(w, i.second[0]);
    for (const auto& [to, value] : w.pending) *to = value;
    w.pending.clear();
    if (i.name == "s_barrier") return true;
    if (i.name == "s_endpgm") return w.done = true, false;
  }
}

void run_block(const Kernel& kernel, const Launch& launch, u32 number, const void* arguments, const Packet* packet,
               const std::vector<Range>& memory) {
  Block block{&memory, SharedMemory(static_cast<std::size_t>(kernel.info.lds_bytes) + launch.shared_bytes)};
  std::vector<Wave> waves;
  const int lanes = kernel.info.wave;
  for (u32 first = 0; first < launch.threads; first += static_cast<u32>(lanes)) {
    waves.emplace_back(block, static_cast<int>(waves.size()), lanes, kernel.entry);
    prepare(waves.back(), kernel, launch, number, arguments, packet);
  }
  for (std::size_t running = waves.size(); running > 0;) {
    std::size_t waiting = 0;
    for (Wave& w : waves)
      if (!w.done) run_to_barrier(w, kernel) ? ++waiting : --running;
    if (waiting != 0 && waiting != waves.size())
      throw std::runtime_error(fmt::format("amdgpu: block {}: {} of {} waves reach a barrier, the others have ended",
                                           number, waiting, waves.size()));
    block.shared.barrier();
  }
}

}  // namespace

std::unique_ptr<Kernel> load_kernel(std::span<const char> code, const std::string& target, const std::string& entry) {
  auto kernel = std::make_unique<Kernel>();
  kernel->info = code_object_info(code, entry);
  if (kernel->info.target != "amdgcn-amd-amdhsa--" + target)
    throw std::runtime_error(fmt::format("amdgpu: code for {} on {}", kernel->info.target, target));
  if (kernel->info.scratch_bytes) throw std::runtime_error("amdgpu: scratch memory is not modelled");
  const jit::Elf elf(code, "amdgpu");
  u64 address = 0;
  const u64 descriptor = find_descriptor(elf, entry, address);
  kernel->entry = address + static_cast<u64>(elf.at<i64>(descriptor + kDescriptorEntry));
  kernel->resources = elf.at<u32>(descriptor + kDescriptorResources);
  kernel->properties = elf.at<u16>(descriptor + kDescriptorProperties);
  if ((kernel->properties & ~kModelled) || elf.at<u16>(descriptor + kDescriptorPreload))
    throw std::runtime_error(fmt::format("amdgpu: the kernel asks for registers that are not modelled: {:#x} {:#x}",
                                         kernel->properties, elf.at<u16>(descriptor + kDescriptorPreload)));
  if (static_cast<bool>(kernel->properties >> 10 & 1) != (kernel->info.wave == 32))
    throw std::runtime_error("amdgpu: note and descriptor disagree about the size of waves");
  const auto listing = disassemble(code, target);
  if (!listing) throw std::runtime_error("amdgpu: " + listing.reason());
  kernel->code = parse_listing(*listing, entry, target.starts_with("gfx1"));
  for (auto& i : kernel->code) resolve(i);
  kernel->at.resize((kernel->code.back().address - kernel->code.front().address) / 4 + 1);
  for (const auto& i : kernel->code) kernel->at[(i.address - kernel->code.front().address) / 4] = &i;
  return kernel;
}

void execute(const Kernel& kernel, const Launch& launch, std::span<const char> arguments, std::vector<Range> memory) {
  if (static_cast<int>(launch.threads) > kernel.info.threads)
    throw std::runtime_error(
        fmt::format("amdgpu: {} threads, the kernel was compiled for {}", launch.threads, kernel.info.threads));
  Packet packet{};
  packet.threads_x = static_cast<u16>(launch.threads), packet.threads_y = packet.threads_z = 1;
  packet.grid_x = launch.blocks * launch.threads, packet.grid_y = packet.grid_z = 1;
  const auto add = [&](const void* data, std::size_t bytes) {
    memory.push_back({reinterpret_cast<u64>(data), reinterpret_cast<u64>(data) + bytes});
  };
  add(arguments.data(), arguments.size()), add(&packet, sizeof packet);
  std::sort(memory.begin(), memory.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (u32 block = 0; block < launch.blocks; ++block)
    run_block(kernel, launch, block, arguments.data(), &packet, memory);
}

}  // namespace q4::amdgpu
