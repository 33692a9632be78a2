// Vector instructions on integers, masks and lanes.
#include <bit>

#include "tests/amdgpu/semantics.hpp"

namespace q4::amdgpu {
namespace {

template <auto kDo>
void one(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) { w.result(i, lane, kDo(w.source(i, 1, lane))); });
}
template <auto kDo>
void two(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) { w.result(i, lane, kDo(w.source(i, 1, lane), w.source(i, 2, lane))); });
}
template <auto kDo>
void three(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    w.result(i, lane, kDo(w.bits(i.operands[1], lane), w.bits(i.operands[2], lane), w.bits(i.operands[3], lane)));
  });
}
/// Shifts of 64 bits: the amount is the first operand.
template <auto kDo>
void shift64(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    w.write64(i.operands[0], lane, kDo(w.bits64(i.operands[2], lane), w.bits(i.operands[1], lane) & 63));
  });
}

u32 low24(u32 a) { return a & 0xffffffu; }
i32 signed24(u32 a) { return static_cast<i32>(a << 8) >> 8; }
i32 s(u32 a) { return static_cast<i32>(a); }
u32 u(i64 a) { return static_cast<u32>(a); }
u32 bfe(u32 a, u32 offset, u32 width) { return (a >> (offset & 31)) & ((1u << (width & 31)) - 1); }
u32 bfe_signed(u32 a, u32 offset, u32 width) {
  width &= 31;
  if (width == 0) return 0;
  const u32 sign = 1u << (width - 1);
  return (bfe(a, offset, width) ^ sign) - sign;
}
/// (high : low) >> shift
u32 align_bit(u32 high, u32 low, u32 shift) { return static_cast<u32>((u64{high} << 32 | low) >> (shift & 31)); }
/// Bytes of (a : b), b the lower, by the selector's four bytes; 12 is zero. Others of the odd selectors are not used.
u32 permute(u32 a, u32 b, u32 selector) {
  u32 result = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const u32 which = selector >> (8 * byte) & 255;
    const u32 value = which < 8 ? static_cast<u32>((u64{a} << 32 | b) >> (8 * which)) & 255 : which == 12 ? 0 : 255;
    result |= value << (8 * byte);
  }
  return result;
}

void add_bits(Table& t) {
  t["v_mov_b32"] = one<[](u32 a) { return a; }>, t["v_not_b32"] = one<[](u32 a) { return ~a; }>;
  t["v_and_b32"] = two<[](u32 a, u32 b) { return a & b; }>, t["v_or_b32"] = two<[](u32 a, u32 b) { return a | b; }>;
  t["v_xor_b32"] = two<[](u32 a, u32 b) { return a ^ b; }>;
  t["v_lshlrev_b32"] = two<[](u32 a, u32 b) { return (b << (a & 31)); }>;
  t["v_lshrrev_b32"] = two<[](u32 a, u32 b) { return (b >> (a & 31)); }>;
  t["v_ashrrev_i32"] = two<[](u32 a, u32 b) { return (u(s(b) >> (a & 31))); }>;
  t["v_lshrrev_b16"] = two<[](u32 a, u32 b) { return ((b & 0xffffu) >> (a & 15)); }>;
  t["v_lshlrev_b16"] = two<[](u32 a, u32 b) { return (b << (a & 15) & 0xffffu); }>;
  t["v_ashrrev_i16"] = two<[](u32 a, u32 b) { return (u(static_cast<std::int16_t>(b) >> (a & 15)) & 0xffffu); }>;
  t["v_lshlrev_b64"] = shift64<[](u64 v, u32 n) { return (v << n); }>;
  t["v_lshrrev_b64"] = shift64<[](u64 v, u32 n) { return (v >> n); }>;
  t["v_ashrrev_i64"] = shift64<[](u64 v, u32 n) { return (static_cast<u64>(static_cast<i64>(v) >> n)); }>;
  t["v_and_or_b32"] = three<[](u32 a, u32 b, u32 c) { return (a & b) | c; }>;
  t["v_or3_b32"] = three<[](u32 a, u32 b, u32 c) { return a | b | c; }>;
  t["v_lshl_or_b32"] = three<[](u32 a, u32 b, u32 c) { return ((a << (b & 31)) | c); }>;
  t["v_bfe_u32"] = three<bfe>, t["v_bfe_i32"] = three<bfe_signed>;
  t["v_bfi_b32"] = three<[](u32 a, u32 b, u32 c) { return (a & b) | (~a & c); }>;
  t["v_alignbit_b32"] = three<align_bit>, t["v_perm_b32"] = three<permute>;
  t["v_mov_b64"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.write64(i.operands[0], lane, w.bits64(i.operands[1], lane)); });
  };
  t["v_pk_mov_b32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const u32 low = w.bits(i.operands[1], lane, i.op_sel & 1), high = w.bits(i.operands[2], lane, i.op_sel >> 1 & 1);
      w.write(i.operands[0], lane, low), w.write(i.operands[0], lane, high, 1);
    });
  };
  t["v_cndmask_b32"] = [](Wave& w, const Instruction& i) {
    const u64 chosen = w.mask(i.operands.size() > 3 ? i.operands[3].index : kVcc);
    each_lane(w, [&](int lane) { w.result(i, lane, w.source(i, chosen >> lane & 1 ? 2 : 1, lane)); });
  };
}

