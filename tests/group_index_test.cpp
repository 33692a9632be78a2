// g_idx: every way in which tools write it, or half of it, gives the right groups or an error that names the row.
#include <doctest/doctest.h>

#include <numeric>
#include <q4/q4.hpp>

#include "checkpoint_maker.hpp"
#include "runtime/group_index.hpp"

namespace q4::test {
namespace {

constexpr std::int64_t kK = 256, kN = 64, kGroup = 32, kGroups = kK / kGroup;

/// x @ W on the CPU in fp32.
HostRows multiply(const Runtime& runtime, const QuantizedMatrix& matrix, const HostRows& x) {
  HostRows out(DType::kF32, x.rows(), matrix.n());
  MatmulPlan(runtime, matrix, {.max_m = x.rows(), .activation = DType::kF32})
      .run({}, {x.data()}, {out.data()}, x.rows());
  return out;
}

TensorView column(const void* data, DType dtype, std::int64_t rows) { return {data, dtype, rows, 1}; }

struct Case {
  const char* what;
  std::vector<std::int64_t> g_idx;
  bool act_order;
  const char* error;
};

std::vector<std::int64_t> filled(std::int64_t value) { return std::vector<std::int64_t>(kK, value); }

std::vector<std::int64_t> by_position() {
  std::vector<std::int64_t> g_idx = filled(0);
  for (std::int64_t r = 0; r < kK; ++r) g_idx[static_cast<std::size_t>(r)] = r / kGroup;
  return g_idx;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  all.push_back({"by position", by_position(), false, nullptr});
  all.push_back({"all zeros", filled(0), false, nullptr});
  all.push_back({"all -1", filled(-1), false, nullptr});
  all.push_back({"absent", {}, false, nullptr});
  auto g_idx = by_position();
  std::reverse(g_idx.begin(), g_idx.end());
  all.push_back({"reversed", g_idx, true, nullptr});
  g_idx = by_position();
  for (auto& g : g_idx) g /= 2;
  all.push_back({"groups without rows", g_idx, true, nullptr});
  all.push_back({"one group for all", filled(3), true, nullptr});
  g_idx = by_position();
  std::fill(g_idx.begin() + kK / 2, g_idx.end(), 0);
  all.push_back({"zeros from the middle", g_idx, true, nullptr});
  g_idx = by_position();
  std::fill(g_idx.begin() + kK / 2, g_idx.end(), -1);
  all.push_back({"-1 from the middle", g_idx, false, "g_idx[128] = -1 is outside [0, groups = 8)"});
  g_idx = filled(-1);
  g_idx[0] = 0;
  all.push_back({"-1 but for the first", g_idx, false, "g_idx[1] = -1"});
  g_idx = by_position();
  g_idx[7] = kGroups;
  all.push_back({"a group too many", g_idx, false, "g_idx[7] = 8"});
  g_idx = by_position();
  g_idx[7] = std::int64_t{1} << 32;  // 0 when cut to 32 bits
  all.push_back({"64-bit garbage", g_idx, false, "g_idx[7] ="});
  all.push_back({"too short", std::vector<std::int64_t>(kK - 8), false, "it must have k = 256 elements"});
  return all;
}

TEST_CASE("g_idx: what tools write for no act-order is none, and the rest is literal or an error") {
  std::vector<std::string> said;
  const Runtime runtime({.log = [&](LogLevel, const std::string& text) { said.push_back(text); }});
  const GptqMatrix matrix = make_gptq({.k = kK, .n = kN, .group_size = kGroup});
  const HostRows x = random_rows(DType::kF32, 3, kK);
  for (const Case& c : cases()) {
    INFO(std::string(c.what));
    const std::vector<std::int32_t> narrow(c.g_idx.begin(), c.g_idx.end());
    for (const DType dtype : {DType::kI32, DType::kI64}) {
      if (dtype == DType::kI32 && c.what == std::string("64-bit garbage")) continue;
      GptqTensors tensors = matrix.tensors();
      const auto rows = static_cast<std::int64_t>(c.g_idx.size());
      if (rows > 0)
        tensors.g_idx = dtype == DType::kI32 ? column(narrow.data(), dtype, rows) : column(c.g_idx.data(), dtype, rows);
      QuantizedMatrix made;
      const std::string error = error_of([&] { made = QuantizedMatrix::from_gptq(runtime, Device{}, tensors); });
      if (c.error != nullptr) {
        CHECK_MESSAGE(error.find(c.error) != std::string::npos, error);
        continue;
      }
      REQUIRE(error == "no error");
      CHECK(made.act_order() == c.act_order);
      // The truth in plain words, not by way of unpack(): by position, or as it is written.
      PlainMatrix plain = unpack(matrix.tensors());
      for (std::int64_t r = 0; r < kK; ++r)
        plain.group[static_cast<std::size_t>(r)] =
            static_cast<std::int32_t>(c.act_order ? c.g_idx[static_cast<std::size_t>(r)] : r / kGroup);
      CHECK(relative_error(multiply(runtime, made, x), product(x, plain)) <= tolerance(DType::kF32));
    }
  }
  const auto count = [&](const char* part) {
    return std::count_if(said.begin(), said.end(), [&](auto& text) { return text.find(part) != std::string::npos; });
  };
  CHECK(count("g_idx is 0 for every row") == 1);  // once, not for every matrix
  CHECK(count("g_idx is -1 for every row") == 1);
  CHECK(count("puts 256 rows into group 3, and the group size is 32") == 1);
  CHECK(count("puts 160 rows into group 0") == 1);
}

TEST_CASE("g_idx: types that hold no groups are refused, and one group needs no order") {
  const Runtime runtime;
  const GptqMatrix matrix = make_gptq({.k = 64, .n = 8, .group_size = -1});
  const std::vector<float> floats(64);
  const std::vector<std::int32_t> zeros(64), unset(64, -1);
  GptqTensors tensors = matrix.tensors();
  const auto act_order = [&](TensorView g_idx) {
    tensors.g_idx = g_idx;
    return QuantizedMatrix::from_gptq(runtime, Device{}, tensors).act_order();
  };
  CHECK_FALSE(act_order(column(zeros.data(), DType::kI32, 64)));
  CHECK_FALSE(act_order(column(unset.data(), DType::kI32, 64)));
  CHECK_FALSE(act_order({nullptr, DType::kI32, 0, 1}));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kU8}) {
    const std::string error = error_of([&] { act_order(column(floats.data(), dtype, 64)); });
    CHECK_MESSAGE(error.find("g_idx has dtype") != std::string::npos, error);
  }
  // All zeros where grouping by position does not fit either.
  const GptqMatrix grouped = make_gptq({.k = 64, .n = 8, .group_size = 16});
  tensors = grouped.tensors();
  tensors.group_size = 32;
  CHECK(error_of([&] { act_order(column(zeros.data(), DType::kI32, 64)); }).find("make 2 groups, but scales has 4") !=
        std::string::npos);
}

