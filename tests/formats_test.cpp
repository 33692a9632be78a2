// Every format of docs/formats.md, generated as its tool packs it and as the tools wrote it, reads back exactly.
#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "format_maker.hpp"
#include "paths.hpp"
#include "runtime/checkpoint/formats/format.hpp"
#include "tools/common/npy.hpp"

namespace q4::test {
namespace {

PlainMatrix loaded(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.find(name).format == QuantFormat::kAwq ? unpack(checkpoint.awq(name))
                                                           : unpack(checkpoint.gptq(name));
}

void write(const TempFolder& folder, const std::string& config, const std::vector<FileTensor>& tensors) {
  write_safetensors(folder / "model.safetensors", tensors);
  write_file(folder / "config.json", R"({"quantization_config":)" + config + "}");
}

TEST_CASE("formats: each reads back exactly, and multiplies on the CPU") {
  const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
  const std::string name = "model.layers.0.self_attn.k_proj";
  for (const MadeFormat& made : made_formats(name)) {
    INFO(made.name);
    const TempFolder folder;
    write(folder, made.config, made.tensors);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    REQUIRE(checkpoint.matrices().size() == 1);
    const MatrixEntry& entry = checkpoint.find(name);
    REQUIRE(entry.unsupported == "");
    CHECK(entry.packing == made.packing);
    CHECK(entry.k == made.want.k);
    CHECK(entry.n == made.want.n);
    CHECK(entry.groups == made.want.groups);
    CHECK(entry.bits == 4);
    CHECK(checkpoint.act_order(name) == made.act_order);
    const PlainMatrix got = loaded(checkpoint, name);
    CHECK(got.codes == made.want.codes);
    CHECK(got.zeros == made.want.zeros);
    CHECK(got.scales == made.want.scales);
    CHECK(got.group == made.want.group);
    const QuantizedMatrix matrix = checkpoint.load(runtime, Device{}, name);
    CHECK(matrix.act_order() == made.act_order);
    const HostRows x = random_rows(DType::kF32, 2, entry.k);
    HostRows out(DType::kF32, 2, entry.n);
    MatmulPlan(runtime, matrix, {.max_m = 2, .activation = DType::kF32}).run({}, {x.data()}, {out.data()}, 2);
    CHECK(relative_error(out, product(x, made.want)) <= tolerance(DType::kF32));
    const std::string verify = binary_dir() + "/bin/q4-verify " + folder.path() + " --device cpu >/dev/null 2>&1";
    CHECK(std::system(verify.c_str()) == 0);
  }
}

TEST_CASE("q4-info CHECKPOINT: says what it is, and what would not load") {
  const TempFolder folder;
  const MadeFormat gemv = made_formats("model.layers.0.up_proj")[12];
  std::vector<FileTensor> tensors = gemv.tensors;
  tensors.push_back({"lm_head.qweight", "I32", {1, 1}, "1234"});
  write(folder, gemv.config, tensors);
  const std::string command = binary_dir() + "/bin/q4-info " + folder.path();
  REQUIRE(std::system((command + " --json >" + (folder / "out")).c_str()) == 0);
  const auto json = nlohmann::json::parse(read_file(folder / "out"));
  CHECK(json["packings"]["AWQ gemv"] == 1);
  CHECK(json["tool"] == "awq");
  CHECK(json["shapes"][0]["k"] == 128);
  CHECK(json["unsupported"][0]["name"] == "lm_head");
  REQUIRE(std::system((command + " >" + (folder / "out")).c_str()) == 0);
  const std::string text = read_file(folder / "out");
  CHECK_MESSAGE(text.find("format: AWQ gemv (awq), 1 matrices of 4 bits") != std::string::npos, text);
  CHECK_MESSAGE(text.find("128 x 192    group 32") != std::string::npos, text);
  CHECK_MESSAGE(text.find("1 cannot be loaded:\n    lm_head: ") != std::string::npos, text);
  CHECK(text.find("other groups") == std::string::npos);
  const MadeFormat plain = made_formats("model.layers.0.up_proj")[0];
  for (const auto& [said, other] : {std::pair{"32", 0}, {"64", 1}, {"-1", 1}}) {
    std::string of_plain = plain.config;
    of_plain.replace(of_plain.find("32"), 2, said);
    write(folder, of_plain, plain.tensors);
    REQUIRE(std::system((command + " >" + (folder / "out")).c_str()) == 0);
    CHECK((read_file(folder / "out").find("1 of them have other groups than the configuration says") !=
           std::string::npos) == (other == 1));
  }
  write(folder, gemv.config, tensors);
  // What cannot be read is wrong input to every tool, and a damaged matrix says what is wrong with it.
  const auto ends = [&](const std::string& arguments, const std::string& part) {
    const int status = std::system((binary_dir() + "/bin/" + arguments + " >" + (folder / "out") + " 2>&1").c_str());
    CHECK(WEXITSTATUS(status) == 2);
    CHECK_MESSAGE(read_file(folder / "out").find(part) != std::string::npos, read_file(folder / "out"));
  };
  write_file(folder / "x.npy", "");
  ends("q4-verify " + folder.path() + " --tensor lm_head --x " + (folder / "x.npy") + " --out y.npy",
       "lm_head.qweight");
  write_file(folder / "config.json", "{");
  ends("q4-info " + folder.path(), "not valid JSON");
  ends("q4-info --config " + (folder / "config.json"), "error: " + folder.path());
  write_safetensors(folder / "model.safetensors", {{"a.weight", "F16", {1}, "12"}});
  write_file(folder / "config.json", "{}");
  REQUIRE(std::system((command + " >" + (folder / "out")).c_str()) == 0);
  CHECK(read_file(folder / "out").find("no quantized matrix in it") != std::string::npos);
}

TEST_CASE("formats: damaged tensors are the matrix's error, whatever is cut off or replaced") {
  const std::string name = "m";
  for (const MadeFormat& made : made_formats(name)) {
    for (std::size_t which = 0; which < made.tensors.size(); ++which) {
      const auto attempt = [&](const char* what, auto&& change, bool may_load = false) {
        INFO(made.name, ": ", made.tensors[which].name, ": ", what);
        std::vector<FileTensor> tensors = made.tensors;
        change(tensors);
        const TempFolder folder;
        write(folder, made.config, tensors);
        std::string error = error_of([&] {
          const Checkpoint checkpoint = Checkpoint::open(folder.path());
          loaded(checkpoint, name);
        });
        CHECK_MESSAGE((may_load || error != "no error"), error);
        if (error != "no error") CHECK_MESSAGE(error.find("m") != std::string::npos, error);
      };
      const std::string part = made.tensors[which].name;
      const bool optional =
          part == "m.g_idx" || part == "m.weight_g_idx" || part == "m.weight_shape" || part == "m.weight_zero_point";
      attempt(
          "missing", [&](auto& t) { t.erase(t.begin() + static_cast<std::ptrdiff_t>(which)); }, optional);
      const bool codes = which == 0;  // a shorter last group is no damage that could be seen
      attempt(
          "one row less",
          [&](auto& t) {
            FileTensor& tensor = t[which];
            const auto rows = static_cast<std::size_t>(tensor.shape[0]);
            tensor.bytes.resize(tensor.bytes.size() / rows * (rows - 1));
            --tensor.shape[0];
          },
          codes);
      attempt("fp64", [&](auto& t) {
        t[which].dtype = "F64";
        std::int64_t count = 8;
        for (const std::int64_t extent : t[which].shape) count *= extent;
        t[which].bytes.assign(static_cast<std::size_t>(count), '\0');
      });
      attempt(
          "three dimensions", [&](auto& t) { t[which].shape.insert(t[which].shape.begin() + 1, 1); }, optional);
      attempt(
          "no elements",
          [&](auto& t) {
            t[which].shape[0] = 0;
            t[which].bytes.clear();
          },
          optional);
    }
  }
}

TEST_CASE("formats: act-order that no g_idx tells is lost, unless only the configuration claims it") {
  const std::string name = "m";
  int refused = 0;
  for (const MadeFormat& made : made_formats(name)) {
    std::vector<FileTensor> tensors = made.tensors;
    const auto removed = std::remove_if(tensors.begin(), tensors.end(),
                                        [](const FileTensor& t) { return t.name.find("g_idx") != std::string::npos; });
    if (removed == tensors.end()) continue;
    tensors.erase(removed, tensors.end());
    INFO(made.name);
    const TempFolder folder;
    const auto reason = [&](const std::string& config, std::vector<FileTensor> files) {
      write(folder, config, files);
      return Checkpoint::open(folder.path()).find(name).unsupported;
    };
    const std::size_t brace = made.config.rfind('}');
    const auto with = [&](const char* field) {
      return made.config.find("actorder") != std::string::npos
                 ? made.config
                 : made.config.substr(0, brace) + "," + field + made.config.substr(brace);
    };
    if (made.config.find("desc_act") != std::string::npos) continue;  // of one group
    const std::string text = reason(with(R"("desc_act":true)"), tensors);
    CHECK_MESSAGE(text.find("there is no g_idx beside it, nor beside any other") != std::string::npos, text);
    refused += !text.empty();
    CHECK(reason(with(R"("desc_act":true)"), made.tensors) == "");
    if (made.config.find("actorder") != std::string::npos) continue;
    CHECK(reason(with(R"("desc_act":true,"static_groups":true)"), tensors) == "");
    CHECK(reason(with(R"("desc_act":false)"), tensors) == "");
  }
  CHECK(refused >= 5);
}

TEST_CASE("formats: what the tools wrote has the right weights") {
  const std::filesystem::path data = std::filesystem::path(source_dir()) / "tests" / "data" / "formats";
  const Runtime runtime;
  int folders = 0;
  for (const auto& folder : std::filesystem::directory_iterator(data)) {
    INFO(folder.path().string());
    ++folders;
    const Checkpoint checkpoint = Checkpoint::open(folder.path().string());
    REQUIRE(checkpoint.matrices().size() == 1);
    const MatrixEntry& entry = checkpoint.matrices()[0];
    REQUIRE(entry.unsupported == "");
    const tools::NpyArray w = tools::read_npy((folder.path() / "W.npy").string());
    REQUIRE(w.rows() == entry.k);
    REQUIRE(w.cols() == entry.n);
    const PlainMatrix plain = loaded(checkpoint, entry.name);
    bool same = true;
    for (std::int64_t r = 0; r < entry.k; ++r)
      for (std::int64_t c = 0; c < entry.n; ++c)
        same &= plain.weight(r, c) == reinterpret_cast<const float*>(w.data.data())[r * entry.n + c];
    CHECK(same);
    CHECK(checkpoint.load(runtime, Device{}, entry.name).k() == entry.k);
  }
  CHECK(folders == 26);
}

TEST_CASE("formats: large tensors are transposed in parts, by several threads") {
  constexpr std::int64_t kRows = 1000, kStride = 650, kFirst = 7, kCount = 600;
  std::vector<std::uint32_t> words(kRows * kStride);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = static_cast<std::uint32_t>(i);
  checkpoint::StoredTensor tensor;
  tensor.data = reinterpret_cast<const std::byte*>(words.data()), tensor.bytes = words.size() * 4;
  std::vector<std::int32_t> rows;
  for (std::int32_t r = 0; r < kRows - 3; ++r) rows.push_back(kRows - 1 - r);
  const auto n = static_cast<std::int64_t>(rows.size());
  const auto got = checkpoint::transposed(tensor, kStride, rows, kFirst, kCount);
  REQUIRE(got.size() == static_cast<std::size_t>(kCount * n));
  bool same = true;
  for (std::int64_t c = 0; c < kCount; ++c)
    for (std::int64_t r = 0; r < n; ++r)
      same &= got[static_cast<std::size_t>(c * n + r)] ==
              static_cast<std::uint32_t>(rows[static_cast<std::size_t>(r)] * kStride + kFirst + c);
  CHECK(same);
}

}  // namespace
}  // namespace q4::test
