// Vector instructions on fp32, packed fp16 and mixtures; conversions and comparisons.
#include <cmath>

#include "tests/amdgpu/semantics.hpp"
#include "tests/reference.hpp"

namespace q4::amdgpu {
namespace {

/// fp32 from fp32 operands 1, 2, ...
template <auto kDo>
void one(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) { w.result(i, lane, to_bits(kDo(w.real(i.operands[1], lane)))); });
}
template <auto kDo>
void two(Wave& w, const Instruction& i) {
  each_lane(
      w, [&](int lane) { w.result(i, lane, to_bits(kDo(w.real(i.operands[1], lane), w.real(i.operands[2], lane)))); });
}
/// kDo(a, b, destination): the accumulating forms.
template <auto kDo>
void accumulate(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    w.result(i, lane,
             to_bits(kDo(w.real(i.operands[1], lane), w.real(i.operands[2], lane), w.real(i.operands[0], lane))));
  });
}
template <auto kDo>
void three(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    w.result(i, lane,
             to_bits(kDo(w.real(i.operands[1], lane), w.real(i.operands[2], lane), w.real(i.operands[3], lane))));
  });
}

float fma32(float a, float b, float c) { return std::fma(a, b, c); }

// ---- packed ---------------------------------------------------------------------------------------------------------
bool bit(unsigned bits, std::size_t element) { return bits >> element & 1; }
/// Which half of source `source` enters the result's half `high`.
bool selects_high(const Instruction& i, std::size_t source, bool high) {
  if (high) return i.has_op_sel_hi ? bit(i.op_sel_hi, source) : true;
  return bit(i.op_sel, source);
}
bool negates(const Instruction& i, std::size_t source, bool high) { return bit(high ? i.neg_hi : i.neg_lo, source); }

/// Two halves at once. A double holds a product of halves and a sum of two exactly, so each result is rounded once (a
/// fused one all but always: 53 bits cannot hold every product plus every third operand).
template <int kSources, auto kDo>
void packed_half(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 result = 0;
    for (const bool high : {false, true}) {
      double v[3] = {};
      for (std::size_t k = 0; k < kSources; ++k) {
        v[k] = w.half(i.operands[1 + k], lane, selects_high(i, k, high));
        if (negates(i, k, high)) v[k] = -v[k];
      }
      result |= static_cast<u32>(test::half_bits(kDo(v[0], v[1], v[2]))) << (high ? 16 : 0);
    }
    w.write(i.operands[0], lane, result);
  });
}
/// Two floats at once, in register pairs.
template <int kSources, auto kDo>
void packed_float(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    u32 result[2];
    for (const bool high : {false, true}) {
      float v[3] = {};
      for (std::size_t k = 0; k < kSources; ++k) {
        const Operand& o = i.operands[1 + k];
        v[k] = to_float(w.bits(o, lane, o.count > 1 && selects_high(i, k, high)));
        if (negates(i, k, high)) v[k] = -v[k];
      }
      result[high] = to_bits(kDo(v[0], v[1], v[2]));
    }
    w.write(i.operands[0], lane, result[0]), w.write(i.operands[0], lane, result[1], 1);
  });
}
/// Operands of v_fma_mix*: fp16 halves where op_sel_hi says so, else fp32.
float mixed(Wave& w, const Instruction& i, std::size_t source, int lane) {
  const Operand& o = i.operands[1 + source];
  return bit(i.op_sel_hi, source) ? static_cast<float>(w.half(o, lane, bit(i.op_sel, source))) : w.real(o, lane);
}
float mixed_fma(Wave& w, const Instruction& i, int lane) {
  return std::fma(mixed(w, i, 0, lane), mixed(w, i, 1, lane), mixed(w, i, 2, lane));
}
template <bool kHigh>
void mixed_to_half(Wave& w, const Instruction& i) {
  each_lane(w, [&](int lane) {
    const u32 half = test::half_bits(mixed_fma(w, i, lane)), before = w.bits(i.operands[0], lane);
    w.write(i.operands[0], lane, kHigh ? (before & 0xffffu) | half << 16 : (before & 0xffff0000u) | half);
  });
}
/// a.low b.low + a.high b.high + c. The order and the roundings between are the hardware's; here each sum rounds once.
float dot2(Wave& w, const Instruction& i, int lane, const Operand& c) {
  double sum = w.real(c, lane);
  for (const bool high : {false, true})
    sum = static_cast<float>(sum + w.half(i.operands[1], lane, high) * w.half(i.operands[2], lane, high));
  return static_cast<float>(sum);
}

