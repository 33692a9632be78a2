// q4-verify: its reference against the tests' own, its comparison, and the program itself on checkpoints of every kind.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "checkpoint_maker.hpp"
#include "paths.hpp"
#include "tools/common/compare.hpp"
#include "tools/common/npy.hpp"
#include "tools/common/weights.hpp"

namespace q4::test {
namespace {

TEST_CASE("verify: the reference reads weights as the tests do") {
  const MatrixSpec specs[] = {
      {.k = 256, .n = 40, .group_size = 64, .bias = true},
      {.k = 200, .n = 64, .group_size = 128, .zeros = ZeroFormat::kV2},
      {.k = 128, .n = 64, .group_size = 16, .act_order = ActOrder::kUneven},
      {.k = 64, .n = 8, .group_size = -1, .stored_zeros = StoredZeros::kSymmetric},
  };
  for (const MatrixSpec& spec : specs) {
    const GptqMatrix matrix = make_gptq(spec);
    const AwqMatrix awq = to_awq(matrix);
    GptqTensors tensors = matrix.tensors();
    tensors.group_size = tensors.group_size == -1 ? spec.k : tensors.group_size;
    AwqTensors awq_tensors = awq.tensors();
    awq_tensors.group_size = tensors.group_size;
    const PlainMatrix plain = unpack(matrix.tensors());
    std::vector<double> column(static_cast<std::size_t>(spec.k)), awq_column = column;
    const tools::Weights weights(tensors), awq_weights(awq_tensors);
    for (std::int64_t c = 0; c < spec.n; ++c) {
      weights.column(c, column);
      awq_weights.column(c, awq_column);
      bool same = true;
      for (std::int64_t r = 0; r < spec.k; ++r) {
        same &= column[static_cast<std::size_t>(r)] == plain.weight(r, c);
        same &= spec.act_order != ActOrder::kNone || awq_column[static_cast<std::size_t>(r)] == plain.weight(r, c);
      }
      CHECK(same);
      CHECK(weights.bias(c) == (spec.bias ? plain.bias[static_cast<std::size_t>(c)] : 0));
    }

    const HostRows x = random_rows(DType::kF32, 3, spec.k);
    std::vector<double> wide;
    for (std::int64_t i = 0; i < 3 * spec.k; ++i) wide.push_back(x.at(i / spec.k, i % spec.k));
    const std::vector<std::int64_t> columns = {0, 5, spec.n - 1};
    const std::vector<double> got = tools::multiply(weights, wide, 3, columns), want = product(x, plain);
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i] ==
            doctest::Approx(want[i / 3 * static_cast<std::size_t>(spec.n) + static_cast<std::size_t>(columns[i % 3])])
                .epsilon(1e-12));
    }
  }
}

TEST_CASE("verify: 16-bit numbers round as in the tests") {
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const double value = std::ldexp(random.normal(), static_cast<int>(random.below(60)) - 40);
    std::uint16_t half = 0, bf16 = 0;
    tools::set_value(DType::kF16, &half, 0, value);
    tools::set_value(DType::kBF16, &bf16, 0, value);
    REQUIRE(half == half_bits(value));
    REQUIRE(bf16 == bf16_bits(value));
  }
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto word = static_cast<std::uint16_t>(bits);
    const double half = tools::value_of(DType::kF16, &word, 0), bf16 = tools::value_of(DType::kBF16, &word, 0);
    REQUIRE((half == half_value(word) || (std::isnan(half) && std::isnan(half_value(word)))));
    REQUIRE((bf16 == bf16_value(word) || (std::isnan(bf16) && std::isnan(bf16_value(word)))));
  }
}

