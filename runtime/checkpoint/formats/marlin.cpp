// Marlin's own layout (checkpoint_format "marlin" of AutoGPTQ and GPTQModel, version "marlin" of AutoAWQ): symmetric,
// codes in the order in which tensor cores take tiles of 16 x 64.
//
//     B or qweight I32 [k/16, 2 n]   s or scales F16 [groups, n], permuted within 64 columns (one group: within 32)
#include <array>

#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

/// Where the 1024 codes of a row of four tiles come from: element p of the packed order is row (at / 16) % 16 and
/// column (at / 256) * 16 + at % 16 of the four. A lane holds the fragments of mma.m16n8k16 of two n-blocks of four
/// tiles.
std::array<std::int16_t, 1024> tile_order() {
  constexpr int kNibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::array<std::int16_t, 1024> order{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int tile = 0; tile < 4; ++tile) {
      int fragment[8];
      for (int block = 0; block < 2; ++block)
        for (int i = 0; i < 4; ++i) {
          const int row = 2 * (lane % 4) + i % 2 + i / 2 * 8;
          fragment[block * 4 + i] = 16 * row + lane / 4 + 8 * block + 256 * tile;
        }
      for (int i = 0; i < 8; ++i)
        order[static_cast<std::size_t>(lane) * 32 + tile * 8 + i] = static_cast<std::int16_t>(fragment[kNibble[i]]);
    }
  }
  return order;
}

class Marlin : public Reader {
 public:
  const char* name() const override { return "Marlin"; }

  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    return matrix.suffix == "B" || (matrix.suffix == "qweight" && claimed.packing == Packing::kMarlin);
  }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    MatrixEntry& entry = matrix.entry;
    const std::string scales = matrix.suffix == "B" ? "s" : "scales", codes = matrix.name(matrix.suffix);
    matrix.codes = need(files, matrix, codes, {"I32"});
    matrix.scales = need(files, matrix, matrix.name(scales), {"F16", "BF16"});
    matrix.bias = look_up(files, matrix.name("bias"));
    entry.bits = claimed.bits_of(entry.name).value_or(4);
    entry.n = matrix.scales.tensor->shape[1];
    entry.groups = matrix.scales.tensor->shape[0];
    const auto& shape = matrix.codes.tensor->shape;
    if (entry.n > INT64_MAX / 2 || shape[0] > INT64_MAX / 16)
      wrong(ErrorCode::kCorrupt, matrix.codes, codes, "{} overflows 64 bits", shape_of(*matrix.codes.tensor));
    entry.k = shape[0] * 16;
    need_shape(matrix.codes, codes, {shape[0], 2 * entry.n}, matrix);
    if (entry.n % 64 != 0)
      wrong(ErrorCode::kCorrupt, matrix.codes, codes, "n = {}; Marlin's tiles have 64 columns", entry.n);
    const Located g_idx = look_up(files, matrix.name("g_idx"));
    if (g_idx.tensor != nullptr && g_idx.tensor->bytes != 0)
      wrong(ErrorCode::kUnsupported, g_idx, matrix.name("g_idx"), "Marlin's files have no act-order");
    matrix.zero_format = ZeroFormat::kV2;
    finish(matrix, claimed);
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const MatrixEntry& entry = matrix.entry;
    const std::int64_t n = cut.n();
    static const std::array<std::int16_t, 1024> order = inverse_order();
    Repacked out;
    out.qweight.resize(static_cast<std::size_t>(cut.rows / 8 * n));
    const Stored<std::uint32_t> codes(*matrix.codes.tensor);
    for (std::int64_t row = 0; row < cut.rows; ++row) {
      const std::int64_t r = cut.row + row;
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t c = cut.column(i), tile = 16 * (r % 16) + c % 16 + c % 64 / 16 * 256;
        const std::int64_t at = c / 64 * 1024 + order[static_cast<std::size_t>(tile)];
        const std::uint32_t word = codes[r / 16 * 2 * entry.n + at / 8];
        put_nibble(out.qweight[static_cast<std::size_t>(row / 8 * n + i)], r % 8, word >> (4 * (at % 8)) & 15u);
      }
    }
    out.scales = plain_scales(matrix, cut);
    return out;
  }

 private:
  static std::array<std::int16_t, 1024> inverse_order() {
    const auto order = tile_order();
    std::array<std::int16_t, 1024> inverse{};
    for (std::size_t i = 0; i < order.size(); ++i)
      inverse[static_cast<std::size_t>(order[i])] = static_cast<std::int16_t>(i);
    return inverse;
  }

  static std::vector<std::uint8_t> plain_scales(const Matrix& matrix, const Cut& cut) {
    // Where the scale of column i % 64 (one group: i % 32) stands.
    constexpr std::int64_t kSingle[8] = {0, 1, 8, 9, 16, 17, 24, 25};
    std::array<std::int64_t, 64> place{};
    const bool grouped = matrix.entry.groups > 1;
    for (std::int64_t i = 0; i < (grouped ? 64 : 32); ++i)
      place[static_cast<std::size_t>(grouped ? i % 8 * 8 + i / 8 : i / 8 * 2 + kSingle[i % 8])] = i;
    const std::int64_t period = grouped ? 64 : 32;
    const Stored<std::uint16_t> permuted(*matrix.scales.tensor);
    std::vector<std::uint8_t> scales;
    scales.reserve(static_cast<std::size_t>(matrix.entry.groups * cut.n()) * 2);
    for (std::int64_t g = 0; g < matrix.entry.groups; ++g) {
      for (const std::int64_t c : cut.columns) {
        const std::int64_t at = c / period * period + place[static_cast<std::size_t>(c % period)];
        const std::uint16_t scale = permuted[g * matrix.entry.n + at];
        scales.push_back(static_cast<std::uint8_t>(scale & 255)),
            scales.push_back(static_cast<std::uint8_t>(scale >> 8));
      }
    }
    return scales;
  }
};

}  // namespace

const Reader& marlin_reader() {
  static const Marlin reader;
  return reader;
}

}  // namespace q4::checkpoint
