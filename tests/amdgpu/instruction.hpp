// One AMD instruction as llvm-objdump prints it, taken apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace q4::amdgpu {

struct Wave;
struct Instruction;
using Execute = void (*)(Wave&, const Instruction&);

struct Operand {
  enum class Kind { kOff, kNull, kScalar, kVector, kAccumulator, kInteger, kReal };
  Kind kind = Kind::kOff;
  bool negate = false, absolute = false, sign_extend = false;
  int index = 0, count = 1;    ///< first register and how many
  std::uint32_t bits = 0;      ///< kInteger
  bool wide_negative = false;  ///< kInteger below zero: its upper word is all ones where 64 bits are read
  double real = 0;             ///< kReal: what it is as bits depends on who reads it
};

/// Which bits of a 32-bit register an SDWA operand means.
struct Part {
  int shift = 0, bits = 32;
};

struct Instruction {
  std::string text, name;  ///< `name` without _e32, _e64, _sdwa, in gfx9's spelling where targets differ
  std::uint64_t address = 0, next = 0, target = 0;  ///< target: of a branch
  std::vector<Operand> operands;
  int offset = 0, offset0 = 0, offset1 = 0;
  unsigned op_sel = 0, op_sel_hi = 0, neg_lo = 0, neg_hi = 0;  ///< a bit an operand
  bool has_op_sel_hi = false, sdwa = false, rdna = false;
  Part source[2], destination;
  Execute execute = nullptr;
  std::vector<Instruction> second;  ///< of a dual instruction of gfx11: both read before either writes
};

/// Reads one line, without the address comment: "v_add_u32_e32 v1, s2, v3". Throws std::runtime_error on what it does
/// not understand, a modifier included.
Instruction parse_instruction(const std::string& line, bool rdna);

/// The instructions of function `entry` in an objdump listing, in the order of their addresses, their `execute` not yet
/// set.
std::vector<Instruction> parse_listing(const std::string& listing, const std::string& entry, bool rdna);

}  // namespace q4::amdgpu