TEST_CASE("verify: the comparison sees what is wrong") {
  const std::int64_t m = 2, n = 300;
  std::vector<std::byte> out(static_cast<std::size_t>(m * n) * 2);
  std::vector<std::int64_t> columns;
  std::vector<double> reference;
  for (std::int64_t c = 0; c < n; ++c) columns.push_back(c);
  for (std::int64_t i = 0; i < m * n; ++i) {
    reference.push_back(std::sin(static_cast<double>(i)));
    tools::set_value(DType::kF16, out.data(), i, reference.back());
  }
  const auto error = [&] { return tools::relative_error(DType::kF16, out, reference, m, n, columns); };
  CHECK(error() < tolerance(DType::kF16));
  tools::set_value(DType::kF16, out.data(), 299, 3);
  CHECK(error() > tolerance(DType::kF16));
  tools::set_value(DType::kF16, out.data(), 299, NAN);
  CHECK(std::isinf(error()));
  reference[299] = NAN;  // a NaN scale: NaN is right
  CHECK(error() < tolerance(DType::kF16));
  reference[299] = 1e6;  // too large for fp16: infinity is right, a NaN is not
  CHECK(std::isinf(error()));
  tools::set_value(DType::kF16, out.data(), 299, INFINITY);
  CHECK(error() < tolerance(DType::kF16));

  auto sample = tools::sample_columns(4096, n, 1, 64);
  CHECK(sample.size() == 64);
  CHECK(*sample.begin() == 0);
  CHECK(*sample.rbegin() == n - 1);
  CHECK(tools::sample_columns(4096, n, 1, 0).size() == n);
  CHECK(tools::sample_columns(1 << 20, n, 1 << 20, -1).size() == 64);
  const auto before = sample;
  std::int64_t hidden = 0;
  while (sample.count(hidden) != 0) ++hidden;
  tools::set_value(DType::kF16, out.data(), n + hidden, NAN);
  tools::add_suspects(DType::kF16, out, m, n, sample);
  CHECK(sample.count(hidden) == 1);
}

struct Ran {
  int status = -1;
  std::string out, error;
};

/// Runs q4-verify with these arguments (plain words) and the CPU backend.
Ran verify(const std::string& arguments) {
  const TempFolder folder;
  const std::string command =
      q4::test::binary_dir() + "/bin/q4-verify " + arguments + " >" + (folder / "out") + " 2>" + (folder / "error");
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder / "out"), read_file(folder / "error")};
}

TEST_CASE("q4-verify: checkpoints of every kind pass, line by line and as JSON") {
  using Format = CheckpointSpec::Format;
  const struct {
    Format format;
    MatrixSpec matrix;
    int shards;
    const char *arguments, *zeros;
    bool act_order, detected;
  } cases[] = {
      {Format::kGptq, {.k = 256, .n = 136, .group_size = 64, .bias = true}, 1, "", "v1", false, false},
      {Format::kGptq,
       {.k = 128, .n = 264, .group_size = 8, .act_order = ActOrder::kPermuted},
       3,
       "--activation bf16",
       "v1",
       true,
       false},
      {Format::kGptqV2,
       {.k = 64, .n = 128, .group_size = 32, .act_order = ActOrder::kTrivial},
       1,
       "--activation fp32",
       "v2",
       false,
       false},
      {Format::kGptqV2, {.k = 72, .n = 40, .group_size = -1}, 2, "--m 1-5 --columns 0", "v2", false, false},
      {Format::kAwq, {.k = 256, .n = 64, .group_size = 128, .bias = true}, 2, "", "v2", false, false},
  };
  for (const auto& c : cases) {
    const TempFolder folder;
    const auto made = make_checkpoint(folder.path(), {c.format, c.matrix, 2, c.shards});
    const Ran ran = verify(folder.path() + " --device cpu --json " + c.arguments);
    INFO(ran.error);
    REQUIRE(ran.status == 0);
    const auto json = nlohmann::json::parse(ran.out);
    CHECK(json["failed"] == 0);
    REQUIRE(json["matrices"].size() == made.size());
    for (std::size_t i = 0; i < made.size(); ++i) {
      const auto& line = json["matrices"][i];
      CHECK(line["name"] == made[i].name);
      CHECK(line["k"] == made[i].gptq.spec.k);
      CHECK(line["act_order"] == c.act_order);
      CHECK(line["zeros"] == c.zeros);
      CHECK(line["error"].get<double>() > 0);
      CHECK(line["error"].get<double>() <= json["tolerance"].get<double>());
    }
    const Ran text = verify(folder.path() + " --device cpu --tensor model.layers.1 " + c.arguments);
    CHECK(text.status == 0);
    CHECK(text.out.find("model.layers.1.mlp.up_proj") != std::string::npos);
    CHECK(text.out.find("model.layers.0.mlp.up_proj") == std::string::npos);
    CHECK(text.out.find("all passed") != std::string::npos);
  }
}

