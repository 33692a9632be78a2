// Scalar instructions: arithmetic, masks of lanes, branches.
#include <bit>

#include "tests/amdgpu/semantics.hpp"

namespace q4::amdgpu {
namespace {

u32 a32(Wave& w, const Instruction& i) { return w.bits(i.operands[1], 0); }
u32 b32(Wave& w, const Instruction& i) { return w.bits(i.operands[2], 0); }
u64 a64(Wave& w, const Instruction& i) { return w.bits64(i.operands[1], 0); }
u64 b64(Wave& w, const Instruction& i) { return w.bits64(i.operands[2], 0); }

/// destination = kDo(a, b); scc = it is not zero.
template <auto kDo>
void logic32(Wave& w, const Instruction& i) {
  const u32 r = kDo(a32(w, i), b32(w, i));
  w.set_scalar(i.operands[0], r), w.scc = r != 0;
}
template <auto kDo>
void logic64(Wave& w, const Instruction& i) {
  const u64 r = kDo(a64(w, i), b64(w, i));
  w.set_scalar64(i.operands[0], r), w.scc = r != 0;
}
/// destination = exec; exec = kDo(source, exec).
template <auto kDo>
void save_exec(Wave& w, const Instruction& i) {
  const u64 source = w.lanes == 64 ? a64(w, i) : a32(w, i), exec = w.mask(kExec);
  const u64 r = w.lanes == 64 ? kDo(source, exec) : static_cast<u32>(kDo(source, exec));
  if (w.lanes == 64)
    w.set_scalar64(i.operands[0], exec);
  else
    w.set_scalar(i.operands[0], static_cast<u32>(exec));
  w.set_mask(kExec, r), w.scc = r != 0;
}

u32 and32(u32 a, u32 b) { return a & b; }
u32 or32(u32 a, u32 b) { return a | b; }
u32 xor32(u32 a, u32 b) { return a ^ b; }
u32 andn32(u32 a, u32 b) { return a & ~b; }
u32 orn32(u32 a, u32 b) { return a | ~b; }
u32 shl32(u32 a, u32 b) { return a << (b & 31); }
u32 shr32(u32 a, u32 b) { return a >> (b & 31); }
u32 sar32(u32 a, u32 b) { return static_cast<u32>(static_cast<i32>(a) >> (b & 31)); }
u32 bfe_u32(u32 a, u32 b) {
  const u32 width = b >> 16 & 127, v = a >> (b & 31);
  return width >= 32 ? v : v & ((1u << width) - 1);
}
u32 bfe_i32(u32 a, u32 b) {
  const u32 width = b >> 16 & 127;
  if (width == 0 || width >= 32) return width ? sar32(a, b) : 0;
  const u32 sign = 1u << (width - 1);
  return (bfe_u32(a, b) ^ sign) - sign;
}
u64 and64(u64 a, u64 b) { return a & b; }
u64 or64(u64 a, u64 b) { return a | b; }
u64 xor64(u64 a, u64 b) { return a ^ b; }
u64 andn64(u64 a, u64 b) { return a & ~b; }
u64 orn64(u64 a, u64 b) { return a | ~b; }
u64 shl64(u64 a, u64 b) { return a << (b & 63); }
u64 shr64(u64 a, u64 b) { return a >> (b & 63); }
u64 sar64(u64 a, u64 b) { return static_cast<u64>(static_cast<i64>(a) >> (b & 63)); }

u64 bfe_u64(u64 a, u64 b) {
  const u64 width = b >> 16 & 127, v = a >> (b & 63);
  return width >= 64 ? v : v & ((u64{1} << width) - 1);
}
u64 bfe_i64(u64 a, u64 b) {
  const u64 width = b >> 16 & 127;
  if (width == 0 || width >= 64) return width ? sar64(a, b) : 0;
  const u64 sign = u64{1} << (width - 1);
  return (bfe_u64(a, b) ^ sign) - sign;
}

i32 immediate16(const Operand& o) { return static_cast<std::int16_t>(o.bits); }

/// a + b + carry in; scc = carry out, or signed overflow.
void add(Wave& w, const Instruction& i, u32 b, u32 carry, bool is_signed) {
  const u32 a = a32(w, i);
  const u64 sum = u64{a} + b + carry;
  const i64 exact = i64{static_cast<i32>(a)} + static_cast<i32>(b) + carry;
  w.set_scalar(i.operands[0], static_cast<u32>(sum));
  w.scc = is_signed ? exact != static_cast<i32>(sum) : sum >> 32 != 0;
}
void subtract(Wave& w, const Instruction& i, u32 borrow, bool is_signed) {
  const u32 a = a32(w, i), b = b32(w, i);
  const i64 exact = i64{static_cast<i32>(a)} - static_cast<i32>(b);
  w.set_scalar(i.operands[0], a - b - borrow);
  w.scc = is_signed ? exact != static_cast<i32>(a - b) : u64{b} + borrow > a;
}

template <auto kTaken>
void branch(Wave& w, const Instruction& i) {
  if (kTaken(w)) w.pc = i.target;
}

template <class T, auto kDo>
void compare(Wave& w, const Instruction& i) {
  if constexpr (sizeof(T) == 8)
    w.scc = kDo(static_cast<T>(w.bits64(i.operands[0], 0)), static_cast<T>(w.bits64(i.operands[1], 0)));
  else
    w.scc = kDo(static_cast<T>(w.bits(i.operands[0], 0)), static_cast<T>(w.bits(i.operands[1], 0)));
}
template <class T>
bool lt(T a, T b) {
  return a < b;
}
template <class T>
bool le(T a, T b) {
  return a <= b;
}
template <class T>
bool eq(T a, T b) {
  return a == b;
}
template <class T>
bool ne(T a, T b) {
  return a != b;
}
template <class T>
bool gt(T a, T b) {
  return a > b;
}
template <class T>
bool ge(T a, T b) {
  return a >= b;
}

template <class T>
void add_compares(Table& t, const std::string& prefix, const std::string& type) {
  t[prefix + "lt" + type] = compare<T, lt<T>>, t[prefix + "le" + type] = compare<T, le<T>>;
  t[prefix + "eq" + type] = compare<T, eq<T>>, t[prefix + "lg" + type] = compare<T, ne<T>>;
  t[prefix + "gt" + type] = compare<T, gt<T>>, t[prefix + "ge" + type] = compare<T, ge<T>>;
}

void add_arithmetic(Table& t) {
  t["s_add_u32"] = [](Wave& w, const Instruction& i) { add(w, i, b32(w, i), 0, false); };
  t["s_addc_u32"] = [](Wave& w, const Instruction& i) { add(w, i, b32(w, i), w.scc, false); };
  t["s_add_i32"] = [](Wave& w, const Instruction& i) { add(w, i, b32(w, i), 0, true); };
  t["s_sub_u32"] = [](Wave& w, const Instruction& i) { subtract(w, i, 0, false); };
  t["s_subb_u32"] = [](Wave& w, const Instruction& i) { subtract(w, i, w.scc, false); };
  t["s_sub_i32"] = [](Wave& w, const Instruction& i) { subtract(w, i, 0, true); };
  t["s_addk_i32"] = [](Wave& w, const Instruction& i) {
    const i64 sum = i64{static_cast<i32>(w.bits(i.operands[0], 0))} + immediate16(i.operands[1]);
    w.set_scalar(i.operands[0], static_cast<u32>(sum)), w.scc = sum != static_cast<i32>(sum);
  };
  t["s_mulk_i32"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], w.bits(i.operands[0], 0) * static_cast<u32>(immediate16(i.operands[1])));
  };
  t["s_movk_i32"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], static_cast<u32>(immediate16(i.operands[1])));
  };
  t["s_mul_i32"] = [](Wave& w, const Instruction& i) { w.set_scalar(i.operands[0], a32(w, i) * b32(w, i)); };
  t["s_mul_hi_u32"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], static_cast<u32>(u64{a32(w, i)} * b32(w, i) >> 32));
  };
  t["s_mul_hi_i32"] = [](Wave& w, const Instruction& i) {
    const i64 product = i64{static_cast<i32>(a32(w, i))} * static_cast<i32>(b32(w, i));
    w.set_scalar(i.operands[0], static_cast<u32>(product >> 32));
  };
  t["s_min_i32"] = [](Wave& w, const Instruction& i) {
    const auto a = static_cast<i32>(a32(w, i)), b = static_cast<i32>(b32(w, i));
    w.set_scalar(i.operands[0], static_cast<u32>(a < b ? a : b)), w.scc = a < b;
  };
  t["s_max_i32"] = [](Wave& w, const Instruction& i) {
    const auto a = static_cast<i32>(a32(w, i)), b = static_cast<i32>(b32(w, i));
    w.set_scalar(i.operands[0], static_cast<u32>(a > b ? a : b)), w.scc = a > b;
  };
  t["s_min_u32"] = [](Wave& w, const Instruction& i) {
    const u32 a = a32(w, i), b = b32(w, i);
    w.set_scalar(i.operands[0], a < b ? a : b), w.scc = a < b;
  };
  t["s_abs_i32"] = [](Wave& w, const Instruction& i) {
    const u32 a = a32(w, i), r = static_cast<i32>(a) < 0 ? 0u - a : a;
    w.set_scalar(i.operands[0], r), w.scc = r != 0;
  };
  t["s_sext_i32_i8"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], static_cast<u32>(static_cast<std::int8_t>(a32(w, i))));
  };
  t["s_sext_i32_i16"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], static_cast<u32>(static_cast<std::int16_t>(a32(w, i))));
  };
}

}  // namespace

