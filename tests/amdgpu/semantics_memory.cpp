// Loads and stores: scalar and vector global memory, and shared memory (LDS).
#include "tests/amdgpu/semantics.hpp"

namespace q4::amdgpu {
namespace {

constexpr u32 kMostBytes = 16;

template <int kWords>
void scalar_load(Wave& w, const Instruction& i) {
  const Operand& more = i.operands[2];
  u64 address = w.bits64(i.operands[1], 0) + static_cast<u64>(i64{i.offset});
  if (more.kind == Operand::Kind::kScalar) address += w.bits(more, 0);
  if (more.kind == Operand::Kind::kInteger) address += static_cast<u64>(i64{static_cast<i32>(more.bits)});
  std::memcpy(&w.scalars[i.operands[0].index], w.block->global(address, 4 * kWords, i), 4 * kWords);
}

/// Scalar base and 32-bit lane offset, or a 64-bit lane address and "off".
u64 global_address(Wave& w, const Instruction& i, int lane, const Operand& vector, const Operand& base) {
  const u64 address = base.kind == Operand::Kind::kScalar
                          ? w.bits64(base, lane) + (vector.kind == Operand::Kind::kOff ? 0 : w.bits(vector, lane))
                          : w.bits64(vector, lane);
  return address + static_cast<u64>(i64{i.offset});
}

template <u32 kBytes>
void global_load(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 words[kMostBytes / 4] = {};
    std::memcpy(words, w.block->global(global_address(w, i, lane, i.operands[1], i.operands[2]), kBytes, i), kBytes);
    for (u32 word = 0; word < (kBytes + 3) / 4; ++word)
      w.write(i.operands[0], lane, words[word], static_cast<int>(word));
  });
}
template <u32 kBytes>
void global_store(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 words[kMostBytes / 4];
    for (u32 word = 0; word < (kBytes + 3) / 4; ++word)
      words[word] = w.bits(i.operands[1], lane, static_cast<int>(word));
    std::memcpy(w.block->global(global_address(w, i, lane, i.operands[0], i.operands[2]), kBytes, i), words, kBytes);
  });
}
/// The upper half of a register.
void global_store_high(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    const u32 word = w.bits(i.operands[1], lane) >> 16;
    std::memcpy(w.block->global(global_address(w, i, lane, i.operands[0], i.operands[2]), 2, i), &word, 2);
  });
}
/// Into one half of a register; the other stays.
template <bool kHigh>
void global_load_half(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 half = 0;
    std::memcpy(&half, w.block->global(global_address(w, i, lane, i.operands[1], i.operands[2]), 2, i), 2);
    const u32 before = w.bits(i.operands[0], lane);
    w.write(i.operands[0], lane, kHigh ? (before & 0xffffu) | half << 16 : (before & 0xffff0000u) | half);
  });
}

u32 shared_address(Wave& w, const Instruction& i, const Operand& o, int lane) {
  return w.bits(o, lane) + static_cast<u32>(i.offset);
}
template <u32 kBytes>
void shared_read(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 words[kMostBytes / 4] = {};
    w.block->shared.read(w.number, shared_address(w, i, i.operands[1], lane), words, kBytes, i);
    for (u32 word = 0; word < (kBytes + 3) / 4; ++word)
      w.write(i.operands[0], lane, words[word], static_cast<int>(word));
  });
}
template <u32 kBytes>
void shared_write(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 words[kMostBytes / 4];
    for (u32 word = 0; word < (kBytes + 3) / 4; ++word)
      words[word] = w.bits(i.operands[1], lane, static_cast<int>(word));
    w.block->shared.write(w.number, shared_address(w, i, i.operands[0], lane), words, kBytes, i);
  });
}
void shared_write_high(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    const u32 word = w.bits(i.operands[1], lane) >> 16;
    w.block->shared.write(w.number, shared_address(w, i, i.operands[0], lane), &word, 2, i);
  });
}
/// Two places, their offsets in units of kStep elements.
template <u32 kBytes, u32 kStep>
void shared_read2(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 words[kMostBytes / 4];
    for (const u32 part : {0u, 1u}) {
      const u32 offset = static_cast<u32>(part ? i.offset1 : i.offset0) * kBytes * kStep;
      w.block->shared.read(w.number, w.bits(i.operands[1], lane) + offset, words + part * kBytes / 4, kBytes, i);
    }
    for (u32 word = 0; word < kBytes / 2; ++word) w.write(i.operands[0], lane, words[word], static_cast<int>(word));
  });
}
template <u32 kBytes, u32 kStep>
void shared_write2(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    for (const u32 part : {0u, 1u}) {
      u32 words[2];
      for (u32 word = 0; word < kBytes / 4; ++word)
        words[word] = w.bits(i.operands[1 + part], lane, static_cast<int>(word));
      const u32 offset = static_cast<u32>(part ? i.offset1 : i.offset0) * kBytes * kStep;
      w.block->shared.write(w.number, w.bits(i.operands[0], lane) + offset, words, kBytes, i);
    }
  });
}

}  // namespace

void add_memory(Table& t) {
  t["s_load_dword"] = scalar_load<1>, t["s_load_dwordx2"] = scalar_load<2>, t["s_load_dwordx4"] = scalar_load<4>;
  t["s_load_dwordx8"] = scalar_load<8>, t["s_load_dwordx16"] = scalar_load<16>;
  t["global_load_ubyte"] = global_load<1>, t["global_load_ushort"] = global_load<2>;
  t["global_load_dword"] = global_load<4>, t["global_load_dwordx2"] = global_load<8>;
  t["global_load_dwordx3"] = global_load<12>, t["global_load_dwordx4"] = global_load<16>;
  t["global_load_short_d16"] = t["global_load_d16_ushort"] = global_load_half<false>;
  t["global_load_short_d16_hi"] = global_load_half<true>;
  t["global_store_byte"] = global_store<1>, t["global_store_short"] = global_store<2>;
  t["global_store_short_d16_hi"] = t["global_store_d16_hi_short"] = global_store_high;
  t["global_store_dword"] = global_store<4>, t["global_store_dwordx2"] = global_store<8>;
  t["global_store_dwordx3"] = global_store<12>, t["global_store_dwordx4"] = global_store<16>;
  t["ds_read_u8"] = shared_read<1>, t["ds_read_u16"] = shared_read<2>, t["ds_read_b32"] = shared_read<4>;
  t["ds_read_b64"] = shared_read<8>, t["ds_read_b96"] = shared_read<12>, t["ds_read_b128"] = shared_read<16>;
  t["ds_write_b8"] = shared_write<1>, t["ds_write_b16"] = shared_write<2>, t["ds_write_b32"] = shared_write<4>;
  t["ds_write_b64"] = shared_write<8>, t["ds_write_b96"] = shared_write<12>, t["ds_write_b128"] = shared_write<16>;
  t["ds_write_b16_d16_hi"] = shared_write_high;
  t["ds_read2_b32"] = shared_read2<4, 1>, t["ds_read2_b64"] = shared_read2<8, 1>;
  t["ds_read2st64_b32"] = shared_read2<4, 64>, t["ds_read2st64_b64"] = shared_read2<8, 64>;
  t["ds_write2_b32"] = shared_write2<4, 1>, t["ds_write2_b64"] = shared_write2<8, 1>;
  t["ds_write2st64_b32"] = shared_write2<4, 64>, t["ds_write2st64_b64"] = shared_write2<8, 64>;
}

}  // namespace q4::amdgpu