TEST_CASE("q4-verify: symmetric v2 zeros in a checkpoint that claims v1 are detected, and --zeros decides") {
  const TempFolder folder;
  make_checkpoint(folder.path(), {CheckpointSpec::Format::kGptqV2,
                                  {.k = 64, .n = 64, .group_size = 32, .stored_zeros = StoredZeros::kSymmetric}});
  std::string config = read_file(folder / "config.json");
  config.replace(config.find("gptq_v2"), 7, "gptq");
  write_file(folder / "config.json", config);
  const auto first = [&](const std::string& arguments) {
    return nlohmann::json::parse(verify(folder.path() + " --device cpu --json" + arguments).out)["matrices"][0];
  };
  CHECK(first("")["zeros"] == "v2");
  CHECK(first("")["zeros_detected"] == true);
  CHECK(first(" --zeros v1")["zeros"] == "v1");
  CHECK(first(" --zeros v1")["ok"] == true);
  CHECK(first(" --zeros v2")["zeros_detected"] == false);
}

TEST_CASE("q4-verify: --x and --out multiply the rows of a file") {
  const TempFolder folder;
  const auto made = make_checkpoint(
      folder.path(), {CheckpointSpec::Format::kGptq,
                      {.k = 64, .n = 40, .group_size = 16, .act_order = ActOrder::kPermuted, .bias = true}});
  const std::string name = "model.layers.0.mlp.up_proj";
  const PlainMatrix plain = unpack(made[1].gptq.tensors());
  REQUIRE(made[1].name == name);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const HostRows x = random_rows(dtype, 6, 64);
    tools::NpyArray array{dtype, {2, 3, 64}, {}};
    array.data.assign(static_cast<const std::byte*>(x.data()), static_cast<const std::byte*>(x.data()) + x.bytes());
    tools::write_npy(folder / "x.npy", array);
    const Ran ran = verify(folder.path() + " --device cpu --tensor " + name + " --x " + (folder / "x.npy") + " --out " +
                           (folder / "y.npy"));
    INFO(ran.error);
    REQUIRE(ran.status == 0);
    const tools::NpyArray y = tools::read_npy(folder / "y.npy");
    CHECK(y.dtype == dtype);
    CHECK(y.shape == std::vector<std::int64_t>{2, 3, 40});
    HostRows out(dtype, 6, 40);
    std::memcpy(out.data(), y.data.data(), out.bytes());
    CHECK(relative_error(out, product(x, plain)) <= tolerance(dtype));
  }
}

