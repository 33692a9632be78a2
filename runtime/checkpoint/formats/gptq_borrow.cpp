// GPTQ v1 as GPTQModel writes it where zeros are not symmetric: it subtracts 0x11111111 from a word of eight zeros, so that a
// zero of 0 is stored as 15 and takes 1 from the zero of the column after it; reading adds it back, word by word.
// Source: GPTQModel, convert_gptq_v2_to_v1_format_module and its inverse in gptqmodel/utils/model.py.
#include <cstring>

#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

class GptqBorrow : public Reader {
 public:
  const char* name() const override { return "GPTQ"; }

  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    return claimed.borrows && matrix.suffix == "qweight";
  }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    describe_plain(files, matrix, claimed);
    matrix.zero_format = ZeroFormat::kV2;  // after repack()
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const std::int64_t n = cut.n(), whole_n = matrix.entry.n;
    const auto word_at = [](const Located& at, std::int64_t index) {
      std::uint32_t word = 0;
      std::memcpy(&word, at.tensor->data + index * std::int64_t{sizeof word}, sizeof word);
      return word;
    };
    Repacked out;
    out.qweight.reserve(static_cast<std::size_t>(cut.rows / 8 * n));
    for (std::int64_t row = cut.row / 8; row < (cut.row + cut.rows) / 8; ++row)
      for (std::int64_t c = 0; c < n; ++c) out.qweight.push_back(word_at(matrix.codes, row * whole_n + cut.column(c)));
    if (matrix.zeros.tensor != nullptr)
      for (std::int64_t g = 0; g < matrix.entry.groups; ++g)
        for (std::int64_t c = 0; c < n; c += 8)
          out.qzeros.push_back(word_at(matrix.zeros, g * (whole_n / 8) + cut.column(c) / 8) + 0x11111111u);
    out.scales = cut_scales(*matrix.scales.tensor, cut, whole_n, matrix.entry.groups);
    return out;
  }
};

}  // namespace

const Reader& gptq_borrow_reader() {
  static const GptqBorrow reader;
  return reader;
}

}  // namespace q4::checkpoint
