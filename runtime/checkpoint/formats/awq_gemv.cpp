// AWQ's "gemv" and "gemv_fast" (llm-awq), which keep the columns of W as rows. With w = groups / 8, rounded up:
//
//     gemv        qweight I32 [n, k/8], nibbles in order   qzeros I32 [n, w], nibbles in order   scales [n, 8 w]
//     gemv_fast   qweight I16 [n/4, k], see below          scaled_zeros or qzeros [8 w, n] = -scale * zero   scales [8
//     w, n]
//
// gemv_fast: four columns of W are one row of words. Of each 64 rows of W the columns' codes follow each other, in an
// order within 32 that suits the kernel; four codes in a row are one word.
#include <cmath>

#include "runtime/base/convert.hpp"
#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

void set_groups(Matrix& matrix, const ClaimedConfig& claimed, std::int64_t stored) {
  MatrixEntry& entry = matrix.entry;
  const std::int64_t rows = claimed_group_size(matrix, claimed);
  entry.groups = entry.k / rows + (entry.k % rows != 0);
  if (entry.groups > stored) {
    wrong(ErrorCode::kCorrupt, matrix.scales, matrix.name("scales"),
          "{} hold {} groups, but k = {} in groups of {} (of {}) are {}", shape_of(*matrix.scales.tensor), stored,
          entry.k, rows, claimed.path, entry.groups);
  }
}

class Gemv : public Reader {
 public:
  const char* name() const override { return "AWQ gemv"; }

  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    return matrix.suffix == "qweight" && claimed.packing == Packing::kAwqGemv;
  }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    MatrixEntry& entry = matrix.entry;
    matrix.codes = need(files, matrix, matrix.name("qweight"), {"I32"});
    matrix.scales = need(files, matrix, matrix.name("scales"), {"F16", "BF16", "F32"});
    matrix.bias = look_up(files, matrix.name("bias"));
    const auto& shape = matrix.codes.tensor->shape;
    const std::int64_t stored = matrix.scales.tensor->shape[1];
    entry.bits = claimed.bits_of(entry.name).value_or(4);
    entry.n = shape[0];
    entry.k = shape[1] > INT64_MAX / 8 ? INT64_MAX : shape[1] * 8;
    need_shape(matrix.scales, matrix.name("scales"), {entry.n, stored}, matrix);
    set_groups(matrix, claimed, stored);
    matrix.zeros = look_up(files, matrix.name("qzeros"));
    if (matrix.zeros.tensor != nullptr && matrix.zeros.tensor->bytes == 0) matrix.zeros.tensor = nullptr;
    if (matrix.zeros.tensor == nullptr) {
      need_symmetric(matrix, matrix.name("qzeros"), claimed);
    } else {
      need(files, matrix, matrix.name("qzeros"), {"I32"});
      const std::int64_t width = matrix.zeros.tensor->shape[1];
      if (matrix.zeros.tensor->shape[0] != entry.n || width < (entry.groups + 7) / 8)
        need_shape(matrix.zeros, matrix.name("qzeros"), {entry.n, (entry.groups + 7) / 8}, matrix);
    }
    matrix.zero_format = ZeroFormat::kV2;
    finish(matrix, claimed);
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const MatrixEntry& entry = matrix.entry;
    Repacked out;
    out.qweight = transposed(*matrix.codes.tensor, entry.k / 8, cut.columns, cut.row / 8, cut.rows / 8);
    out.scales = transposed_scales(*matrix.scales.tensor, cut, matrix.scales.tensor->shape[1], entry.groups);
    if (matrix.zeros.tensor == nullptr) return out;
    const Stored<std::uint32_t> zeros(*matrix.zeros.tensor);
    const std::int64_t width = matrix.zeros.tensor->shape[1], words = cut.n() / 8;
    out.qzeros.resize(static_cast<std::size_t>(entry.groups * words));
    for (std::int64_t g = 0; g < entry.groups; ++g)
      for (std::int64_t c = 0; c < cut.n(); ++c)
        put_nibble(out.qzeros[static_cast<std::size_t>(g * words + c / 8)], c % 8,
                   zeros[cut.column(c) * width + g / 8] >> (4 * (g % 8)) & 15u);
    return out;
  }
};