TEST_CASE("q4-verify: wrong usage and unreadable files end with 2 and say why") {
  const TempFolder folder;
  make_checkpoint(folder.path(), {CheckpointSpec::Format::kGptq, {.k = 64, .n = 40, .group_size = 16}});
  tools::write_npy(folder / "x.npy", {DType::kF16, {1, 63}, std::vector<std::byte>(126)});
  const std::string up = " --tensor model.layers.0.mlp.up_proj";
  const struct {
    std::string arguments;
    const char* error;
  } cases[] = {
      {"", "CHECKPOINT is required"},
      {folder / "absent", "name a .safetensors file"},
      {folder.path() + " --device tpu:0", "tpu"},
      {folder.path() + " --device cpu:7", "cpu"},
      {folder.path() + " --m 0", "--m"},
      {folder.path() + " --zeros v3", "--zeros"},
      {folder.path() + " --tensor model.layers.0.mlp.upproj", "nearest: "},
      {folder.path() + up + " --x " + (folder / "x.npy"), "--out"},
      {folder.path() + up + " --x " + (folder / "x.npy") + " --out " + (folder / "y.npy"),
       "the last extent must be 64"},
      {folder.path() + " --tensor model.layers.0 --x " + (folder / "x.npy") + " --out " + (folder / "y.npy"),
       "names 3 matrices"},
      {folder.path() + up + " --x " + (folder / "config.json") + " --out " + (folder / "y.npy"), "no .npy file"},
      {folder.path() + up + " --x " + (folder / "x.npy") + " --out " + (folder / "x.npy"), "that is the file of --x"},
  };
  for (const auto& c : cases) {
    const Ran ran = verify(c.arguments);
    CHECK_MESSAGE(ran.status == 2, c.arguments);
    CHECK_MESSAGE((ran.error + ran.out).find(c.error) != std::string::npos, c.arguments, " gave ", ran.error, ran.out);
  }
  write_safetensors(folder / "model.safetensors", {});
  CHECK(verify(folder.path()).status == 2);
  CHECK(verify(folder.path()).error.find("no quantized matrix") != std::string::npos);
  CHECK(verify("--help").status == 0);
}

TEST_CASE("q4-verify: a name of a matrix does not steer the terminal") {
  const TempFolder folder;
  const GptqMatrix matrix = make_gptq({.k = 64, .n = 40, .group_size = 16});
  write_safetensors(folder / "model.safetensors", file_tensors("a\n\x1b[31mb", matrix));
  const Ran ran = verify(folder.path() + " --device cpu --m 1");
  CHECK(ran.status == 0);
  CHECK_MESSAGE(ran.out.find("a??[31mb") != std::string::npos, ran.out);
}

TEST_CASE("q4-verify: a matrix that the library refuses is a failure, and the others are still checked") {
  const TempFolder folder;
  const auto made = make_checkpoint(
      folder.path(),
      {CheckpointSpec::Format::kGptq, {.k = 64, .n = 40, .group_size = 16, .act_order = ActOrder::kPermuted}});
  std::vector<FileTensor> tensors;
  for (const MadeMatrix& matrix : made) {
    GptqMatrix changed = matrix.gptq;
    if (&matrix == &made[0]) changed.g_idx[3] = 99;  // no such group
    for (FileTensor& tensor : file_tensors(matrix.name, changed)) tensors.push_back(std::move(tensor));
  }
  write_safetensors(folder / "model.safetensors", tensors);
  const Ran ran = verify(folder.path() + " --device cpu");
  CHECK(ran.status == 1);
  CHECK(ran.out.find("failed: ") != std::string::npos);
  CHECK(ran.out.find("1 FAILED") != std::string::npos);
  CHECK(ran.out.find("self_attn.q_proj") != std::string::npos);
}

/// Writes the checkpoint again with its tensors changed.
template <class Change>
void rewrite(const TempFolder& folder, const std::vector<MadeMatrix>& made, Change&& change) {
  std::vector<FileTensor> tensors;
  for (const MadeMatrix& matrix : made) {
    for (FileTensor& tensor : file_tensors(matrix.name, matrix.gptq)) {
      change(tensor);
      tensors.push_back(std::move(tensor));
    }
  }
  write_safetensors(folder / "model.safetensors", tensors);
}

