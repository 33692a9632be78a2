// GPTQ and AWQ "gemm", which are used as they are stored. With n = the columns of scales, which both store plainly:
//
//                qweight      qzeros         scales         g_idx     bias
//     GPTQ       [k/8, n]     [groups, n/8]  [groups, n]    [k], [0]  [n]
//     AWQ gemm   [k, n/8]     [groups, n/8]  [groups, n]              [n]
#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {
namespace {

/// The tensors beside qweight.
void collect(const FileSet& files, Matrix& matrix) {
  need_type(matrix.codes, matrix.name("qweight"), {"I32"});
  if (matrix.codes.tensor->shape.size() != 2 || matrix.codes.tensor->shape[0] == 0 ||
      matrix.codes.tensor->shape[1] == 0)
    matrix.codes = need(files, matrix, matrix.name("qweight"), {"I32"});  // throws
  matrix.scales = need(files, matrix, matrix.name("scales"), {"F16", "BF16", "F32"});
  matrix.zeros = look_up(files, matrix.name("qzeros"));
  if (matrix.zeros.tensor != nullptr && matrix.zeros.tensor->bytes == 0) matrix.zeros.tensor = nullptr;
  if (matrix.zeros.tensor != nullptr) need(files, matrix, matrix.name("qzeros"), {"I32"});
  matrix.g_idx = look_up(files, matrix.name("g_idx"));
  matrix.bias = look_up(files, matrix.name("bias"));
  matrix.entry.n = matrix.scales.tensor->shape[1];
  matrix.entry.groups = matrix.scales.tensor->shape[0];
}

/// Bits of a weight: what the width of qzeros says, where there are any, else the configuration. n is known.
std::int64_t bits_of(const Matrix& matrix, const ClaimedConfig& claimed) {
  const auto said = claimed.bits_of(matrix.entry.name);
  if (matrix.zeros.tensor == nullptr) return said.value_or(4);
  const std::int64_t n = matrix.entry.n, width = matrix.zeros.tensor->shape[1];
  for (const std::int64_t bits : {4, 8, 3, 2}) {
    if (width != (n * bits + 31) / 32 || (n < 32 && said && *said != bits)) continue;
    if (said && !claimed.may_have(matrix.entry.name, bits)) {
      wrong(ErrorCode::kCorrupt, matrix.zeros, matrix.name("qzeros"),
            "{} for n = {} columns is {}-bit packing, but {} says {} bits; correct the config",
            shape_of(*matrix.zeros.tensor), n, bits, claimed.path, *said);
    }
    return bits;
  }
  return said.value_or(4);
}

/// Whether the shapes are GPTQ's; throws if they are neither that nor AWQ's, or not what the configuration says.
bool is_gptq(const Matrix& matrix, const ClaimedConfig& claimed) {
  const StoredTensor &qweight = *matrix.codes.tensor, &scales = *matrix.scales.tensor;
  const std::int64_t n = matrix.entry.n;
  const bool gptq = qweight.shape[1] == n;
  if (const auto bits = claimed.bits_of(matrix.entry.name);
      !gptq && bits && *bits != 4 && 32 * qweight.shape[1] == *bits * n)
    wrong(ErrorCode::kUnsupported, matrix.codes, matrix.name("qweight"),
          "{}-bit weights of AWQ; q4 multiplies by 4-bit weights, quantize the matrix to 4 bits", *bits);
  if (!gptq && (n % 8 != 0 || qweight.shape[1] != n / 8)) {
    wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("qweight"),
          "{} fits scales {} neither as GPTQ ([k/8, {}]) nor as AWQ ([k, {}/8]) of 4 bits; fetch the checkpoint again",
          shape_of(qweight), shape_of(scales), n, n);
  }
  if (claimed.packing && (*claimed.packing == Packing::kGptq) != gptq) {
    wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("qweight"),
          "{} is packed as {}, but {} says {}; correct the config", shape_of(qweight), gptq ? "GPTQ" : "AWQ",
          claimed.path, to_string(*claimed.packing));
  }
  return gptq;
}

}  // namespace

void describe_plain(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) {
  MatrixEntry& entry = matrix.entry;
  collect(files, matrix);
  const bool gptq = is_gptq(matrix, claimed);
  entry.format = gptq ? QuantFormat::kGptq : QuantFormat::kAwq;
  entry.bits = bits_of(matrix, claimed);
  std::int64_t packed_bits = 0;
  if (__builtin_mul_overflow(matrix.codes.tensor->shape[0], gptq ? 32 : 1, &packed_bits)) {
    wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name("qweight"), "{}: 32 bits a word overflow 64 bits",
          shape_of(*matrix.codes.tensor));
  }
  entry.k = gptq ? packed_bits / std::max<std::int64_t>(entry.bits, 1) : packed_bits;
  if (entry.bits == 4 && entry.n % 8 == 0) {
    if (matrix.zeros.tensor == nullptr) need_symmetric(matrix, matrix.name("qzeros"), claimed);
    if (matrix.zeros.tensor != nullptr)
      need_shape(matrix.zeros, matrix.name("qzeros"), {entry.groups, entry.n / 8}, matrix);
  }
  // v1 is what is assumed and what is claimed wrongly at times: the stored zeros may still say v2.
  matrix.zero_format = !gptq || claimed.zeros == ZeroFormat::kV2 ? ZeroFormat::kV2 : ZeroFormat::kAuto;
  finish(matrix, claimed);
}

namespace {

class Gptq : public Reader {
 public:
  const char* name() const override { return "GPTQ"; }
  bool detects(const Matrix& matrix, const ClaimedConfig&) const override { return matrix.suffix == "qweight"; }
  void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const override {
    describe_plain(files, matrix, claimed);
  }
  bool repacks() const override { return false; }
};

class AwqGemm : public Gptq {
 public:
  const char* name() const override { return "AWQ gemm"; }
  bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const override {
    if (matrix.suffix != "qweight") return false;
    const auto& shape = matrix.codes.tensor->shape;
    const StoredTensor* const scales = matrix.scales.tensor;
    return claimed.packing == Packing::kAwqGemm ||
           (!claimed.packing && scales != nullptr && scales->shape.size() == 2 && shape.size() == 2 &&
            scales->shape[1] % 8 == 0 && shape[1] == scales->shape[1] / 8);
  }
};

}  // namespace

const Reader& gptq_reader() {
  static const Gptq reader;
  return reader;
}

const Reader& awq_gemm_reader() {
  static const AwqGemm reader;
  return reader;
}

}  // namespace q4::checkpoint
