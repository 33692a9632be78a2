// Matrix instructions: 16 x 16 x 16, 16-bit in, fp32 out. Who holds what is written here from AMD's documents (the
// matrix instruction calculator; the RDNA 3 ISA, "WMMA"), independently of kernels/mma_tile.h.
#include <cmath>

#include "tests/amdgpu/semantics.hpp"
#include "tests/reference.hpp"

namespace q4::amdgpu {
namespace {

double half_value(u16 bits) { return test::half_value(bits); }
double bf16_value(u16 bits) { return test::bf16_value(bits); }

/// Lane and element of A[row][k] (and of B[k][column], the same with its column).
struct InPlace {
  int lane, element;
};
/// Lane and register of D[row][column].
struct OutPlace {
  int lane, word;
};

InPlace mfma_in(int row, int k) { return {row + 16 * (k / 4), k % 4}; }
OutPlace mfma_out(int row, int column) { return {column + 16 * (row / 4), row % 4}; }
InPlace wmma_in(int row, int k) { return {row, k}; }  // the upper 16 lanes must hold the same
OutPlace wmma_out(int row, int column) { return {column + 16 * (row % 2), row / 2}; }

template <auto kValue, auto kIn, auto kOut>
void multiply(Wave& w, const Instruction& i) {
  const auto element = [&](const Operand& o, int row, int k) {
    const InPlace at = kIn(row, k);
    return kValue(static_cast<u16>(w.bits(o, at.lane, at.element / 2) >> (16 * (at.element % 2))));
  };
  float a[16][16], b[16][16], d[16][16];
  for (int r = 0; r < 16; ++r)
    for (int k = 0; k < 16; ++k)
      a[r][k] = static_cast<float>(element(i.operands[1], r, k)),
      b[r][k] = static_cast<float>(element(i.operands[2], r, k));
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) {
      const OutPlace at = kOut(r, c);
      const bool constant = i.operands[3].kind == Operand::Kind::kInteger;
      float sum = to_float(w.bits(i.operands[3], at.lane, constant ? 0 : at.word));
      for (int k = 0; k < 16; ++k) sum = std::fma(a[r][k], b[c][k], sum);
      d[r][c] = sum;
    }
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) {
      const OutPlace at = kOut(r, c);
      w.write(i.operands[0], at.lane, to_bits(d[r][c]), at.word);
    }
}

/// gfx11 wants A and B twice: lanes 16..31 repeat lanes 0..15.
template <auto kValue>
void wmma(Wave& w, const Instruction& i) {
  for (const std::size_t source : {1, 2})
    for (int lane = 0; lane < 16; ++lane)
      for (int word = 0; word < 8; ++word)
        if (w.bits(i.operands[source], lane, word) != w.bits(i.operands[source], lane + 16, word))
          fail("the two halves of a WMMA operand differ", i);
  multiply<kValue, wmma_in, wmma_out>(w, i);
}

}  // namespace

void add_matrix(Table& t) {
  t["v_mfma_f32_16x16x16_f16"] = multiply<half_value, mfma_in, mfma_out>;
  t["v_mfma_f32_16x16x16_bf16"] = multiply<bf16_value, mfma_in, mfma_out>;
  t["v_wmma_f32_16x16x16_f16"] = wmma<half_value>;
  t["v_wmma_f32_16x16x16_bf16"] = wmma<bf16_value>;
}

}  // namespace q4::amdgpu
