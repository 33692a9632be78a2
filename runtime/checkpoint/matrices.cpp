// The quantized matrices among a checkpoint's tensors. With n = the columns of scales, which both packings store
// plainly:
//
//            qweight      qzeros         scales         g_idx     bias
//     GPTQ   [k/8, n]     [groups, n/8]  [groups, n]    [k], [0]  [n]
//     AWQ    [k, n/8]     [groups, n/8]  [groups, n]              [n]
#include "runtime/checkpoint/matrices.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

namespace {

constexpr std::string_view kSuffix = ".qweight";

std::string shape_of(const StoredTensor& tensor) {
  return fmt::format("{} [{}]", tensor.dtype, fmt::join(tensor.shape, ", "));
}

/// What becomes the entry's `unsupported`.
template <class... Args>
[[noreturn]] void wrong(ErrorCode code, const Located& at, const std::string& name, fmt::format_string<Args...> text,
                        Args&&... args) {
  fail(code, "{}: tensor {}: {}", at.file->path(), quote(name), fmt::format(text, std::forward<Args>(args)...));
}

Located look_up(const FileSet& files, const std::string& name) {
  const auto at = files.tensors.find(name);
  return at == files.tensors.end() ? Located{} : at->second;
}

void need_shape(const Located& at, const std::string& name, const std::vector<std::int64_t>& shape,
                const StoredTensor& qweight) {
  if (at.tensor->shape != shape) {
    wrong(ErrorCode::kCorrupt, at, name, "{} does not fit qweight {}: shape [{}] is needed; fetch the checkpoint again",
          shape_of(*at.tensor), shape_of(qweight), fmt::join(shape, ", "));
  }
}

void need_type(const Located& at, const std::string& name, std::initializer_list<std::string_view> types) {
  if (std::find(types.begin(), types.end(), at.tensor->dtype) == types.end()) {
    wrong(ErrorCode::kUnsupported, at, name, "dtype {}; q4 reads {} here, convert the checkpoint", at.tensor->dtype,
          fmt::join(types, ", "));
  }
}

/// Rows of a group: the config's if the number of groups agrees with it, else k / groups where that is whole.
std::int64_t group_size(const Matrix& matrix, const std::optional<ClaimedConfig>& claimed) {
  const MatrixEntry& entry = matrix.entry;
  const std::int64_t said = claimed ? claimed->group_size.value_or(0) : 0;
  if (said == -1 && entry.groups == 1) return entry.k;
  if (said > 0 && entry.k / said + (entry.k % said != 0) == entry.groups) return said;
  if (entry.k % entry.groups == 0) return entry.k / entry.groups;
  if (said == 0 || entry.has_g_idx) return entry.k / entry.groups + 1;
  wrong(ErrorCode::kCorrupt, matrix.scales, entry.name + ".scales",
        "{} groups over k = {} rows fit neither group_size {} of {} nor any whole group size; correct the config",
        entry.groups, entry.k, said, claimed->path);
}

/// qweight alone, with scales: which packing, and n. `bits` is what the configuration says of the matrix, or 0.
QuantFormat packing(const Matrix& matrix, const std::string& name, const std::optional<ClaimedConfig>& claimed) {
  const auto &qweight = *matrix.qweight.tensor, &scales = *matrix.scales.tensor;
  if (claimed && claimed->packing && *claimed->packing != Packing::kGptq && *claimed->packing != Packing::kAwqGemm) {
    wrong(ErrorCode::kUnsupported, matrix.qweight, name, "{} says that it is packed as {}, which is not read",
          claimed->path, to_string(*claimed->packing));
  }
  const std::int64_t n = scales.shape[1];
  const bool gptq = qweight.shape[1] == n;
  if (!gptq && (n % 8 != 0 || qweight.shape[1] != n / 8)) {
    wrong(ErrorCode::kCorrupt, matrix.qweight, name,
          "{} fits scales {} neither as GPTQ ([k/8, {}]) nor as AWQ ([k, {}/8]) of 4 bits; fetch the checkpoint again",
          shape_of(qweight), shape_of(scales), n, n);
  }
  if (claimed && claimed->packing && (*claimed->packing == Packing::kGptq) != gptq) {
    wrong(ErrorCode::kCorrupt, matrix.qweight, name, "{} is packed as {}, but {} says {}; correct the config",
          shape_of(qweight), gptq ? "GPTQ" : "AWQ", claimed->path, to_string(*claimed->packing));
  }
  return gptq ? QuantFormat::kGptq : QuantFormat::kAwq;
}

/// Bits of a GPTQ matrix: what the width of qzeros says, where there are any, else the configuration. n is known.
std::int64_t bits_of(const Matrix& matrix, const std::string& name, const std::optional<ClaimedConfig>& claimed) {
  const auto said = claimed ? claimed->bits_of(matrix.entry.name) : std::nullopt;
  if (matrix.qzeros.tensor == nullptr) return said.value_or(4);
  const std::int64_t n = matrix.entry.n, width = matrix.qzeros.tensor->shape[1];
  for (const std::int64_t bits : {4, 8, 3, 2}) {
    if (width != (n * bits + 31) / 32 || (n < 32 && said && *said != bits)) continue;
    if (said && *said != bits) {
      wrong(ErrorCode::kCorrupt, matrix.qzeros, name, "{} for n = {} columns is {}-bit packing, but {} says {} bits",
            shape_of(*matrix.qzeros.tensor), n, bits, claimed->path, *said);
    }
    return bits;
  }
  return said.value_or(4);
}

/// The tensors of one prefix, with the dtypes and ranks that are read.
void collect(const FileSet& files, Matrix& matrix) {
  const std::string& prefix = matrix.entry.name;
  matrix.qweight = look_up(files, prefix + ".qweight");
  matrix.qzeros = look_up(files, prefix + ".qzeros");
  matrix.scales = look_up(files, prefix + ".scales");
  matrix.g_idx = look_up(files, prefix + ".g_idx");
  matrix.bias = look_up(files, prefix + ".bias");
  const std::pair<Located*, std::string> required[] = {{&matrix.qweight, prefix + ".qweight"},
                                                       {&matrix.scales, prefix + ".scales"},
                                                       {&matrix.qzeros, prefix + ".qzeros"}};
  for (const auto& [at, name] : required) {
    if (at == &matrix.qzeros && (at->tensor == nullptr || at->tensor->bytes == 0)) {
      at->tensor = nullptr;  // see check_zeros
      continue;
    }
    if (at->tensor == nullptr) {
      wrong(ErrorCode::kCorrupt, matrix.qweight, required[0].second,
            "there is no {} beside it; fetch the whole checkpoint", quote(name));
    }
    if (at == &matrix.scales) need_type(*at, name, {"F16", "BF16", "F32"});
    if (at != &matrix.scales) need_type(*at, name, {"I32"});
    const auto& shape = at->tensor->shape;
    if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
      wrong(ErrorCode::kUnsupported, *at, name, "{}; q4 reads two dimensions of at least 1 here",
            shape_of(*at->tensor));
    }
  }
}