void add_packed(Table& t) {
  t["v_pk_add_f16"] = packed_half<2, [](double a, double b, double) { return a + b; }>;
  t["v_pk_mul_f16"] = packed_half<2, [](double a, double b, double) { return a * b; }>;
  t["v_pk_fma_f16"] = packed_half<3, [](double a, double b, double c) { return a * b + c; }>;
  t["v_pk_add_f32"] = packed_float<2, [](float a, float b, float) { return a + b; }>;
  t["v_pk_mul_f32"] = packed_float<2, [](float a, float b, float) { return a * b; }>;
  t["v_pk_fma_f32"] = packed_float<3, fma32>;
  t["v_fma_mix_f32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.write(i.operands[0], lane, to_bits(mixed_fma(w, i, lane))); });
  };
  t["v_fma_mixlo_f16"] = mixed_to_half<false>, t["v_fma_mixhi_f16"] = mixed_to_half<true>;
  t["v_dot2_f32_f16"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.write(i.operands[0], lane, to_bits(dot2(w, i, lane, i.operands[3]))); });
  };
  t["v_dot2c_f32_f16"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.write(i.operands[0], lane, to_bits(dot2(w, i, lane, i.operands[0]))); });
  };
}

// ---- conversions and comparisons ------------------------------------------------------------------------------------
/// Out of range saturates, NaN gives zero.
template <class T>
T to_integer(float v) {
  if (std::isnan(v)) return 0;
  const double low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
  return v <= low ? std::numeric_limits<T>::min() : v >= high ? std::numeric_limits<T>::max() : static_cast<T>(v);
}

void add_conversions(Table& t) {
  t["v_cvt_f32_f16"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const bool high = i.sdwa && i.source[0].shift == 16;
      w.result(i, lane, to_bits(static_cast<float>(w.half(i.operands[1], lane, high))));
    });
  };
  t["v_cvt_f16_f32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, test::half_bits(w.real(i.operands[1], lane))); });
  };
  t["v_cvt_f32_u32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, to_bits(static_cast<float>(w.source(i, 1, lane)))); });
  };
  t["v_cvt_f32_i32"] = [](Wave& w, const Instruction& i) {
    each_lane(
        w, [&](int lane) { w.result(i, lane, to_bits(static_cast<float>(static_cast<i32>(w.source(i, 1, lane))))); });
  };
  t["v_cvt_f32_ubyte0"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, to_bits(static_cast<float>(w.source(i, 1, lane) & 255))); });
  };
  t["v_cvt_f32_ubyte1"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, to_bits(static_cast<float>(w.source(i, 1, lane) >> 8 & 255))); });
  };
  t["v_cvt_u32_f32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, to_integer<u32>(w.real(i.operands[1], lane))); });
  };
  t["v_cvt_i32_f32"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) { w.result(i, lane, static_cast<u32>(to_integer<i32>(w.real(i.operands[1], lane)))); });
  };
  t["v_pack_b32_f16"] = [](Wave& w, const Instruction& i) {
    each_lane(w, [&](int lane) {
      const u32 low = w.bits(i.operands[1], lane) >> (bit(i.op_sel, 0) ? 16 : 0) & 0xffffu;
      const u32 high = w.bits(i.operands[2], lane) >> (bit(i.op_sel, 1) ? 16 : 0) & 0xffffu;
      w.write(i.operands[0], lane, low | high << 16);
    });
  };
}

template <class T>
T value(Wave& w, const Operand& o, int lane) {
  if constexpr (std::is_same_v<T, float>)
    return w.real(o, lane);
  else if constexpr (std::is_same_v<T, double>)  // fp16
    return w.half(o, lane, false);
  else if constexpr (sizeof(T) == 8)
    return static_cast<T>(w.bits64(o, lane));
  else
    return static_cast<T>(w.bits(o, lane));
}

