// The list of readers, and what they share.
#include "runtime/checkpoint/formats/format.hpp"

#include <algorithm>
#include <numeric>

#include "runtime/base/jobs.hpp"
#include "runtime/base/processors.hpp"

namespace q4::checkpoint {

const std::vector<const Reader*>& readers() {
  static const std::vector<const Reader*> list = {
      &compressed_tensors_reader(), &marlin_reader(),      &awq_gemv_fast_reader(), &awq_gemv_reader(),
      &gptq_words_reader(),         &gptq_borrow_reader(), &awq_gemm_reader(),      &gptq_reader()};
  return list;
}

std::string shape_of(const StoredTensor& tensor) {
  return fmt::format("{} [{}]", tensor.dtype, fmt::join(tensor.shape, ", "));
}

std::optional<DType> public_type(const std::string& dtype) {
  constexpr std::pair<std::string_view, DType> kTypes[] = {{"F16", DType::kF16}, {"BF16", DType::kBF16},
                                                           {"F32", DType::kF32}, {"I32", DType::kI32},
                                                           {"I64", DType::kI64}, {"U8", DType::kU8}};
  for (const auto& [name, type] : kTypes) {
    if (name == dtype) return type;
  }
  return std::nullopt;
}

Located look_up(const FileSet& files, const std::string& name) {
  const auto at = files.tensors.find(name);
  return at == files.tensors.end() ? Located{} : at->second;
}

void need_type(const Located& at, const std::string& name, std::initializer_list<std::string_view> types) {
  if (std::find(types.begin(), types.end(), at.tensor->dtype) == types.end()) {
    wrong(ErrorCode::kUnsupported, at, name, "dtype {}; q4 reads {} here, convert the checkpoint", at.tensor->dtype,
          fmt::join(types, ", "));
  }
}

Located need(const FileSet& files, const Matrix& matrix, const std::string& name,
             std::initializer_list<std::string_view> types, std::size_t rank) {
  const Located at = look_up(files, name);
  if (at.tensor == nullptr) {
    wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name(matrix.suffix),
          "there is no {} beside it; fetch the whole checkpoint", quote(name));
  }
  need_type(at, name, types);
  const auto& shape = at.tensor->shape;
  if (rank == 2 && shape.size() == 3) {
    wrong(ErrorCode::kUnsupported, at, name,
          "{}, as experts in one tensor have; q4 reads two dimensions, save a matrix for each expert",
          shape_of(*at.tensor));
  }
  if (shape.size() != rank || std::count(shape.begin(), shape.end(), 0) != 0) {
    wrong(ErrorCode::kUnsupported, at, name, "{}; q4 reads {} of at least 1 here, fetch the checkpoint again",
          shape_of(*at.tensor), rank == 1 ? "one dimension" : "two dimensions");
  }
  return at;
}

void need_shape(const Located& at, const std::string& name, const std::vector<std::int64_t>& shape,
                const Matrix& matrix) {
  if (at.tensor->shape != shape) {
    wrong(ErrorCode::kCorrupt, at, name, "{} does not fit {} {}: shape [{}] is needed; fetch the checkpoint again",
          shape_of(*at.tensor), matrix.suffix, shape_of(*matrix.codes.tensor), fmt::join(shape, ", "));
  }
}

void need_symmetric(const Matrix& matrix, const std::string& zeros_name, const ClaimedConfig& claimed) {
  if (claimed.sym.value_or(false)) return;
  wrong(ErrorCode::kCorrupt, matrix.codes, matrix.name(matrix.suffix),
        "there is no {} beside it and no configuration says sym (every zero is 8); fetch the whole checkpoint",
        quote(zeros_name));
}

std::int64_t claimed_group_size(const Matrix& matrix, const ClaimedConfig& claimed) {
  if (!claimed.group_size) {
    wrong(
        ErrorCode::kCorrupt, matrix.codes, matrix.name(matrix.suffix),
        "the shapes of this format leave the group size open, and no configuration says group_size; fetch config.json");
  }
  return *claimed.group_size == -1 ? matrix.entry.k : *claimed.group_size;
}

namespace {

/// g_idx and bias, which may be absent or empty.
void add_optional(Matrix& matrix) {
  MatrixEntry& entry = matrix.entry;
  if (const StoredTensor* g_idx = matrix.g_idx.tensor; g_idx != nullptr && g_idx->bytes != 0) {
    const std::string name = matrix.name(matrix.suffix == "weight_packed" ? "weight_g_idx" : "g_idx");
    if (entry.format == QuantFormat::kAwq)
      wrong(ErrorCode::kUnsupported, matrix.g_idx, name, "AWQ has no act-order; convert the matrix to GPTQ");
    need_type(matrix.g_idx, name, {"I32", "I64"});
    const auto& shape = g_idx->shape;
    if (shape != std::vector<std::int64_t>{1, entry.k} && shape != std::vector<std::int64_t>{entry.k, 1})
      need_shape(matrix.g_idx, name, {entry.k}, matrix);
    entry.has_g_idx = true;
  }
  if (matrix.bias.tensor != nullptr && matrix.bias.tensor->bytes != 0) {
    need_type(matrix.bias, matrix.name("bias"), {"F16", "BF16", "F32"});
    need_shape(matrix.bias, matrix.name("bias"), {entry.n}, matrix);
    entry.has_bias = true;
  }
}

/// Rows of a group: the config's if the number of groups agrees with it, else k / groups where that is whole.
std::int64_t group_size(const Matrix& matrix, const ClaimedConfig& claimed) {
  const MatrixEntry& entry = matrix.entry;
  const std::int64_t said = claimed.group_size.value_or(0);
  if (said == -1 && entry.groups == 1) return entry.k;
  if (said > 0 && entry.k / said + (entry.k % said != 0) == entry.groups) return said;
  if (entry.k % entry.groups == 0) return entry.k / entry.groups;
  if (said == 0 || entry.has_g_idx) return entry.k / entry.groups + 1;
  wrong(ErrorCode::kCorrupt, matrix.scales, matrix.name("scales"),
        "{} groups over k = {} rows fit neither group_size {} of {} nor any whole group size; correct the config",
        entry.groups, entry.k, said, claimed.path);
}

}  // namespace

