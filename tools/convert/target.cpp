// The tensors of one matrix in each format (docs/formats.md has their sources).
//
//     gptq, gptq_v2       qweight I32 [k/8, n], qzeros I32 [groups, n/8], scales [groups, n], g_idx I32 [k]
//     compressed-tensors  weight_packed I32 [n, k/8], weight_scale [n, groups], weight_zero_point I32 [n/8, groups]
//                         where a zero is not 8, weight_g_idx I32 [k] with act-order, weight_shape I64 [2]
//     awq                 qweight I32 [k, n/8], qzeros I32 [groups, n/8], scales [groups, n]
#include "tools/convert/target.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/base/check.hpp"

namespace q4::tools::convert {

namespace {

template <class Element>
std::vector<std::uint8_t> as_bytes(const std::vector<Element>& elements) {
  const auto* const from = reinterpret_cast<const std::uint8_t*>(elements.data());
  return {from, from + elements.size() * sizeof(Element)};
}

/// [rows, cols] -> [cols, rows], in blocks of a cache line.
template <class Element>
std::vector<std::uint8_t> transposed(const Element* from, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kBlock = 64 / sizeof(Element);
  std::vector<Element> to(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; row += kBlock)
    for (std::int64_t col = 0; col < cols; col += kBlock)
      for (std::int64_t c = col; c < std::min(col + kBlock, cols); ++c)
        for (std::int64_t r = row; r < std::min(row + kBlock, rows); ++r)
          to[static_cast<std::size_t>(c * rows + r)] = from[r * cols + c];
  return as_bytes(to);
}

std::vector<std::int32_t> whole_g_idx(const Plan& plan, const Numbers& numbers) {
  if (!numbers.g_idx.empty()) return numbers.g_idx;
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(plan.k));
  for (std::int64_t r = 0; r < plan.k; ++r)
    g_idx[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(r / plan.group_size);
  return g_idx;
}

std::vector<std::uint8_t> gptq_bytes(Format format, const Plan& plan, const Numbers& numbers, const std::string& part) {
  if (part == "qweight") return as_bytes(numbers.codes);
  if (part == "scales") return numbers.scales;
  if (part == "g_idx") return as_bytes(whole_g_idx(plan, numbers));
  std::vector<std::uint32_t> zeros = numbers.zeros;
  if (format == Format::kGptq)
    for (std::uint32_t& word : zeros) {
      std::uint32_t less = 0;
      for (int i = 0; i < 8; ++i) checkpoint::put_nibble(less, i, ((word >> (4 * i)) + 15u) & 15u);
      word = less;
    }
  return as_bytes(zeros);
}

std::vector<std::uint8_t> compressed_bytes(const Plan& plan, const Numbers& numbers, const std::string& part) {
  if (part == "weight_packed") return transposed(numbers.codes.data(), plan.k / 8, plan.n);
  if (part == "weight_zero_point") return transposed(numbers.zeros.data(), plan.groups, plan.n / 8);
  if (part == "weight_g_idx") return as_bytes(numbers.g_idx);
  if (part == "weight_shape") return as_bytes(std::vector<std::int64_t>{plan.n, plan.k});
  const std::uint8_t* const scales = numbers.scales.data();  // a vector's memory is aligned for both
  if (plan.scale_type == "F32") return transposed(reinterpret_cast<const std::uint32_t*>(scales), plan.groups, plan.n);
  return transposed(reinterpret_cast<const std::uint16_t*>(scales), plan.groups, plan.n);
}

std::vector<std::uint8_t> awq_bytes(const Plan& plan, const Numbers& numbers, const std::string& part) {
  if (part == "scales") return numbers.scales;
  const std::int64_t width = plan.n / 8;
  std::vector<std::uint32_t> words;
  if (part == "qzeros") {
    words = numbers.zeros;
    for (std::uint32_t& word : words) word = to_awq_order(word);
    return as_bytes(words);
  }
  words.resize(numbers.codes.size());
  for (std::int64_t r = 0; r < plan.k / 8; ++r)
    for (std::int64_t w = 0; w < width; ++w) {
      std::uint32_t from[8], to[8];
      std::copy_n(numbers.codes.begin() + static_cast<std::ptrdiff_t>(r * plan.n + 8 * w), 8, from);
      transpose_nibbles(from, to);
      for (std::int64_t i = 0; i < 8; ++i)
        words[static_cast<std::size_t>((8 * r + i) * width + w)] = to_awq_order(to[i]);
    }
  return as_bytes(words);
}

}  // namespace

std::string refusal(Format format, const Plan& plan) {
  const bool whole = plan.groups == 1 || (plan.k % plan.group_size == 0 && plan.k / plan.group_size == plan.groups);
  if (plan.groups != 1 && (plan.k + plan.group_size - 1) / plan.group_size != plan.groups)
    return fmt::format("its {} groups of uneven size over k = {} rows have no group_size", plan.groups, plan.k);
  switch (format) {
    case Format::kGptq:
      if (plan.stored_v1) return "";
      if (plan.has_zero_0)
        return "a zero is 0, whose code in GPTQ v1 (15) some kernels take for 16; convert to gptq_v2";
      if (plan.all_zeros_9)
        return "every zero is 9, which GPTQ v1 stores as 8 everywhere, and that is how symmetric v2 files look; "
               "convert "
               "to gptq_v2";
      return "";
    case Format::kGptqV2:
      return "";
    case Format::kCompressedTensors:
      if (!whole)
        return fmt::format(
            "its last group is shorter (k = {}, group size {}), which compressed-tensors refuses; "
            "convert to gptq_v2",
            plan.k, plan.group_size);
      return "";
    case Format::kAwq:
      if (plan.act_order) return "it has act-order (a g_idx), which AWQ cannot store; convert to gptq_v2";
      if (!whole)
        return fmt::format(
            "its last group is shorter (k = {}, group size {}), which AWQ cannot store; convert to "
            "gptq_v2",
            plan.k, plan.group_size);
      return "";
  }
  return "";
}

std::vector<OutTensor> tensors_of(Format format, const Plan& plan, const std::string& name, std::size_t matrix) {
  std::vector<OutTensor> list;
  const auto add = [&](const char* part, const std::string& dtype, std::vector<std::int64_t> shape) {
    std::size_t bytes = dtype == "I64" ? 8 : dtype == "F32" || dtype == "I32" ? 4 : 2;
    for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
    list.push_back({name + "." + part, dtype, std::move(shape), bytes, matrix, part});
  };
  const std::int64_t k = plan.k, n = plan.n, groups = plan.groups;
  if (format == Format::kCompressedTensors) {
    add("weight_packed", "I32", {n, k / 8});
    add("weight_scale", plan.scale_type, {n, groups});
    if (!plan.symmetric) add("weight_zero_point", "I32", {n / 8, groups});
    if (plan.act_order) add("weight_g_idx", "I32", {k});
    add("weight_shape", "I64", {2});
    return list;
  }
  if (format == Format::kAwq)
    add("qweight", "I32", {k, n / 8});
  else
    add("qweight", "I32", {k / 8, n});
  add("qzeros", "I32", {groups, n / 8});
  add("scales", plan.scale_type, {groups, n});
  if (format != Format::kAwq) add("g_idx", "I32", {k});
  return list;
}

std::vector<std::uint8_t> bytes_of(Format format, const Plan& plan, const Numbers& numbers, const std::string& part) {
  switch (format) {
    case Format::kCompressedTensors:
      return compressed_bytes(plan, numbers, part);
    case Format::kAwq:
      return awq_bytes(plan, numbers, part);
    default:
      return gptq_bytes(format, plan, numbers, part);
  }
}

}  // namespace q4::tools::convert
