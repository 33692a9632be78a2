// Operands, and memory that is checked at every access.
#include "tests/amdgpu/wave.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tests/reference.hpp"

namespace q4::amdgpu {
namespace {

constexpr u8 kMany = 255;

}  // namespace

void fail(const std::string& what, const Instruction& i) {
  throw std::runtime_error(fmt::format("amdgpu: {}: {:#x} {}", what, i.address, i.text));
}

void SharedMemory::check(u32 at, u32 count, const Instruction& i) const {
  if (at > bytes_.size() || bytes_.size() - at < count)
    fail(fmt::format("{} bytes at {} of {} bytes of shared memory", count, at, bytes_.size()), i);
}

void SharedMemory::read(int wave, u32 at, void* to, u32 count, const Instruction& i) {
  check(at, count, i);
  const auto me = static_cast<u8>(wave + 1);
  for (u32 b = at; b < at + count; ++b) {
    if (writer_[b] != 0 && writer_[b] != me)
      fail(
          fmt::format("race: wave {} reads byte {} that wave {} wrote since the last barrier", wave, b, writer_[b] - 1),
          i);
    reader_[b] = reader_[b] == 0 || reader_[b] == me ? me : kMany;
  }
  std::memcpy(to, bytes_.data() + at, count);
}

void SharedMemory::write(int wave, u32 at, const void* from, u32 count, const Instruction& i) {
  check(at, count, i);
  const auto me = static_cast<u8>(wave + 1);
  for (u32 b = at; b < at + count; ++b) {
    if ((writer_[b] != 0 && writer_[b] != me) || (reader_[b] != 0 && reader_[b] != me))
      fail(fmt::format("race: wave {} writes byte {} that another wave used since the last barrier", wave, b), i);
    writer_[b] = me;
  }
  std::memcpy(bytes_.data() + at, from, count);
}

void SharedMemory::barrier() {
  std::fill(writer_.begin(), writer_.end(), u8{0});
  std::fill(reader_.begin(), reader_.end(), u8{0});
}

u8* Block::global(u64 address, u32 count, const Instruction& i) const {
  // Sorted by address, none overlapping: the last one that begins at or before it.
  auto at = std::upper_bound(memory->begin(), memory->end(), address,
                             [](u64 a, const Range& range) { return a < range.begin; });
  if (at == memory->begin() || address + count > (--at)->end)
    fail(fmt::format("{} bytes at address {:#x} are outside every allocation", count, address), i);
  return reinterpret_cast<u8*>(address);
}

u32 Wave::bits(const Operand& o, int lane, int word) {
  switch (o.kind) {
    case Operand::Kind::kScalar:
      return scalars[o.index + word];
    case Operand::Kind::kVector:
    case Operand::Kind::kAccumulator:
      return vector(o, lane, word);
    case Operand::Kind::kInteger:
      return word == 0 ? o.bits : o.wide_negative ? ~0u : 0u;
    case Operand::Kind::kReal:
      return to_bits(static_cast<float>(o.real));
    case Operand::Kind::kNull:
      return 0;
    case Operand::Kind::kOff:
      break;
  }
  throw std::runtime_error("amdgpu: an operand that has no value is read");
}

u32 Wave::source(const Instruction& i, std::size_t index, int lane) {
  const Operand& o = i.operands[index];
  const u32 all = bits(o, lane);
  if (!i.sdwa || index < 1 || index > 2) return all;
  const Part part = i.source[index - 1];
  if (part.bits == 32) return all;
  const u32 value = all >> part.shift & ((1u << part.bits) - 1);
  const u32 sign = 1u << (part.bits - 1);
  return o.sign_extend ? (value ^ sign) - sign : value;
}

float Wave::real(const Operand& o, int lane, int word) {
  float value = to_float(bits(o, lane, word));
  if (o.absolute) value = std::fabs(value);
  return o.negate ? -value : value;
}

double Wave::half(const Operand& o, int lane, bool high) {
  double value;
  if (o.kind == Operand::Kind::kReal) {
    value = high ? 0 : o.real;  // an inline constant fills the low half
  } else {
    value = test::half_value(static_cast<u16>(bits(o, lane) >> (high ? 16 : 0)));
  }
  if (o.absolute) value = std::fabs(value);
  return o.negate ? -value : value;
}

void Wave::write(const Operand& o, int lane, u32 value, int word) {
  if (o.kind != Operand::Kind::kVector && o.kind != Operand::Kind::kAccumulator)
    throw std::runtime_error("amdgpu: a vector result goes to what is no vector register");
  u32* to = &vector(o, lane, word);
  if (deferred)
    pending.emplace_back(to, value);
  else
    *to = value;
}

void Wave::result(const Instruction& i, int lane, u32 value) {
  if (i.sdwa && i.destination.bits < 32)  // UNUSED_PAD: the rest becomes zero
    value = (value & ((1u << i.destination.bits) - 1)) << i.destination.shift;
  write(i.operands[0], lane, value);
}

void Wave::set_scalar(const Operand& o, u32 value) {
  if (o.kind == Operand::Kind::kNull) return;
  if (o.kind != Operand::Kind::kScalar) throw std::runtime_error("amdgpu: a scalar result goes to no scalar register");
  scalars[o.index] = value;
}

void Wave::set_scalar64(const Operand& o, u64 value) {
  set_scalar(o, static_cast<u32>(value));
  if (o.kind == Operand::Kind::kScalar) scalars[o.index + 1] = static_cast<u32>(value >> 32);
}

}  // namespace q4::amdgpu