void add_arithmetic(Table& t) {
  t["v_bcnt_u32_b32"] = two<[](u32 a, u32 b) { return static_cast<u32>(std::popcount(a)) + b; }>;
  t["v_add_u32"] = two<[](u32 a, u32 b) { return a + b; }>, t["v_sub_u32"] = two<[](u32 a, u32 b) { return a - b; }>;
  t["v_subrev_u32"] = two<[](u32 a, u32 b) { return b - a; }>;
  t["v_add_u16"] = two<[](u32 a, u32 b) { return (a + b) & 0xffffu; }>;
  t["v_sub_u16"] = two<[](u32 a, u32 b) { return (a - b) & 0xffffu; }>;
  t["v_mul_lo_u16"] = two<[](u32 a, u32 b) { return a * b & 0xffffu; }>;
  t["v_mul_lo_u32"] = two<[](u32 a, u32 b) { return a * b; }>;
  t["v_mul_hi_u32"] = two<[](u32 a, u32 b) { return static_cast<u32>(u64{a} * b >> 32); }>;
  t["v_mul_hi_i32"] = two<[](u32 a, u32 b) { return u(i64{s(a)} * s(b) >> 32); }>;
  t["v_mul_u32_u24"] = two<[](u32 a, u32 b) { return low24(a) * low24(b); }>;
  t["v_mul_hi_u32_u24"] = two<[](u32 a, u32 b) { return static_cast<u32>(u64{low24(a)} * low24(b) >> 32); }>;
  t["v_mul_i32_i24"] = two<[](u32 a, u32 b) { return u(i64{signed24(a)} * signed24(b)); }>;
  t["v_mul_hi_i32_i24"] = two<[](u32 a, u32 b) { return u(i64{signed24(a)} * signed24(b) >> 32); }>;
  t["v_min_u32"] = two<[](u32 a, u32 b) { return (a < b ? a : b); }>;
  t["v_max_u32"] = two<[](u32 a, u32 b) { return (a > b ? a : b); }>;
  t["v_min_i32"] = two<[](u32 a, u32 b) { return (s(a) < s(b) ? a : b); }>;
  t["v_max_i32"] = two<[](u32 a, u32 b) { return (s(a) > s(b) ? a : b); }>;
  t["v_add3_u32"] = three<[](u32 a, u32 b, u32 c) { return a + b + c; }>;
  t["v_lshl_add_u32"] = three<[](u32 a, u32 b, u32 c) { return ((a << (b & 31)) + c); }>;
  t["v_add_lshl_u32"] = three<[](u32 a, u32 b, u32 c) { return ((a + b) << (c & 31)); }>;
  t["v_xad_u32"] = three<[](u32 a, u32 b, u32 c) { return (a ^ b) + c; }>;
  t["v_mad_u32_u24"] = three<[](u32 a, u32 b, u32 c) { return low24(a) * low24(b) + c; }>;
  t["v_mad_i32_i24"] = three<[](u32 a, u32 b, u32 c) { return u(i64{signed24(a)} * signed24(b)) + c; }>;
  t["v_lshl_add_u64"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      w.write64(i.operands[0], lane,
                (w.bits64(i.operands[1], lane) << (w.bits(i.operands[2], lane) & 7)) + w.bits64(i.operands[3], lane));
    });
  };
  // The second destination takes the carries, which nobody reads.
  t["v_mad_u64_u32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      w.write64(i.operands[0], lane,
                u64{w.bits(i.operands[2], lane)} * w.bits(i.operands[3], lane) + w.bits64(i.operands[4], lane));
    });
  };
  t["v_mad_i64_i32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const i64 product = i64{s(w.bits(i.operands[2], lane))} * s(w.bits(i.operands[3], lane));
      w.write64(i.operands[0], lane, static_cast<u64>(product) + w.bits64(i.operands[4], lane));
    });
  };
}