/// Stored zeros, or the claim that there need be none.
void check_zeros(const Matrix& matrix, const std::optional<ClaimedConfig>& claimed) {
  const MatrixEntry& entry = matrix.entry;
  const std::string name = entry.name + ".qzeros";
  if (matrix.qzeros.tensor != nullptr) {
    need_shape(matrix.qzeros, name, {entry.groups, entry.n / 8}, *matrix.qweight.tensor);
  } else if (!claimed || !claimed->sym.value_or(false)) {
    wrong(ErrorCode::kCorrupt, matrix.qweight, entry.name + ".qweight",
          "there is no {} beside it and no configuration says sym (every zero is 8); fetch the whole checkpoint",
          quote(name));
  }
}

/// g_idx and bias, which may be absent; g_idx may also be empty.
void add_optional(Matrix& matrix) {
  MatrixEntry& entry = matrix.entry;
  const StoredTensor& qweight = *matrix.qweight.tensor;
  if (const StoredTensor* g_idx = matrix.g_idx.tensor; g_idx != nullptr && g_idx->bytes != 0) {
    const std::string name = entry.name + ".g_idx";
    if (entry.format == QuantFormat::kAwq) {
      wrong(ErrorCode::kUnsupported, matrix.g_idx, name, "AWQ has no act-order; convert the matrix to GPTQ");
    }
    need_type(matrix.g_idx, name, {"I32", "I64"});
    const auto& shape = g_idx->shape;
    if (shape != std::vector{entry.k} && shape != std::vector<std::int64_t>{1, entry.k} &&
        shape != std::vector<std::int64_t>{entry.k, 1}) {
      need_shape(matrix.g_idx, name, {entry.k}, qweight);
    }
    entry.has_g_idx = true;
  }
  if (matrix.bias.tensor != nullptr && matrix.bias.tensor->bytes != 0) {
    need_type(matrix.bias, entry.name + ".bias", {"F16", "BF16", "F32"});
    need_shape(matrix.bias, entry.name + ".bias", {entry.n}, qweight);
    entry.has_bias = true;
  }
}

