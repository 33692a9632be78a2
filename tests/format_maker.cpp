// Packs codes, zeros and scales as the tools do: each step of theirs is a loop here.
#include "format_maker.hpp"

#include <array>

namespace q4::test {
namespace {

constexpr std::int64_t kK = 128, kN = 192;

template <class T>
FileTensor tensor(const std::string& name, const char* dtype, std::vector<std::int64_t> shape,
                  const std::vector<T>& values) {
  return {name, dtype, std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

/// W as numbers, and the scales' bits in the type that is stored.
struct Numbers {
  PlainMatrix plain;
  std::vector<std::uint16_t> scales;  // [groups, n]
  std::vector<std::int32_t> g_idx;
  int code(std::int64_t r, std::int64_t c) const { return plain.codes[static_cast<std::size_t>(r * kN + c)]; }
  int zero(std::int64_t g, std::int64_t c) const { return plain.zeros[static_cast<std::size_t>(g * kN + c)]; }
  std::uint16_t scale(std::int64_t g, std::int64_t c) const { return scales[static_cast<std::size_t>(g * kN + c)]; }
};

Numbers numbers(const MatrixSpec& spec, bool bf16 = false) {
  const GptqMatrix matrix = make_gptq(spec);
  Numbers made{unpack(matrix.tensors()), matrix.scales, matrix.g_idx};
  for (std::size_t i = 0; bf16 && i < made.scales.size(); ++i) {
    made.scales[i] = bf16_bits(made.plain.scales[i]);
    made.plain.scales[i] = bf16_value(made.scales[i]);
  }
  return made;
}

/// count values of 4 bits from value(0), value(1), ... in words of so many bits, the last one filled with zeros.
template <class Word, class Value>
std::vector<Word> packed(std::int64_t count, Value&& value) {
  constexpr std::int64_t kPer = sizeof(Word) * 2;
  std::vector<Word> words(static_cast<std::size_t>((count + kPer - 1) / kPer));
  for (std::int64_t i = 0; i < count; ++i)
    words[static_cast<std::size_t>(i / kPer)] |=
        static_cast<Word>(static_cast<Word>(value(i) & 15) << (4 * (i % kPer)));
  return words;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// GPTQ in words of any size: along k for codes, along n for zeros. `borrow`: 1 is subtracted from the zeros of a word at
/// once, as GPTQModel does for v1.
template <class Word>
std::vector<FileTensor> gptq_words(const std::string& p, const Numbers& w, const char* dtype, int offset,
                                   bool borrow = false) {
  constexpr std::int64_t kPer = sizeof(Word) * 2;
  std::vector<Word> codes, zeros;
  for (std::int64_t row = 0; row < kK / kPer; ++row)
    for (std::int64_t c = 0; c < kN; ++c)
      append(codes, packed<Word>(kPer, [&](std::int64_t i) { return w.code(row * kPer + i, c); }));
  for (std::int64_t g = 0; g < w.plain.groups; ++g)
    append(zeros, packed<Word>(kN, [&](std::int64_t c) { return w.zero(g, c) + offset; }));
  if (borrow)
    for (Word& word : zeros) word = static_cast<Word>(word - static_cast<Word>(0x1111111111111111u));
  std::vector<FileTensor> tensors = {tensor(p + ".qweight", dtype, {kK / kPer, kN}, codes),
                                     tensor(p + ".qzeros", dtype, {w.plain.groups, kN / kPer}, zeros),
                                     tensor(p + ".scales", "F16", {w.plain.groups, kN}, w.scales)};
  if (!w.g_idx.empty()) tensors.push_back(tensor(p + ".g_idx", "I32", {kK}, w.g_idx));
  return tensors;
}

std::vector<FileTensor> awq_gemm(const std::string& p, const Numbers& w) {
  constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::vector<std::uint32_t> codes, zeros;
  for (std::int64_t r = 0; r < kK; ++r)
    append(codes, packed<std::uint32_t>(kN, [&](std::int64_t i) { return w.code(r, i / 8 * 8 + kOrder[i % 8]); }));
  for (std::int64_t g = 0; g < w.plain.groups; ++g)
    append(zeros, packed<std::uint32_t>(kN, [&](std::int64_t i) { return w.zero(g, i / 8 * 8 + kOrder[i % 8]); }));
  return {tensor(p + ".qweight", "I32", {kK, kN / 8}, codes),
          tensor(p + ".qzeros", "I32", {w.plain.groups, kN / 8}, zeros),
          tensor(p + ".scales", "F16", {w.plain.groups, kN}, w.scales)};
}

std::vector<FileTensor> compressed(const std::string& p, const Numbers& w, bool symmetric, const char* type) {
  std::vector<std::uint32_t> codes, zeros;
  std::vector<std::uint16_t> scales;
  for (std::int64_t c = 0; c < kN; ++c) {
    append(codes, packed<std::uint32_t>(kK, [&](std::int64_t r) { return w.code(r, c); }));
    for (std::int64_t g = 0; g < w.plain.groups; ++g) scales.push_back(w.scale(g, c));
  }
  std::vector<std::uint32_t> columns(static_cast<std::size_t>(kN / 8 * w.plain.groups));
  for (std::int64_t c = 0; c < kN; ++c)
    for (std::int64_t g = 0; g < w.plain.groups; ++g)
      columns[static_cast<std::size_t>(c / 8 * w.plain.groups + g)] |= static_cast<std::uint32_t>(w.zero(g, c))
                                                                       << (4 * (c % 8));
  std::vector<FileTensor> tensors = {tensor(p + ".weight_packed", "I32", {kN, kK / 8}, codes),
                                     tensor(p + ".weight_scale", type, {kN, w.plain.groups}, scales),
                                     tensor(p + ".weight_shape", "I64", {2}, std::vector<std::int64_t>{kN, kK})};
  if (!symmetric) tensors.push_back(tensor(p + ".weight_zero_point", "I32", {kN / 8, w.plain.groups}, columns));
  if (!w.g_idx.empty()) tensors.push_back(tensor(p + ".weight_g_idx", "I32", {kK}, w.g_idx));
  return tensors;
}

/// As compressed-tensors wrote asymmetric matrices before 0.9.4: zeros less 8, a byte each.
std::vector<FileTensor> with_int8_zeros(const std::string& p, const Numbers& w, std::vector<FileTensor> tensors) {
  std::vector<std::int8_t> zeros;
  for (std::int64_t c = 0; c < kN; ++c)
    for (std::int64_t g = 0; g < w.plain.groups; ++g) zeros.push_back(static_cast<std::int8_t>(w.zero(g, c) - 8));
  for (FileTensor& t : tensors)
    if (t.name == p + ".weight_zero_point") t = tensor(t.name, "I8", {kN, w.plain.groups}, zeros);
  return tensors;
}

/// AutoAWQ's calculate_zeros_width.
std::int64_t zeros_width(std::int64_t group) {
  const std::int64_t multiplier = group >= 128 ? 1 : group == 64 ? 2 : 4, base = (kK / group + 7) / 8;
  return (base + multiplier - 1) / multiplier * multiplier;
}

std::vector<FileTensor> awq_gemv(const std::string& p, const Numbers& w, std::int64_t group) {
  const std::int64_t width = zeros_width(group);
  std::vector<std::uint32_t> codes, zeros;
  std::vector<std::uint16_t> scales;
  for (std::int64_t c = 0; c < kN; ++c) {
    append(codes, packed<std::uint32_t>(kK, [&](std::int64_t r) { return w.code(r, c); }));
    append(zeros,
           packed<std::uint32_t>(8 * width, [&](std::int64_t g) { return g < w.plain.groups ? w.zero(g, c) : 0; }));
    for (std::int64_t g = 0; g < 8 * width; ++g)
      scales.push_back(g < w.plain.groups ? w.scale(g, c) : std::uint16_t{0});
  }
  return {tensor(p + ".qweight", "I32", {kN, kK / 8}, codes), tensor(p + ".qzeros", "I32", {kN, width}, zeros),
          tensor(p + ".scales", "F16", {kN, 8 * width}, scales)};
}

/// numpy's reshape(shape).transpose(axes) of an array of four axes.
std::vector<int> shuffled(const std::vector<int>& from, std::array<std::int64_t, 4> shape, std::array<int, 4> axes) {
  std::vector<int> to;
  std::array<std::int64_t, 4> i{}, extent{};
  for (std::size_t a = 0; a < 4; ++a) extent[a] = shape[static_cast<std::size_t>(axes[a])];
  for (i[0] = 0; i[0] < extent[0]; ++i[0])
    for (i[1] = 0; i[1] < extent[1]; ++i[1])
      for (i[2] = 0; i[2] < extent[2]; ++i[2])
        for (i[3] = 0; i[3] < extent[3]; ++i[3]) {
          std::array<std::int64_t, 4> at{};
          for (std::size_t a = 0; a < 4; ++a) at[static_cast<std::size_t>(axes[a])] = i[a];
          to.push_back(
              from[static_cast<std::size_t>(((at[0] * shape[1] + at[1]) * shape[2] + at[2]) * shape[3] + at[3])]);
        }
  return to;
}

std::vector<FileTensor> awq_gemv_fast(const std::string& p, const Numbers& w, std::int64_t group,
                                      const char* zeros_name) {
  std::vector<int> codes;
  for (std::int64_t c = 0; c < kN; ++c)
    for (std::int64_t r = 0; r < kK; ++r) codes.push_back(w.code(r, c));
  codes = shuffled(codes, {kN * kK / 32, 4, 4, 2}, {0, 2, 1, 3});
  codes = shuffled(codes, {kN * kK / 8, 1, 4, 2}, {0, 1, 3, 2});
  codes = shuffled(codes, {kN / 4, 4, kK / 64, 64}, {0, 2, 1, 3});
  const auto words = packed<std::uint16_t>(kN * kK, [&](std::int64_t i) { return codes[static_cast<std::size_t>(i)]; });
  const std::int64_t rows = 8 * zeros_width(group);
  std::vector<std::uint16_t> scales, zeros;
  for (std::int64_t g = 0; g < rows; ++g)
    for (std::int64_t c = 0; c < kN; ++c) {
      const bool used = g < w.plain.groups;
      scales.push_back(used ? w.scale(g, c) : std::uint16_t{0});
      zeros.push_back(used ? half_bits(-half_value(w.scale(g, c)) * w.zero(g, c)) : std::uint16_t{0});
    }
  return {tensor(p + ".qweight", "I16", {kN / 4, kK}, words), tensor(p + ".scales", "F16", {rows, kN}, scales),
          tensor(p + "." + zeros_name, "F16", {rows, kN}, zeros)};
}

/// _get_perms() of Marlin's quantizers.
std::vector<std::size_t> marlin_order() {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < 32; ++i) {
    std::vector<std::size_t> one;
    for (const std::size_t block : {0, 1})
      for (const std::size_t row : {2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1})
        one.push_back(16 * row + i / 4 + 8 * block);
    for (std::size_t j = 0; j < 4; ++j)
      for (const std::size_t nibble : {0, 2, 4, 6, 1, 3, 5, 7}) order.push_back(one[nibble] + 256 * j);
  }
  return order;
}

std::vector<FileTensor> marlin(const std::string& p, const Numbers& w, const char* codes_name,
                               const char* scales_name) {
  std::vector<int> codes;
  for (std::int64_t r = 0; r < kK; ++r)
    for (std::int64_t c = 0; c < kN; ++c) codes.push_back(w.code(r, c));
  codes = shuffled(codes, {kK / 16, 16, kN / 16, 16}, {0, 2, 1, 3});
  const std::vector<std::size_t> order = marlin_order();
  const auto words = packed<std::uint32_t>(kK * kN, [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    return codes[at / 1024 * 1024 + order[at % 1024]];
  });
  std::vector<std::size_t> scale_order;
  if (w.plain.groups > 1) {
    for (std::size_t i = 0; i < 8; ++i)
      for (std::size_t j = 0; j < 8; ++j) scale_order.push_back(i + 8 * j);
  } else {
    for (std::size_t i = 0; i < 4; ++i)
      for (const std::size_t j : {0, 1, 8, 9, 16, 17, 24, 25}) scale_order.push_back(2 * i + j);
  }
  std::vector<std::uint16_t> scales;
  const std::size_t period = scale_order.size();
  for (std::size_t i = 0; i < w.scales.size(); ++i)
    scales.push_back(w.scales[i / period * period + scale_order[i % period]]);
  return {tensor(p + "." + codes_name, "I32", {kK / 16, 2 * kN}, words),
          tensor(p + "." + scales_name, "F16", {w.plain.groups, kN}, scales)};
}

}  // namespace

std::vector<MadeFormat> made_formats(const std::string& p) {
  const MatrixSpec asymmetric{.k = kK, .n = kN, .group_size = 32, .zeros = ZeroFormat::kV2};
  MatrixSpec symmetric = asymmetric, ordered = asymmetric, one = asymmetric, one_ordered = asymmetric;
  symmetric.stored_zeros = StoredZeros::kSymmetric;
  ordered.act_order = ActOrder::kPermuted;
  one.group_size = -1, one.stored_zeros = StoredZeros::kSymmetric;
  one_ordered.group_size = -1, one_ordered.act_order = ActOrder::kTrivial;
  const Numbers w = numbers(asymmetric), s = numbers(symmetric), o = numbers(ordered), g1 = numbers(one);
  const Numbers go = numbers(one_ordered), b = numbers(asymmetric, true);
  const auto gptq = [](const char* more) {
    return R"({"quant_method":"gptq","bits":4,"group_size":32)" + std::string(more) + "}";
  };
  const auto round = [](const char* packing) {
    return R"({"quant_method":"auto-round","bits":4,"group_size":32,"sym":false,"packing_format":")" +
           std::string(packing) + "\"}";
  };
  const auto old_round = [](const char* backend) {
    return R"({"quant_method":"intel/auto-round","bits":4,"group_size":32,"sym":false,"backend":")" +
           std::string(backend) + "\"}";
  };
  const auto awq = [](const char* version, const char* group = "32") {
    return std::string(R"({"quant_method":"awq","bits":4,"zero_point":true,"group_size":)") + group +
           R"(,"version":")" + version + "\"}";
  };
  const auto llm = [](const char* weights) {
    return std::string(
               R"({"quant_method":"compressed-tensors","format":"pack-quantized","version":"0.19.0","ignore":["lm_head"],)") +
           R"("config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"int",)" + weights +
           "}}}}";
  };
  constexpr const char* kCt = "compressed-tensors pack-quantized";
  constexpr const char* kWords = "GPTQ in 8, 16 or 64-bit words";
  return {
      {"GPTQ v1", gptq(R"(,"checkpoint_format":"gptq")"), gptq_words<std::uint32_t>(p, w, "I32", -1), w.plain, "GPTQ"},
      {"GPTQ v2", gptq(R"(,"checkpoint_format":"gptq_v2")"), gptq_words<std::uint32_t>(p, o, "I32", 0), o.plain, "GPTQ",
       true},
      {"GPTQModel int8", gptq(R"(,"checkpoint_format":"gptq","pack_dtype":"int8")"),
       gptq_words<std::uint8_t>(p, w, "I8", -1), w.plain, kWords},
      {"GPTQModel int16", gptq(R"(,"checkpoint_format":"gptq_v2","pack_dtype":"int16")"),
       gptq_words<std::uint16_t>(p, o, "I16", 0), o.plain, kWords, true},
      {"GPTQModel int64", gptq(R"(,"checkpoint_format":"gptq_v2","pack_dtype":"int64")"),
       gptq_words<std::uint64_t>(p, o, "I64", 0), o.plain, kWords, true},
      {"GPTQModel one group, act-order",
       R"({"quant_method":"gptq","bits":4,"group_size":-1,"desc_act":true,"checkpoint_format":"gptq_v2"})",
       gptq_words<std::uint32_t>(p, go, "I32", 0), go.plain, "GPTQ"},
      {"AutoRound auto_gptq", round("auto_round:auto_gptq"), gptq_words<std::uint32_t>(p, w, "I32", -1), w.plain,
       "GPTQ"},
      {"AutoRound", round("auto_round"), gptq_words<std::uint32_t>(p, w, "I32", 0), w.plain, "GPTQ"},
      {"AutoRound gptqmodel", round("auto_round:gptqmodel"), gptq_words<std::uint32_t>(p, o, "I32", 0), o.plain, "GPTQ",
       true},
      {"AutoRound auto_awq", round("auto_round:auto_awq"), awq_gemm(p, w), w.plain, "AWQ gemm"},
      {"AutoRound llm_compressor", round("auto_round:llm_compressor"), compressed(p, w, false, "F16"), w.plain, kCt},
      {"AWQ gemm", awq("GEMM"), awq_gemm(p, w), w.plain, "AWQ gemm"},
      {"AWQ gemv", awq("gemv"), awq_gemv(p, w, 32), w.plain, "AWQ gemv"},
      {"AWQ gemv one group", awq("gemv", "-1"), awq_gemv(p, g1, 128), g1.plain, "AWQ gemv"},
      {"AWQ gemv_fast", awq("gemv_fast"), awq_gemv_fast(p, w, 32, "qzeros"), w.plain, "AWQ gemv_fast"},
      {"llm-awq", R"({"w_bit":4,"q_group_size":32})", awq_gemv_fast(p, w, 32, "scaled_zeros"), w.plain,
       "AWQ gemv_fast"},
      {"AWQ-Marlin", awq("marlin"), marlin(p, s, "qweight", "scales"), s.plain, "Marlin"},
      {"GPTQ-Marlin", gptq(R"(,"checkpoint_format":"marlin","is_marlin_format":true)"), marlin(p, s, "B", "s"), s.plain,
       "Marlin"},
      {"GPTQ-Marlin one group", R"({"quant_method":"gptq","bits":4,"group_size":-1,"is_marlin_format":true})",
       marlin(p, g1, "B", "s"), g1.plain, "Marlin"},
      {"compressed-tensors asymmetric", llm(R"("strategy":"group","group_size":32,"symmetric":false)"),
       compressed(p, b, false, "BF16"), b.plain, kCt},
      {"compressed-tensors symmetric", llm(R"("strategy":"group","group_size":32,"symmetric":true)"),
       compressed(p, s, true, "F16"), s.plain, kCt},
      {"compressed-tensors channel", llm(R"("strategy":"channel","group_size":null,"symmetric":true)"),
       compressed(p, g1, true, "F16"), g1.plain, kCt},
      {"compressed-tensors actorder", llm(R"("strategy":"group","group_size":32,"symmetric":false,"actorder":"group")"),
       compressed(p, o, false, "F16"), o.plain, kCt, true},
      {"GPTQModel v1 asymmetric",
       gptq(R"(,"checkpoint_format":"gptq","sym":false,"meta":{"quantizer":["gptqmodel:7.7.0"]})"),
       gptq_words<std::uint32_t>(p, w, "I32", 0, true), w.plain, "GPTQ"},
      {"GPTQModel v1 asymmetric int16",
       gptq(R"(,"checkpoint_format":"gptq","sym":false,"pack_dtype":"int16","meta":{"quantizer":"gptqmodel:7.7.0"})"),
       gptq_words<std::uint16_t>(p, o, "I16", 0, true), o.plain, kWords, true},
      {"compressed-tensors asymmetric before 0.9.4", llm(R"("strategy":"group","group_size":32,"symmetric":false)"),
       with_int8_zeros(p, w, compressed(p, w, false, "F16")), w.plain, kCt},
      {"AutoRound 0.4", old_round("auto_round:exllamav2"), gptq_words<std::uint32_t>(p, w, "I32", 0), w.plain, "GPTQ"},
      {"AutoRound 0.4 by AutoGPTQ", old_round("auto_round:gptq:exllamav2"), gptq_words<std::uint32_t>(p, w, "I32", -1),
       w.plain, "GPTQ"},
  };
}

}  // namespace q4::test