/// a + b + carry with a mask of carries in (operand 4) and out (operand 1); kSubtract: b is subtracted from a.
template <bool kCarryIn, bool kSubtract, bool kReversed>
void add_carry(Wave& w, const Instruction& i) {
  const u64 in = kCarryIn ? w.mask(i.operands[4].index) : 0;
  u64 out = 0;
  each_lane(w, [&](int lane) {
    const u64 first = w.bits(i.operands[kReversed ? 3 : 2], lane), second = w.bits(i.operands[kReversed ? 2 : 3], lane);
    const u64 carry = in >> lane & 1, r = kSubtract ? first - second - carry : first + second + carry;
    w.write(i.operands[0], lane, static_cast<u32>(r));
    out |= (r >> 32 & 1) << lane;
  });
  if (i.operands[1].kind == Operand::Kind::kScalar) w.set_mask(i.operands[1].index, out);
}

void add_lanes(Table& t) {
  t["v_mbcnt_lo_u32_b32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const u32 below = lane >= 32 ? ~0u : (1u << lane) - 1;
      w.write(i.operands[0], lane,
              static_cast<u32>(std::popcount(w.bits(i.operands[1], lane) & below)) + w.bits(i.operands[2], lane));
    });
  };
  t["v_mbcnt_hi_u32_b32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const u32 below = lane >= 32 ? (1u << (lane - 32)) - 1 : 0;
      w.write(i.operands[0], lane,
              static_cast<u32>(std::popcount(w.bits(i.operands[1], lane) & below)) + w.bits(i.operands[2], lane));
    });
  };
  t["v_readfirstlane_b32"] = [](Wave& w, const Instruction& i) {
    const u64 exec = w.mask(kExec);
    w.set_scalar(i.operands[0], w.bits(i.operands[1], exec ? std::countr_zero(exec) : 0));
  };
  t["v_readlane_b32"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0],
                 w.bits(i.operands[1], static_cast<int>(w.bits(i.operands[2], 0) % static_cast<u32>(w.lanes))));
  };
  t["v_writelane_b32"] = [](Wave& w, const Instruction& i) {
    w.write(i.operands[0], static_cast<int>(w.bits(i.operands[2], 0) % static_cast<u32>(w.lanes)),
            w.bits(i.operands[1], 0));
  };
  t["ds_bpermute_b32"] = [](Wave& w, const Instruction& i) {
    u32 value[64] = {};
    for (int lane = 0; lane < w.lanes; ++lane)
      if (w.active(lane)) value[lane] = w.bits(i.operands[2], lane);
    each_lane(w, [&](int lane) {
      const u32 address = w.bits(i.operands[1], lane) + static_cast<u32>(i.offset);
      w.write(i.operands[0], lane, value[address / 4 % static_cast<u32>(w.lanes)]);  // inactive lanes give zero
    });
  };
}

}  // namespace

void add_integer(Table& t) {
  add_bits(t), add_arithmetic(t), add_lanes(t);
  t["v_add_co_u32"] = add_carry<false, false, false>, t["v_addc_co_u32"] = add_carry<true, false, false>;
  t["v_sub_co_u32"] = add_carry<false, true, false>, t["v_subb_co_u32"] = add_carry<true, true, false>;
  t["v_subrev_co_u32"] = add_carry<false, true, true>, t["v_subbrev_co_u32"] = add_carry<true, true, true>;
}

}  // namespace q4::amdgpu