void describe(const FileSet& files, Matrix& matrix, const std::optional<ClaimedConfig>& claimed) {
  MatrixEntry& entry = matrix.entry;
  const std::string qweight_name = entry.name + ".qweight", scales_name = entry.name + ".scales";
  if (const auto said = claimed ? claimed->bits_of(entry.name) : std::nullopt) entry.bits = *said;
  collect(files, matrix);
  const StoredTensor &qweight = *matrix.qweight.tensor, &scales = *matrix.scales.tensor;
  entry.n = scales.shape[1];
  entry.groups = scales.shape[0];
  entry.format = packing(matrix, qweight_name, claimed);
  const bool awq = entry.format == QuantFormat::kAwq;
  entry.bits = bits_of(matrix, entry.name + ".qzeros", claimed);
  std::int64_t packed_bits = 0;
  if (__builtin_mul_overflow(qweight.shape[0], awq ? 1 : 32, &packed_bits))
    wrong(ErrorCode::kCorrupt, matrix.qweight, qweight_name, "{}: 32 bits a word overflow 64 bits", shape_of(qweight));
  entry.k = awq ? packed_bits : packed_bits / std::max<std::int64_t>(entry.bits, 1);
  if (entry.bits != 4) {
    wrong(ErrorCode::kUnsupported, matrix.qweight, qweight_name,
          "{}-bit weights; q4 multiplies by 4-bit weights, quantize the matrix to 4 bits", entry.bits);
  }
  if (entry.n % 8 != 0) {
    wrong(ErrorCode::kUnsupported, matrix.scales, scales_name, "n = {} columns; q4 needs a multiple of 8", entry.n);
  }
  check_zeros(matrix, claimed);
  if (entry.groups > entry.k) {
    wrong(ErrorCode::kCorrupt, matrix.scales, scales_name, "{} groups for k = {} rows; fetch the checkpoint again",
          entry.groups, entry.k);
  }
  add_optional(matrix);
  entry.group_size = group_size(matrix, claimed);
}

}  // namespace

std::optional<DType> public_type(const std::string& dtype) {
  constexpr std::pair<std::string_view, DType> kTypes[] = {{"F16", DType::kF16}, {"BF16", DType::kBF16},
                                                           {"F32", DType::kF32}, {"I32", DType::kI32},
                                                           {"I64", DType::kI64}, {"U8", DType::kU8}};
  for (const auto& [name, type] : kTypes) {
    if (name == dtype) return type;
  }
  return std::nullopt;
}

Matrices find_matrices(const FileSet& files, const std::optional<ClaimedConfig>& claimed) {
  std::vector<std::string> prefixes;
  for (const auto& [name, at] : files.tensors) {
    if (name.size() > kSuffix.size() && std::string_view(name).substr(name.size() - kSuffix.size()) == kSuffix) {
      prefixes.push_back(name.substr(0, name.size() - kSuffix.size()));
    }
  }
  std::sort(prefixes.begin(), prefixes.end(), natural_less);

  Matrices matrices;
  const Matrix* first = nullptr;  // that can be loaded
  matrices.list.reserve(prefixes.size());
  for (std::string& prefix : prefixes) {
    Matrix& matrix = matrices.list.emplace_back();
    matrix.entry.name = std::move(prefix);
    try {
      describe(files, matrix, claimed);
      if (first == nullptr) first = &matrix;
    } catch (const Error& error) {
      matrix.code = error.code();
      matrix.entry.unsupported = error.what();
      matrix.entry.damaged = error.code() == ErrorCode::kCorrupt;
    }
  }

  QuantConfig& config = matrices.config;
  const auto packing = claimed ? claimed->packing : std::nullopt;
  if (first != nullptr) {
    config.format = first->entry.format;
  } else if (packing && *packing != Packing::kGptq && *packing != Packing::kCompressed) {
    config.format = QuantFormat::kAwq;
  }
  if (claimed) {
    config.desc_act = claimed->desc_act.value_or(false);
    config.sym = claimed->sym.value_or(true);
    // v1 is what is assumed and what is claimed wrongly at times: the stored zeros may still say v2.
    if (claimed->zeros == ZeroFormat::kV2) config.zeros = ZeroFormat::kV2;
  }
  if (config.format == QuantFormat::kAwq) config.zeros = ZeroFormat::kV2;
  if (claimed && claimed->group_size) {
    config.group_size = *claimed->group_size;
  } else if (first != nullptr) {
    config.group_size = first->entry.groups == 1 ? -1 : first->entry.group_size;
  }
  return matrices;
}

}  // namespace q4::checkpoint
