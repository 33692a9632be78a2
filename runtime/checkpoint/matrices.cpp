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

template <class... Args>
[[noreturn]] void wrong(ErrorCode code, const Located& at, const std::string& name, fmt::format_string<Args...> text,
                        Args&&... args) {
  fail(code, "Checkpoint::open: {}: tensor {}: {}", at.file->path(), quote(name),
       fmt::format(text, std::forward<Args>(args)...));
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

/// qweight alone, with scales: which packing, k and n.
QuantFormat packing(const Matrix& matrix, const std::string& name) {
  const auto &qweight = *matrix.qweight.tensor, &scales = *matrix.scales.tensor;
  const std::int64_t n = scales.shape[1];
  if (qweight.shape[1] == n) return QuantFormat::kGptq;
  if (n % 8 == 0 && qweight.shape[1] == n / 8) return QuantFormat::kAwq;
  wrong(ErrorCode::kCorrupt, matrix.qweight, name,
        "{} fits scales {} neither as GPTQ ([k/8, {}]) nor as AWQ ([k, {}/8]) of 4 bits; fetch the checkpoint again",
        shape_of(qweight), shape_of(scales), n, n);
}

void check_config(const Matrix& matrix, const std::string& name, const std::optional<ClaimedConfig>& claimed) {
  if (!claimed || !claimed->format || *claimed->format == matrix.format) return;
  const bool awq = matrix.format == QuantFormat::kAwq;
  wrong(ErrorCode::kCorrupt, matrix.qweight, name, "{} is packed as {}, but {} says {}; correct the config",
        shape_of(*matrix.qweight.tensor), awq ? "AWQ" : "GPTQ", claimed->path, awq ? "GPTQ" : "AWQ");
}

/// 2-bit, 3-bit and 8-bit checkpoints without a config show in the width of qzeros.
void check_bits(const Matrix& matrix, const std::string& name) {
  const std::int64_t n = matrix.entry.n, width = matrix.qzeros.tensor->shape[1];
  for (const std::int64_t bits : {2, 3, 8}) {
    if (n % 32 == 0 && width == n / 32 * bits) {
      wrong(ErrorCode::kUnsupported, matrix.qzeros, name,
            "{} for n = {} columns is {}-bit packing; q4 multiplies by 4-bit weights", shape_of(*matrix.qzeros.tensor),
            n, bits);
    }
  }
}

/// The tensors of one prefix, with the dtypes and ranks that are read.
Matrix collect(const FileSet& files, const std::string& prefix) {
  Matrix matrix;
  matrix.entry.name = prefix;
  matrix.qweight = look_up(files, prefix + ".qweight");
  matrix.qzeros = look_up(files, prefix + ".qzeros");
  matrix.scales = look_up(files, prefix + ".scales");
  matrix.g_idx = look_up(files, prefix + ".g_idx");
  matrix.bias = look_up(files, prefix + ".bias");
  const std::pair<const Located*, std::string> required[] = {{&matrix.qweight, prefix + ".qweight"},
                                                             {&matrix.qzeros, prefix + ".qzeros"},
                                                             {&matrix.scales, prefix + ".scales"}};
  for (const auto& [at, name] : required) {
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
  return matrix;
}

/// g_idx and bias, which may be absent; g_idx may also be empty.
void add_optional(Matrix& matrix) {
  MatrixEntry& entry = matrix.entry;
  const StoredTensor& qweight = *matrix.qweight.tensor;
  if (const StoredTensor* g_idx = matrix.g_idx.tensor;
      g_idx != nullptr && g_idx->shape != std::vector<std::int64_t>{0}) {
    const std::string name = entry.name + ".g_idx";
    if (matrix.format == QuantFormat::kAwq) {
      wrong(ErrorCode::kUnsupported, matrix.g_idx, name, "AWQ has no act-order; convert the matrix to GPTQ");
    }
    need_type(matrix.g_idx, name, {"I32", "I64"});
    need_shape(matrix.g_idx, name, {entry.k}, qweight);
    entry.has_g_idx = true;
  }
  if (matrix.bias.tensor != nullptr) {
    need_type(matrix.bias, entry.name + ".bias", {"F16", "BF16", "F32"});
    need_shape(matrix.bias, entry.name + ".bias", {entry.n}, qweight);
    entry.has_bias = true;
  }
}

Matrix describe(const FileSet& files, const std::string& prefix, const std::optional<ClaimedConfig>& claimed) {
  Matrix matrix = collect(files, prefix);
  const std::string qweight_name = prefix + ".qweight", scales_name = prefix + ".scales";
  const StoredTensor &qweight = *matrix.qweight.tensor, &scales = *matrix.scales.tensor;
  matrix.format = packing(matrix, qweight_name);
  check_config(matrix, qweight_name, claimed);

  MatrixEntry& entry = matrix.entry;
  entry.n = scales.shape[1];
  entry.groups = scales.shape[0];
  const std::int64_t word_rows = matrix.format == QuantFormat::kAwq ? 1 : 8;
  if (__builtin_mul_overflow(qweight.shape[0], word_rows, &entry.k)) {
    wrong(ErrorCode::kCorrupt, matrix.qweight, qweight_name, "{}: 8 rows a word overflow 64 bits", shape_of(qweight));
  }
  if (entry.n % 8 != 0) {
    wrong(ErrorCode::kUnsupported, matrix.scales, scales_name, "n = {} columns; q4 needs a multiple of 8", entry.n);
  }
  check_bits(matrix, prefix + ".qzeros");
  need_shape(matrix.qzeros, prefix + ".qzeros", {entry.groups, entry.n / 8}, qweight);
  if (entry.groups > entry.k) {
    wrong(ErrorCode::kCorrupt, matrix.scales, scales_name, "{} groups for k = {} rows; fetch the checkpoint again",
          entry.groups, entry.k);
  }
  add_optional(matrix);
  entry.group_size = group_size(matrix, claimed);
  return matrix;
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
  for (const std::string& prefix : prefixes) {
    const Matrix& matrix = matrices.list.emplace_back(describe(files, prefix, claimed));
    if (matrix.format != matrices.list[0].format) {
      wrong(ErrorCode::kCorrupt, matrix.qweight, prefix + ".qweight",
            "packed unlike {}: one checkpoint holds GPTQ or AWQ, not both", quote(prefixes[0]));
    }
  }

  QuantConfig& config = matrices.config;
  if (!matrices.list.empty()) {
    config.format = matrices.list[0].format;
  } else if (claimed && claimed->format) {
    config.format = *claimed->format;
  }
  if (claimed) {
    config.desc_act = claimed->desc_act;
    config.sym = claimed->sym;
    config.zeros = claimed->zeros;
  }
  if (config.format == QuantFormat::kAwq) config.zeros = ZeroFormat::kV2;
  if (claimed && claimed->group_size) {
    config.group_size = *claimed->group_size;
  } else if (!matrices.list.empty()) {
    const MatrixEntry& first = matrices.list[0].entry;
    config.group_size = first.groups == 1 ? -1 : first.group_size;
  }
  return matrices;
}

}  // namespace q4::checkpoint
