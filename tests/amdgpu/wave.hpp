// What a wave and its block are while their code is executed, and how instructions read and write them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/amdgpu/instruction.hpp"

namespace q4::amdgpu {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr int kVcc = 106, kExec = 126;

/// Memory that a kernel may touch, in this process.
struct Range {
  u64 begin, end;
};

/// Shared memory of a block. Between two barriers a byte may be written by one wave, or read by any number, not both.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes) : bytes_(bytes, 0xcd), writer_(bytes), reader_(bytes) {}

  /// Throws std::runtime_error where the bytes are outside, or where another wave meets them.
  void read(int wave, u32 at, void* to, u32 count, const Instruction& i);
  void write(int wave, u32 at, const void* from, u32 count, const Instruction& i);
  void barrier();

 private:
  void check(u32 at, u32 count, const Instruction& i) const;

  std::vector<u8> bytes_;
  std::vector<u8> writer_, reader_;  ///< since the last barrier: 0 nobody, wave + 1, or kMany
};

struct Block {
  const std::vector<Range>* memory;
  SharedMemory shared;

  /// The bytes at `address`; throws std::runtime_error if they are not inside one range.
  u8* global(u64 address, u32 count, const Instruction& i) const;
};

struct Wave {
  Wave(Block& block, int number, int lanes, u64 entry)
      : block(&block), number(number), lanes(lanes), pc(entry), vectors(512u * static_cast<u32>(lanes), 0xdeadbeef) {
    for (u32& s : scalars) s = 0xdeadbeef;
  }

  Block* block;
  int number, lanes;
  u64 pc;
  bool done = false, scc = false;
  u64 executed = 0;
  u32 scalars[128];
  std::vector<u32> vectors;  ///< [register][lane]; accumulators from register 256 on
  bool deferred = false;     ///< first half of a dual instruction: writes wait in `pending`
  std::vector<std::pair<u32*, u32>> pending;

  u64 scalar64(int index) const { return scalars[index] | static_cast<u64>(scalars[index + 1]) << 32; }
  /// A mask of lanes: two registers on 64 lanes, one on 32.
  u64 mask(int index) const { return lanes == 64 ? scalar64(index) : scalars[index]; }
  void set_mask(int index, u64 mask) {
    scalars[index] = static_cast<u32>(mask);
    if (lanes == 64) scalars[index + 1] = static_cast<u32>(mask >> 32);
  }
  bool active(int lane) const { return mask(kExec) >> lane & 1; }

  u32& vector(const Operand& o, int lane, int word) {
    const int base = o.kind == Operand::Kind::kAccumulator ? 256 : 0;
    return vectors[static_cast<std::size_t>((base + o.index + word) * lanes + lane)];
  }
  /// The operand's 32 bits as they are, word `word` of a wide one.
  u32 bits(const Operand& o, int lane, int word = 0);
  /// The same under SDWA selection and its sign extension.
  u32 source(const Instruction& i, std::size_t index, int lane);
  u64 bits64(const Operand& o, int lane) { return bits(o, lane) | static_cast<u64>(bits(o, lane, 1)) << 32; }
  /// With the operand's sign modifiers.
  float real(const Operand& o, int lane, int word = 0);
  /// One half as a double, with the operand's sign modifiers.
  double half(const Operand& o, int lane, bool high);

  void write(const Operand& o, int lane, u32 value, int word = 0);
  void write64(const Operand& o, int lane, u64 value) {
    write(o, lane, static_cast<u32>(value)), write(o, lane, static_cast<u32>(value >> 32), 1);
  }
  /// A result of a vector instruction, placed as SDWA says.
  void result(const Instruction& i, int lane, u32 value);
  void set_scalar(const Operand& o, u32 value);
  void set_scalar64(const Operand& o, u64 value);
};

inline float to_float(u32 bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline u32 to_bits(float value) {
  u32 bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

[[noreturn]] void fail(const std::string& what, const Instruction& i);

}  // namespace q4::amdgpu