class GemvFast : public Reader {
 public:
  const char* name() const override { return "AWQ gemv_fast"; }

  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    const bool words = matrix.codes.tensor->dtype == "I16";
    return matrix.suffix == "qweight" &&
           (claimed.packing == Packing::kAwqGemvFast || (words && !claimed.packing && matrix.meta.tensor != nullptr));
  }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    MatrixEntry& entry = matrix.entry;
    matrix.codes = need(files, matrix, matrix.name("qweight"), {"I16"});
    matrix.scales = need(files, matrix, matrix.name("scales"), {"F16"});
    matrix.bias = look_up(files, matrix.name("bias"));
    const auto& shape = matrix.codes.tensor->shape;
    const std::int64_t stored = matrix.scales.tensor->shape[0];
    entry.bits = claimed.bits_of(entry.name).value_or(4);
    entry.n = shape[0] > INT64_MAX / 4 ? INT64_MAX : shape[0] * 4;
    entry.k = shape[1];
    if (entry.k % 64 != 0)
      wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("qweight"), "{}: k is not a multiple of 64",
            shape_of(*matrix.codes.tensor));
    need_shape(matrix.scales, matrix.name("scales"), {stored, entry.n}, matrix);
    set_groups(matrix, claimed, stored);
    const std::string zeros = look_up(files, matrix.name("scaled_zeros")).tensor != nullptr ? "scaled_zeros" : "qzeros";
    matrix.zeros = need(files, matrix, matrix.name(zeros), {"F16"});
    need_shape(matrix.zeros, matrix.name(zeros), {stored, entry.n}, matrix);
    matrix.zero_format = ZeroFormat::kV2;
    finish(matrix, claimed);
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const MatrixEntry& entry = matrix.entry;
    const std::int64_t n = cut.n(), k = entry.k;
    Repacked out;
    out.qweight.resize(static_cast<std::size_t>(cut.rows / 8 * n));
    const Stored<std::uint16_t> codes(*matrix.codes.tensor);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t c = cut.column(i);
      for (std::int64_t row = 0; row < cut.rows; ++row) {
        const std::int64_t r = cut.row + row, a = r % 32 / 8, b = r % 8 / 2;
        const std::int64_t place = c % 4 * 64 + r % 64 / 32 * 32 + b * 8 + r % 2 * 4 + a;
        const std::uint32_t word = codes[c / 4 * k + r / 64 * 64 + place / 4];
        put_nibble(out.qweight[static_cast<std::size_t>(row / 8 * n + i)], r % 8, word >> (4 * (place % 4)) & 15u);
      }
    }
    out.qzeros.resize(static_cast<std::size_t>(entry.groups * (n / 8)));
    for (std::int64_t g = 0; g < entry.groups; ++g)
      for (std::int64_t i = 0; i < n; ++i)
        put_nibble(out.qzeros[static_cast<std::size_t>(g * (n / 8) + i / 8)], i % 8,
                   whole_zero(matrix, g, cut.column(i)));
    out.scales = cut_scales(*matrix.scales.tensor, cut, entry.n, entry.groups);
    return out;
  }

 private:
  static std::uint32_t whole_zero(const Matrix& matrix, std::int64_t group, std::int64_t column) {
    const std::int64_t at = group * matrix.entry.n + column;
    const float scale = float_from_half(Stored<std::uint16_t>(*matrix.scales.tensor)[at]);
    const float product = -float_from_half(Stored<std::uint16_t>(*matrix.zeros.tensor)[at]);
    const float zero = scale == 0 && product == 0 ? 0 : product / scale, whole = std::nearbyint(zero);
    // The product was rounded to fp16: by at most 2^-11 of it, or half a step of the subnormals.
    const float slack = 0x1p-10f * std::fabs(zero) + 0x1p-25f / std::max(std::fabs(scale), 0x1p-24f);
    if (!(whole >= 0 && whole <= 15 && std::fabs(zero - whole) <= std::min(slack, 0.45f))) {
      fail(ErrorCode::kUnsupported, "{}: matrix {}: zero {} of group {}, column {} is not a whole number from 0 to 15",
           matrix.zeros.file->path(), quote(matrix.entry.name), zero, group, column);
    }
    return static_cast<std::uint32_t>(whole);
  }
};

}  // namespace

const Reader& awq_gemv_reader() {
  static const Gemv reader;
  return reader;
}

const Reader& awq_gemv_fast_reader() {
  static const GemvFast reader;
  return reader;
}

}  // namespace q4::checkpoint
