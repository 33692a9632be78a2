// compressed-tensors' "pack-quantized" (llm-compressor): at 4 bits the transposes are GPTQ with zeros as they are.
//
//     weight_packed [n, k/8]     along k, low bits first, q + 8     weight_g_idx [k], only with actorder "group"
//     weight_scale [n, groups]   channel: [n, 1] or [n]             weight_shape [2] = n, k
//     weight_zero_point [n/8, groups]   along n, only where asymmetric, else every zero is 8; before compressed-tensors
//                                       0.9.4 int8 [n, groups], zero - 8
#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

class CompressedTensors : public Reader {
 public:
  const char* name() const override { return "compressed-tensors pack-quantized"; }

  bool detects(const Matrix& matrix, const ClaimedConfig&) const override { return matrix.suffix == "weight_packed"; }

  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    MatrixEntry& entry = matrix.entry;
    const std::string packed = matrix.name("weight_packed");
    if (look_up(files, matrix.name("meta")).tensor != nullptr)
      wrong(ErrorCode::kUnsupported, matrix.codes, packed,
            "with meta beside it: 2:4 sparse, q4 multiplies by dense weights");
    matrix.codes = need(files, matrix, packed, {"I32"});
    if (claimed.packing && *claimed.packing != Packing::kCompressed) {
      wrong(ErrorCode::kCorrupt, matrix.codes, packed, "is compressed-tensors', but {} says {}; correct the config",
            claimed.path, to_string(*claimed.packing));
    }
    const Located scale = look_up(files, matrix.name("weight_scale"));
    const bool flat = scale.tensor != nullptr && scale.tensor->shape.size() == 1;
    matrix.scales = need(files, matrix, matrix.name("weight_scale"), {"F16", "BF16", "F32"}, flat ? 1 : 2);
    const std::vector<std::int64_t>&codes = matrix.codes.tensor->shape, &scales = matrix.scales.tensor->shape;
    entry.n = codes[0];
    entry.groups = flat ? 1 : scales[1];
    if (scales[0] != entry.n) need_shape(matrix.scales, matrix.name("weight_scale"), {entry.n, entry.groups}, matrix);
    read_shape(files, matrix);
    entry.bits = bits_of(matrix, claimed);
    matrix.bias = look_up(files, matrix.name("bias"));
    matrix.g_idx = look_up(files, matrix.name("weight_g_idx"));
    matrix.zeros = look_up(files, matrix.name("weight_zero_point"));
    if (matrix.zeros.tensor != nullptr && entry.bits == 4) {
      need_type(matrix.zeros, matrix.name("weight_zero_point"), {"I32", "I8"});
      const std::int64_t rows = plain_zeros(matrix) ? entry.n : (entry.n + 7) / 8;
      need_shape(matrix.zeros, matrix.name("weight_zero_point"), {rows, entry.groups}, matrix);
    }
    if (matrix.zeros.tensor == nullptr && claimed.sym && !*claimed.sym)
      need_symmetric(matrix, matrix.name("weight_zero_point"), claimed);
    matrix.zero_format = ZeroFormat::kV2;
    finish(matrix, claimed);
  }

  Repacked repack(const Matrix& matrix, const Cut& cut) const override {
    const MatrixEntry& entry = matrix.entry;
    Repacked out;
    out.qweight = transposed(*matrix.codes.tensor, entry.k / 8, cut.columns, cut.row / 8, cut.rows / 8);
    if (matrix.zeros.tensor != nullptr && plain_zeros(matrix)) {
      out.qzeros = packed_zeros(matrix, cut);
    } else if (matrix.zeros.tensor != nullptr) {
      std::vector<std::int32_t> rows;  // of eight columns each
      for (std::int64_t i = 0; i < cut.n(); i += 8) rows.push_back(static_cast<std::int32_t>(cut.column(i) / 8));
      out.qzeros = transposed(*matrix.zeros.tensor, entry.groups, rows, 0, entry.groups);
    }
    out.scales = transposed_scales(*matrix.scales.tensor, cut, entry.groups, entry.groups);
    return out;
  }

 private:
  static bool plain_zeros(const Matrix& matrix) { return matrix.zeros.tensor->dtype == "I8"; }

  static std::vector<std::uint32_t> packed_zeros(const Matrix& matrix, const Cut& cut) {
    const std::int64_t groups = matrix.entry.groups, words = cut.n() / 8;
    const Stored<std::int8_t> zeros(*matrix.zeros.tensor);
    std::vector<std::uint32_t> to(static_cast<std::size_t>(groups * words));
    for (std::int64_t g = 0; g < groups; ++g)
      for (std::int64_t c = 0; c < cut.n(); ++c) {
        const int zero = zeros[cut.column(c) * groups + g] + 8;
        if (zero < 0 || zero > 15)
          wrong(ErrorCode::kCorrupt, matrix.zeros, matrix.name("weight_zero_point"),
                "column {} has {} in group {}, which is not from -8 to 7", cut.column(c), zero - 8, g);
        put_nibble(to[static_cast<std::size_t>(g * words + c / 8)], c % 8, static_cast<std::uint32_t>(zero));
      }
    return to;
  }

  /// k: what weight_shape says, or the whole words.
  static void read_shape(const FileSet& files, Matrix& matrix) {
    MatrixEntry& entry = matrix.entry;
    const std::int64_t words = matrix.codes.tensor->shape[1];
    const std::string name = matrix.name("weight_shape");
    entry.k = words > INT64_MAX / 8 ? INT64_MAX : words * 8;
    matrix.shape = look_up(files, name);
    if (matrix.shape.tensor == nullptr) return;
    need_type(matrix.shape, name, {"I64", "I32"});
    if (matrix.shape.tensor->shape != std::vector<std::int64_t>{2}) need_shape(matrix.shape, name, {2}, matrix);
    const Fetched fetched({&matrix.shape});
    std::vector<std::int64_t> shape;
    if (matrix.shape.tensor->dtype == "I64") shape = elements<std::int64_t>(*matrix.shape.tensor);
    for (const std::int32_t extent : matrix.shape.tensor->dtype == "I32" ? elements<std::int32_t>(*matrix.shape.tensor)
                                                                         : std::vector<std::int32_t>())
      shape.push_back(extent);
    if (shape[0] != entry.n || shape[1] < 1 || shape[1] > INT32_MAX) {
      wrong(ErrorCode::kCorrupt, matrix.shape, name,
            "says [{}, {}], but weight_packed is {}; fetch the checkpoint again", shape[0], shape[1],
            shape_of(*matrix.codes.tensor));
    }
    entry.k = shape[1];
  }

  static std::int64_t bits_of(const Matrix& matrix, const ClaimedConfig& claimed) {
    const std::int64_t words = matrix.codes.tensor->shape[1], k = matrix.entry.k;
    const auto said = claimed.bits_of(matrix.entry.name);
    if (words == (k + 7) / 8 && (matrix.shape.tensor != nullptr || said.value_or(4) == 4)) {
      if (said.value_or(4) == 4 || claimed.may_have(matrix.entry.name, 4)) return 4;
    } else if (said.value_or(4) != 4) {
      return *said;
    } else if (words == (k + 3) / 4) {
      return 8;
    }
    wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("weight_packed"),
          "{} does not hold k = {} columns of {} bits; correct the config or fetch the checkpoint again",
          shape_of(*matrix.codes.tensor), k, said.value_or(4));
  }
};

}  // namespace

const Reader& compressed_tensors_reader() {
  static const CompressedTensors reader;
  return reader;
}

}  // namespace q4::checkpoint
