// Opens what is to be converted, and reads matrices of every packing as the same numbers.
#include "tools/convert/source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <unordered_set>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/matrices.hpp"
#include "runtime/group_index.hpp"

namespace q4::tools::convert {

namespace {

using checkpoint::Located;
using checkpoint::Matrix;

/// Names below a matrix's that hold what the matrix is, in some packing; a bias is copied as any tensor.
constexpr const char* kParts[] = {"qweight",           "qzeros",       "scales",       "g_idx", "weight_packed",
                                  "weight_scale",      "weight_shape", "weight_g_idx", "B",     "s",
                                  "weight_zero_point", "scaled_zeros", "workspace"};
constexpr std::uint32_t kEights = 0x88888888u;

DType type_of(const Located& at) { return *checkpoint::public_type(at.tensor->dtype); }

/// The nibbles of a word, each minus or plus one, modulo 16.
std::uint32_t add_to_nibbles(std::uint32_t word, std::uint32_t value) {
  std::uint32_t result = 0;
  for (int i = 0; i < 8; ++i) checkpoint::put_nibble(result, i, ((word >> (4 * i)) + value) & 15u);
  return result;
}

bool any_nibble_zero(std::uint32_t word) { return ((word - 0x11111111u) & ~word & kEights) != 0; }

GroupIndex group_index(const Matrix& matrix) {
  const MatrixEntry& entry = matrix.entry;
  if (!entry.has_g_idx) return {};
  const std::string call = fmt::format("{}: {}", matrix.g_idx.file->path(), matrix.name("g_idx"));
  const auto bytes = checkpoint::elements<std::uint8_t>(*matrix.g_idx.tensor);  // aligned
  return read_group_index(call.c_str(), type_of(matrix.g_idx), bytes.data(), entry.k, entry.group_size, entry.groups);
}

std::vector<std::uint32_t> codes_of_awq(const Matrix& matrix) {
  const MatrixEntry& entry = matrix.entry;
  const auto words = checkpoint::elements<std::uint32_t>(*matrix.codes.tensor);
  std::vector<std::uint32_t> codes(words.size());
  const std::int64_t width = entry.n / 8;
  for (std::int64_t r = 0; r < entry.k / 8; ++r)
    for (std::int64_t w = 0; w < width; ++w) {
      std::uint32_t from[8], to[8];
      for (std::int64_t i = 0; i < 8; ++i)
        from[i] = from_awq_order(words[static_cast<std::size_t>((8 * r + i) * width + w)]);
      transpose_nibbles(from, to);
      std::copy(to, to + 8, codes.begin() + static_cast<std::ptrdiff_t>(r * entry.n + 8 * w));
    }
  return codes;
}

}  // namespace

std::uint32_t from_awq_order(std::uint32_t word) {
  constexpr int kColumn[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::uint32_t result = 0;
  for (int i = 0; i < 8; ++i) checkpoint::put_nibble(result, kColumn[i], (word >> (4 * i)) & 15u);
  return result;
}

std::uint32_t to_awq_order(std::uint32_t word) {
  constexpr int kColumn[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::uint32_t result = 0;
  for (int i = 0; i < 8; ++i) checkpoint::put_nibble(result, i, (word >> (4 * kColumn[i])) & 15u);
  return result;
}

void transpose_nibbles(const std::uint32_t (&from)[8], std::uint32_t (&to)[8]) {
  for (int i = 0; i < 8; ++i) {
    to[i] = 0;
    for (int j = 0; j < 8; ++j) checkpoint::put_nibble(to[i], j, (from[j] >> (4 * i)) & 15u);
  }
}

Source::Source(const std::string& path) : files_(checkpoint::open_files(path)) {
  matrices_ = checkpoint::find_matrices(files_, checkpoint::read_config(files_.folder)).list;
  if (matrices_.empty())
    fail(ErrorCode::kNotFound, "{}: no quantized matrix in it; name a checkpoint that q4-info lists", path);
  const auto refused =
      std::count_if(matrices_.begin(), matrices_.end(), [](const Matrix& m) { return !m.entry.unsupported.empty(); });
  std::set<std::string> packings;
  std::unordered_set<std::string> taken;
  for (const Matrix& matrix : matrices_) {
    if (!matrix.entry.unsupported.empty()) {
      fail(matrix.code, "{}: {} of {} matrices are not ones that q4 reads, so that the result would not be whole: {}",
           path, refused, matrices_.size(), matrix.entry.unsupported);
    }
    packings.insert(matrix.entry.packing);
    for (const char* part : kParts) taken.insert(matrix.name(part));
    plans_.push_back(plan(matrix));
  }
  packing_ = fmt::format("{}", fmt::join(packings, " and "));
  for (const auto& [name, at] : files_.tensors)
    if (taken.count(name) == 0) others_.push_back(name);
  std::sort(others_.begin(), others_.end(), checkpoint::natural_less);
}

std::vector<std::uint32_t> Source::zeros(const Matrix& matrix, const std::vector<std::uint32_t>& repacked,
                                         bool& v1) const {
  const MatrixEntry& entry = matrix.entry;
  v1 = false;
  if (matrix.zeros.tensor == nullptr)
    return std::vector<std::uint32_t>(static_cast<std::size_t>(entry.groups * (entry.n / 8)), kEights);
  std::vector<std::uint32_t> words =
      matrix.reader->repacks() ? repacked : checkpoint::elements<std::uint32_t>(*matrix.zeros.tensor);
  if (entry.format == QuantFormat::kAwq) {
    for (std::uint32_t& word : words) word = from_awq_order(word);
    return words;
  }
  // As ZeroFormat::kAuto: v1, unless every stored zero is 8.
  v1 = matrix.zero_format != ZeroFormat::kV2 &&
       !std::all_of(words.begin(), words.end(), [](std::uint32_t word) { return word == kEights; });
  if (v1)
    for (std::uint32_t& word : words) word = add_to_nibbles(word, 1);
  return words;
}

Plan Source::plan(const Matrix& matrix) const {
  const MatrixEntry& entry = matrix.entry;
  Plan plan{entry.k, entry.n, entry.groups, entry.group_size};
  const checkpoint::Fetched fetched({&matrix.zeros, &matrix.scales, &matrix.g_idx});
  plan.act_order = !group_index(matrix).rows.empty();
  const bool stored = matrix.zeros.tensor != nullptr;
  checkpoint::Cut none = checkpoint::Cut::whole(entry);
  none.rows = 0;  // the zeros alone
  const bool repacks = stored && matrix.reader->repacks();
  const auto all = zeros(matrix, repacks ? matrix.reader->repack(matrix, none).qzeros : std::vector<std::uint32_t>(),
                         plan.stored_v1);
  const auto every = [&](std::uint32_t value) {
    return std::all_of(all.begin(), all.end(), [&](std::uint32_t word) { return word == value; });
  };
  plan.symmetric = every(kEights);
  plan.all_zeros_9 = every(0x99999999u);
  plan.has_zero_0 = std::any_of(all.begin(), all.end(), any_nibble_zero);
  plan.scale_type = matrix.scales.tensor->dtype;
  return plan;
}

Numbers Source::numbers(std::size_t index) const {
  const Matrix& matrix = matrices_[index];
  const checkpoint::Fetched fetched({&matrix.codes, &matrix.zeros, &matrix.scales, &matrix.g_idx});
  Numbers numbers;
  checkpoint::Repacked repacked;
  if (matrix.reader->repacks()) repacked = matrix.reader->repack(matrix, checkpoint::Cut::whole(matrix.entry));
  bool v1 = false;
  numbers.zeros = zeros(matrix, repacked.qzeros, v1);
  if (matrix.reader->repacks()) {
    numbers.codes = std::move(repacked.qweight);
    numbers.scales = std::move(repacked.scales);
  } else {
    numbers.codes = matrix.entry.format == QuantFormat::kAwq
                        ? codes_of_awq(matrix)
                        : checkpoint::elements<std::uint32_t>(*matrix.codes.tensor);
    numbers.scales = checkpoint::elements<std::uint8_t>(*matrix.scales.tensor);
  }
  numbers.g_idx = group_index(matrix).rows;
  return numbers;
}

}  // namespace q4::tools::convert