void finish(Matrix& matrix, const ClaimedConfig& claimed) {
  MatrixEntry& entry = matrix.entry;
  const std::string codes = matrix.name(matrix.suffix);
  if (entry.bits != 4) {
    wrong(ErrorCode::kUnsupported, matrix.codes, codes,
          "{}-bit weights; q4 multiplies by 4-bit weights, quantize the matrix to 4 bits", entry.bits);
  }
  if (entry.n % 8 != 0)
    wrong(ErrorCode::kUnsupported, matrix.codes, codes, "n = {} columns; q4 needs a multiple of 8", entry.n);
  if (entry.k % 8 != 0)
    wrong(ErrorCode::kUnsupported, matrix.codes, codes, "k = {} rows; q4 needs a multiple of 8", entry.k);
  if (entry.groups > entry.k) {
    wrong(ErrorCode::kCorrupt, matrix.scales, codes, "{} groups for k = {} rows; fetch the checkpoint again",
          entry.groups, entry.k);
  }
  add_optional(matrix);
  entry.group_size = group_size(matrix, claimed);
}

Cut Cut::whole(const MatrixEntry& entry) {
  Cut cut{0, entry.k, std::vector<std::int32_t>(static_cast<std::size_t>(entry.n))};
  std::iota(cut.columns.begin(), cut.columns.end(), 0);
  return cut;
}

std::vector<std::uint32_t> transposed(const StoredTensor& from, std::int64_t stride,
                                      const std::vector<std::int32_t>& rows, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t kBlock = 16;  // words of a cache line
  constexpr std::int64_t kPart = 1 << 18, kMostThreads = 8;
  const Stored<std::uint32_t> words(from);
  const auto n = static_cast<std::int64_t>(rows.size());
  std::vector<std::uint32_t> to(static_cast<std::size_t>(count * n));
  const auto transpose = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row += kBlock)
      for (std::int64_t col = 0; col < count; col += kBlock)
        for (std::int64_t c = col; c < std::min(col + kBlock, count); ++c)
          for (std::int64_t r = row; r < std::min(row + kBlock, end); ++r)
            to[static_cast<std::size_t>(c * n + r)] = words[rows[static_cast<std::size_t>(r)] * stride + first + c];
  };
  const std::int64_t together = (kPart / std::max<std::int64_t>(count, 1) + kBlock) / kBlock * kBlock;
  const std::int64_t parts = (n + together - 1) / together;
  if (parts < 2) {
    transpose(0, n);
    return to;
  }
  static const std::int64_t threads = std::min<std::int64_t>(usable_threads(), kMostThreads);
  run_jobs(static_cast<std::size_t>(parts), static_cast<std::size_t>(threads), [&](std::size_t part) {
    const std::int64_t begin = static_cast<std::int64_t>(part) * together;
    transpose(begin, std::min(begin + together, n));
  });
  return to;
}

namespace {

/// [groups, n] of elements of scales' type, each from element at(group, column of the cut).
template <class At>
std::vector<std::uint8_t> gathered(const StoredTensor& scales, const Cut& cut, std::int64_t groups, const At& at) {
  const std::int64_t size = scales.dtype == "F32" ? 4 : 2;
  std::vector<std::uint8_t> to(static_cast<std::size_t>(groups * cut.n() * size));
  const auto* from = reinterpret_cast<const std::uint8_t*>(scales.data);
  auto* next = to.data();
  for (std::int64_t g = 0; g < groups; ++g)
    for (const std::int32_t column : cut.columns) next = std::copy_n(from + at(g, column) * size, size, next);
  return to;
}

}  // namespace

std::vector<std::uint8_t> transposed_scales(const StoredTensor& scales, const Cut& cut, std::int64_t stride,
                                            std::int64_t groups) {
  return gathered(scales, cut, groups, [&](std::int64_t group, std::int64_t c) { return c * stride + group; });
}

std::vector<std::uint8_t> cut_scales(const StoredTensor& scales, const Cut& cut, std::int64_t n, std::int64_t groups) {
  return gathered(scales, cut, groups, [&](std::int64_t group, std::int64_t c) { return group * n + c; });
}

}  // namespace q4::checkpoint