TEST_CASE("g_idx: checkpoints, their warm-up and q4-verify's reference follow the same rule") {
  const TempFolder folder;
  std::vector<FileTensor> tensors;
  const GptqMatrix plain = make_gptq({.k = kK, .n = kN, .group_size = kGroup});
  for (const auto& [name, value] : {std::pair("zeros", 0), std::pair("unset", -1), std::pair("permuted", 9)}) {
    GptqMatrix matrix = plain;
    matrix.g_idx.assign(kK, value);
    if (value == 9) matrix.g_idx = make_gptq({.k = kK, .group_size = kGroup, .act_order = ActOrder::kPermuted}).g_idx;
    for (FileTensor& tensor : file_tensors(name, matrix)) {
      if (name == std::string("unset") && tensor.name == "unset.g_idx") tensor.shape = {1, kK};
      tensors.push_back(std::move(tensor));
    }
  }
  write_safetensors(folder / "model.safetensors", tensors);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
  for (const MatrixEntry& entry : checkpoint.matrices()) {
    INFO(entry.name);
    CHECK(entry.has_g_idx);
    CHECK(checkpoint.act_order(entry.name) == (entry.name == "permuted"));
    CHECK(checkpoint.load(runtime, Device{}, entry.name).act_order() == (entry.name == "permuted"));
  }
  CHECK_NOTHROW(runtime.warmup(checkpoint, {.device = Device{}}));
}

}  // namespace
}  // namespace q4::test
