// GPTQ packed into words of 8, 16 or 64 bits (GPTQModel's pack_dtype): little-endian, so that qzeros are the same
// bytes, and qweight differs in how many rows a word holds.
//
//     qweight [ceil(4 k / bits), n]   qzeros [groups, ceil(4 n / bits)]   scales [groups, n]   g_idx [k]
#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

/// Bits of a word; 0: not an integer type of this format.
std::int64_t word_bits(const std::string& dtype) {
  if (dtype == "I8" || dtype == "U8") return 8;
  if (dtype == "I16" || dtype == "U16") return 16;
  if (dtype == "I64" || dtype == "U64") return 64;
  return 0;
}

/// Adds 1 to each nibble of little-endian words, a word at a time, so that carries stay within words: undoes what
/// gptq_borrow.cpp tells of.
void add_ones(std::vector<std::uint8_t>& words, std::int64_t word_bytes) {
  int carry = 0;
  for (std::size_t at = 0; at < words.size(); ++at) {
    if (at % static_cast<std::size_t>(word_bytes) == 0) carry = 0;
    const int sum = words[at] + 0x11 + carry;
    words[at] = static_cast<std::uint8_t>(sum);
    carry = sum >> 8;
  }
}

class GptqWords : public Reader {
 public:
  const char* name() const override { return "GPTQ in 8, 16 or 64-bit words"; }

  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    return matrix.suffix == "qweight" && claimed.packing.value_or(Packing::kGptq) == Packing::kGptq &&
           word_bits(matrix.codes.tensor->dtype) != 0;
  }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    MatrixEntry& entry = matrix.entry;
    const std::string& dtype = matrix.codes.tensor->dtype;
    need(files, matrix, matrix.name("qweight"), {dtype});
    matrix.scales = need(files, matrix, matrix.name("scales"), {"F16", "BF16", "F32"});
    matrix.zeros = look_up(files, matrix.name("qzeros"));
    if (matrix.zeros.tensor != nullptr && matrix.zeros.tensor->bytes == 0) matrix.zeros.tensor = nullptr;
    matrix.g_idx = look_up(files, matrix.name("g_idx"));
    matrix.bias = look_up(files, matrix.name("bias"));
    const auto& shape = matrix.codes.tensor->shape;
    const std::int64_t bits = word_bits(dtype), rows = bits / 4;
    entry.bits = claimed.bits_of(entry.name).value_or(4);
    entry.n = matrix.scales.tensor->shape[1];
    entry.groups = matrix.scales.tensor->shape[0];
    need_shape(matrix.codes, matrix.name("qweight"), {shape[0], entry.n}, matrix);
    if (shape[0] > INT64_MAX / bits)
      wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("qweight"), "{} overflows 64 bits",
            shape_of(*matrix.codes.tensor));
    entry.k = shape[0] * rows;
    // The last word may be filled in part: g_idx has one element for each real row.
    if (matrix.g_idx.tensor != nullptr && matrix.g_idx.tensor->shape.size() == 1) {
      const std::int64_t k = matrix.g_idx.tensor->shape[0];
      if (k > entry.k - rows && k <= entry.k) entry.k = k;
    }
    if (entry.bits == 4 && matrix.zeros.tensor != nullptr) {
      need_type(matrix.zeros, matrix.name("qzeros"), {dtype});
      need_shape(matrix.zeros, matrix.name("qzeros"), {entry.groups, (entry.n * 4 + bits - 1) / bits}, matrix);
    }
    if (matrix.zeros.tensor == nullptr) need_symmetric(matrix, matrix.name("qzeros"), claimed);
    matrix.borrows = claimed.borrows && matrix.zeros.tensor != nullptr;
    matrix.zero_format = claimed.zeros == ZeroFormat::kV2 || matrix.borrows ? ZeroFormat::kV2 : ZeroFormat::kAuto;
    finish(matrix, claimed);
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const MatrixEntry& entry = matrix.entry;
    const std::int64_t bytes = word_bits(matrix.codes.tensor->dtype) / 8, n = cut.n();
    Repacked out;
    out.qweight.resize(static_cast<std::size_t>(cut.rows / 8 * n));
    const auto* const from = reinterpret_cast<const std::uint8_t*>(matrix.codes.tensor->data);
    for (std::int64_t i = 0; i < cut.rows / 2; ++i) {  // bytes: two rows of W each
      const std::int64_t row = cut.row / 2 + i;
      for (std::int64_t c = 0; c < n; ++c)
        out.qweight[static_cast<std::size_t>(i / 4 * n + c)] |=
            // NOLINTNEXTLINE(clang-analyzer-core.DivideZero): detects() took the type of the codes
            std::uint32_t{from[(row / bytes * entry.n + cut.column(c)) * bytes + row % bytes]} << (8 * (i % 4));
    }
    if (matrix.zeros.tensor != nullptr) {
      const std::int64_t stride = static_cast<std::int64_t>(matrix.zeros.tensor->bytes) / entry.groups;
      auto stored = elements<std::uint8_t>(*matrix.zeros.tensor);
      if (matrix.borrows) add_ones(stored, bytes);
      const std::uint8_t* const zeros = stored.data();
      out.qzeros.resize(static_cast<std::size_t>(entry.groups * (n / 8)));
      auto* to = reinterpret_cast<std::uint8_t*>(out.qzeros.data());
      for (std::int64_t g = 0; g < entry.groups; ++g)
        for (std::int64_t c = 0; c < n; c += 8) to = std::copy_n(zeros + g * stride + cut.column(c) / 2, 4, to);
    }
    out.scales = cut_scales(*matrix.scales.tensor, cut, entry.n, entry.groups);
    return out;
  }
};

}  // namespace

const Reader& gptq_words_reader() {
  static const GptqWords reader;
  return reader;
}

}  // namespace q4::checkpoint