void add_scalar(Table& t) {
  t["s_mov_b32"] = [](Wave& w, const Instruction& i) { w.set_scalar(i.operands[0], a32(w, i)); };
  t["s_brev_b32"] = [](Wave& w, const Instruction& i) {
    u32 reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (a32(w, i) >> bit & 1) << (31 - bit);
    w.set_scalar(i.operands[0], reversed);
  };
  t["s_mov_b64"] = [](Wave& w, const Instruction& i) { w.set_scalar64(i.operands[0], a64(w, i)); };
  t["s_cselect_b32"] = [](Wave& w, const Instruction& i) {
    w.set_scalar(i.operands[0], w.scc ? a32(w, i) : b32(w, i));
  };
  t["s_cselect_b64"] = [](Wave& w, const Instruction& i) {
    w.set_scalar64(i.operands[0], w.scc ? a64(w, i) : b64(w, i));
  };
  t["s_and_b32"] = logic32<and32>, t["s_or_b32"] = logic32<or32>, t["s_xor_b32"] = logic32<xor32>;
  t["s_andn2_b32"] = logic32<andn32>, t["s_orn2_b32"] = logic32<orn32>;
  t["s_lshl_b32"] = logic32<shl32>, t["s_lshr_b32"] = logic32<shr32>, t["s_ashr_i32"] = logic32<sar32>;
  t["s_bfe_u64"] = logic64<bfe_u64>, t["s_bfe_i64"] = logic64<bfe_i64>;
  t["s_bfe_u32"] = logic32<bfe_u32>, t["s_bfe_i32"] = logic32<bfe_i32>;
  t["s_and_b64"] = logic64<and64>, t["s_or_b64"] = logic64<or64>, t["s_xor_b64"] = logic64<xor64>;
  t["s_andn2_b64"] = logic64<andn64>, t["s_orn2_b64"] = logic64<orn64>;
  t["s_lshl_b64"] = logic64<shl64>, t["s_lshr_b64"] = logic64<shr64>, t["s_ashr_i64"] = logic64<sar64>;
  for (const std::string width : {"_b32", "_b64"}) {
    t["s_and_saveexec" + width] = save_exec<and64>, t["s_or_saveexec" + width] = save_exec<or64>;
    t["s_xor_saveexec" + width] = save_exec<xor64>, t["s_andn2_saveexec" + width] = save_exec<andn64>;
  }
  add_arithmetic(t);
  add_compares<u32>(t, "s_cmp_", "_u32"), add_compares<i32>(t, "s_cmp_", "_i32"),
      add_compares<u64>(t, "s_cmp_", "_u64");
  // The immediates of s_cmpk_*_i32 are 16 signed bits; the others are zero-extended, as objdump prints them.
  add_compares<u32>(t, "s_cmpk_", "_u32"), add_compares<i32>(t, "s_cmpk_", "_i32");
  t["s_branch"] = branch<[](const Wave&) { return true; }>;
  t["s_cbranch_scc0"] = branch<[](const Wave& w) { return !w.scc; }>;
  t["s_cbranch_scc1"] = branch<[](const Wave& w) { return w.scc; }>;
  t["s_cbranch_vccz"] = branch<[](const Wave& w) { return w.mask(kVcc) == 0; }>;
  t["s_cbranch_vccnz"] = branch<[](const Wave& w) { return w.mask(kVcc) != 0; }>;
  t["s_cbranch_execz"] = branch<[](const Wave& w) { return w.mask(kExec) == 0; }>;
  t["s_cbranch_execnz"] = branch<[](const Wave& w) { return w.mask(kExec) != 0; }>;
}

}  // namespace q4::amdgpu