TEST_CASE("q4-verify: scales that mean nothing fail, and tiny ones that are right pass") {
  const TempFolder folder;
  const auto made =
      make_checkpoint(folder.path(), {CheckpointSpec::Format::kGptq, {.k = 256, .n = 64, .group_size = 32}});
  const std::string first = made[0].name + ".scales";
  const auto with = [&](auto&& scale, const char* dtype = "F16") {
    rewrite(folder, made, [&](FileTensor& tensor) {
      if (tensor.name != first) return;
      const std::size_t count = tensor.bytes.size() / 2;
      tensor.dtype = dtype;
      tensor.bytes.clear();
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t bits = scale(i);
        tensor.bytes.append(reinterpret_cast<const char*>(&bits), 2);
      }
    });
    return verify(folder.path() + " --device cpu");
  };
  const auto number = [](std::size_t i) { return static_cast<double>(i % 7 + 1); };
  const Ran nan = with([](std::size_t i) { return i == 70 ? std::uint16_t{0x7e00} : half_bits(0.01); });
  CHECK(nan.status == 1);
  CHECK_MESSAGE(nan.out.find("failed: scales[") != std::string::npos, nan.out);
  CHECK(nan.out.find("1 FAILED") != std::string::npos);
  const Ran zero = with([](std::size_t) { return std::uint16_t{0}; });
  CHECK(zero.status == 1);
  CHECK_MESSAGE(zero.out.find("failed: every scale is 0") != std::string::npos, zero.out);
  const Ran bf16 = with([&](std::size_t i) { return bf16_bits(1.1e-6 * number(i)); }, "BF16");
  CHECK(bf16.status == 1);
  CHECK_MESSAGE(bf16.out.find("scales in bf16") != std::string::npos, bf16.out);
  const Ran fits = with([&](std::size_t i) { return bf16_bits(1.1e-3 * number(i)); }, "BF16");
  CHECK_MESSAGE(fits.status == 0, fits.out);
  const Ran tiny = with([&](std::size_t i) { return static_cast<std::uint16_t>(i % 3 + 1); });  // 6e-8 to 1.8e-7
  CHECK_MESSAGE(tiny.status == 0, tiny.out);
}

TEST_CASE("q4-verify: a matrix that is not supported is passed over with its reason, unless it is named") {
  const TempFolder folder;
  const auto made =
      make_checkpoint(folder.path(), {CheckpointSpec::Format::kGptq, {.k = 64, .n = 40, .group_size = 16}});
  const std::string odd = made[2].name;
  const auto spoil = [&](const std::string& suffix, std::vector<std::int64_t> shape) {
    rewrite(folder, made, [&](FileTensor& tensor) {
      if (tensor.name != odd + suffix) return;
      std::int64_t bytes = tensor.dtype == "F16" ? 2 : 4;
      for (const std::int64_t extent : shape) bytes *= extent;
      tensor.shape = shape;
      tensor.bytes.assign(static_cast<std::size_t>(bytes), 'x');
    });
  };
  rewrite(folder, made, [&](FileTensor& tensor) {
    if (tensor.name == odd + ".qweight") tensor.shape = {1, 8, 64};
  });
  const Ran all = verify(folder.path() + " --device cpu");
  CHECK_MESSAGE(all.status == 0, all.out);
  CHECK_MESSAGE(all.out.find("not supported, passed over: " + odd + ": ") != std::string::npos, all.out);
  const Ran json = verify(folder.path() + " --device cpu --json");
  CHECK(nlohmann::json::parse(json.out)["unsupported"][0]["name"] == odd);
  CHECK(verify(folder.path() + " --device cpu --tensor " + made[0].name).status == 0);
  const Ran named = verify(folder.path() + " --device cpu --tensor " + odd);
  CHECK(named.status == 1);
  CHECK_MESSAGE(named.out.find("two dimensions") != std::string::npos, named.out);
  spoil(".qzeros", {3, 8});  // damaged, not unsupported
  CHECK(verify(folder.path() + " --device cpu").status == 1);
}

}  // namespace
}  // namespace q4::test