/// v_cmp writes a mask; v_cmpx writes exec, and before RDNA a mask too.
template <class T, auto kDo, bool kExecute>
void compare(Wave& w, const Instruction& i) {
  const bool has_mask = !kExecute || !i.rdna;
  const std::size_t first = has_mask ? 1 : 0;
  u64 result = 0;
  each_lane(w, [&](int lane) {
    const T a = value<T>(w, i.operands[first], lane), b = value<T>(w, i.operands[first + 1], lane);
    result |= static_cast<u64>(kDo(a, b)) << lane;
  });
  if (has_mask) w.set_mask(i.operands[0].index, result);
  if (kExecute) w.set_mask(kExec, result);
}

template <class T, auto kDo>
void add_compare(Table& t, const std::string& condition, const std::string& type) {
  t["v_cmp_" + condition + "_" + type] = compare<T, kDo, false>;
  t["v_cmpx_" + condition + "_" + type] = compare<T, kDo, true>;
}
template <class T>
void add_compares(Table& t, const std::string& type) {
  add_compare<T, [](T a, T b) { return (a < b); }>(t, "lt", type);
  add_compare<T, [](T a, T b) { return (a <= b); }>(t, "le", type);
  add_compare<T, [](T a, T b) { return a == b; }>(t, "eq", type);
  add_compare<T, [](T a, T b) { return (a > b); }>(t, "gt", type);
  add_compare<T, [](T a, T b) { return (a >= b); }>(t, "ge", type);
  if constexpr (std::is_floating_point_v<T>) {  // false, or true, where one is NaN
    add_compare<T, [](T a, T b) { return (a < b || a > b); }>(t, "lg", type);
    add_compare<T, [](T a, T b) { return !(a == b); }>(t, "neq", type);
    add_compare<T, [](T a, T b) { return !(a < b); }>(t, "nlt", type);
    add_compare<T, [](T a, T b) { return !(a <= b); }>(t, "nle", type);
    add_compare<T, [](T a, T b) { return !(a > b); }>(t, "ngt", type);
    add_compare<T, [](T a, T b) { return !(a >= b); }>(t, "nge", type);
    add_compare<T, [](T a, T b) { return a != a || b != b; }>(t, "u", type);
    add_compare<T, [](T a, T b) { return a == a && b == b; }>(t, "o", type);
  } else {
    add_compare<T, [](T a, T b) { return a != b; }>(t, "ne", type);
  }
}

}  // namespace

void add_real(Table& t) {
  t["v_add_f32"] = two<[](float a, float b) { return a + b; }>,
  t["v_sub_f32"] = two<[](float a, float b) { return a - b; }>;
  t["v_subrev_f32"] = two<[](float a, float b) { return b - a; }>;
  t["v_mul_f32"] = two<[](float a, float b) { return a * b; }>;
  t["v_max_f32"] = two<[](float a, float b) { return std::fmax(a, b); }>;
  t["v_min_f32"] = two<[](float a, float b) { return std::fmin(a, b); }>;
  t["v_fma_f32"] = three<fma32>, t["v_fmac_f32"] = accumulate<fma32>;
  t["v_fmaak_f32"] = three<fma32>, t["v_fmamk_f32"] = three<fma32>;
  t["v_mac_f32"] = accumulate<[](float a, float b, float c) { return a * b + c; }>;
  t["v_mad_f32"] = three<[](float a, float b, float c) { return a * b + c; }>;
  t["v_rcp_f32"] = t["v_rcp_iflag_f32"] = one<[](float a) { return 1.f / a; }>;
  t["v_exp_f32"] = one<[](float a) { return std::exp2(a); }>;
  t["v_trunc_f32"] = one<[](float a) { return std::trunc(a); }>;
  t["v_floor_f32"] = one<[](float a) { return std::floor(a); }>;
  add_packed(t), add_conversions(t);
  add_compares<float>(t, "f32"), add_compares<double>(t, "f16");
  add_compares<u32>(t, "u32"), add_compares<i32>(t, "i32"), add_compares<u64>(t, "u64"), add_compares<i64>(t, "i64");
  add_compares<u16>(t, "u16"), add_compares<std::int16_t>(t, "i16");
}

}  // namespace q4::amdgpu
