// Whole checkpoints: folders, shards, names, shapes against config; and that what comes out is what was written.
#include <doctest/doctest.h>
#include <cstring>
#include <filesystem>
#include <q4/checkpoint.hpp>

#include "checkpoint_maker.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;
using Format = CheckpointSpec::Format;

/// The matrix as unpacked from the checkpoint is the matrix as generated.
void check_same(const Checkpoint& checkpoint, const MadeMatrix& made) {
  const PlainMatrix want = unpack(made.gptq.tensors());
  const PlainMatrix got = checkpoint.find(made.name).format == QuantFormat::kAwq ? unpack(checkpoint.awq(made.name))
                                                                                 : unpack(checkpoint.gptq(made.name));
  CHECK(got.codes == want.codes);
  CHECK(got.zeros == want.zeros);
  CHECK(got.scales == want.scales);
  CHECK(got.group == want.group);
  CHECK(got.bias == want.bias);
}

TEST_CASE("checkpoint: every format, order, sharding and group size reads back") {
  const struct {
    const char* what;
    Format format;
    MatrixSpec matrix;
    int layers, shards;
  } cases[] = {
      {"gptq", Format::kGptq, {.k = 256, .n = 128}, 1, 1},
      {"gptq_v2", Format::kGptqV2, {.k = 256, .n = 128, .group_size = 32}, 2, 1},
      {"awq with bias", Format::kAwq, {.k = 128, .n = 64, .group_size = 64, .bias = true}, 1, 1},
      {"act-order in shards",
       Format::kGptq,
       {.k = 128, .n = 64, .group_size = 16, .act_order = ActOrder::kPermuted},
       12,
       5},
      {"awq in shards", Format::kAwq, {.k = 64, .n = 128, .group_size = 8}, 3, 3},
      {"one group", Format::kGptq, {.k = 72, .n = 40, .group_size = -1, .bias = true}, 1, 1},
      {"a last short group", Format::kGptq, {.k = 200, .n = 104, .group_size = 128}, 1, 1},
      {"trivial g_idx", Format::kGptqV2, {.k = 64, .n = 64, .group_size = 32, .act_order = ActOrder::kTrivial}, 1, 2},
  };
  for (const auto& c : cases) {
    INFO(std::string(c.what));
    const TempFolder folder;
    const auto made = make_checkpoint(folder.path(), {c.format, c.matrix, c.layers, c.shards});
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    REQUIRE(checkpoint.matrices().size() == made.size());
    CHECK(checkpoint.config().group_size == c.matrix.group_size);
    CHECK(checkpoint.config().zeros == (c.format == Format::kGptq ? ZeroFormat::kAuto : ZeroFormat::kV2));
    for (std::size_t i = 0; i < made.size(); ++i) {
      const MatrixEntry& entry = checkpoint.matrices()[i];
      const MatrixSpec& spec = made[i].gptq.spec;
      CHECK(entry.name == made[i].name);
      CHECK(entry.k == spec.k);
      CHECK(entry.n == spec.n);
      CHECK(entry.groups == made[i].gptq.groups);
      CHECK(entry.group_size == (spec.group_size == -1 ? spec.k : spec.group_size));
      CHECK(entry.has_g_idx == (spec.act_order != ActOrder::kNone));
      CHECK(entry.has_bias == spec.bias);
      CHECK(&checkpoint.find(entry.name) == &entry);
      check_same(checkpoint, made[i]);
    }
    CHECK(checkpoint.tensor("model.layers.0.input_layernorm.weight").cols == c.matrix.k);
  }
}

TEST_CASE("checkpoint: load() follows the checkpoint's claim on zeros unless it is told otherwise") {
  const Runtime runtime;
  const MatrixSpec spec{.k = 64, .n = 64, .group_size = 32};
  const TempFolder v1, v2, awq;
  const std::string name = make_checkpoint(v1.path(), {Format::kGptq, spec})[0].name;
  make_checkpoint(v2.path(), {Format::kGptqV2, spec});
  make_checkpoint(awq.path(), {Format::kAwq, spec});
  const auto zeros = [&](const TempFolder& folder, std::optional<ZeroFormat> told) {
    return Checkpoint::open(folder.path()).load(runtime, Device{}, name, told).zeros();
  };
  CHECK(zeros(v1, {}) == ZeroFormat::kV1);
  CHECK(zeros(v1, ZeroFormat::kV2) == ZeroFormat::kV2);
  CHECK(zeros(v2, {}) == ZeroFormat::kV2);
  CHECK(zeros(v2, ZeroFormat::kV1) == ZeroFormat::kV1);
  CHECK(zeros(awq, {}) == ZeroFormat::kV2);
  CHECK(error_of([&] { zeros(awq, ZeroFormat::kV1); }).find("invalid_argument: Checkpoint::load: zeros is v1") == 0);
  CHECK(error_of([&] { Checkpoint().matrices(); }).find("invalid_argument: ") == 0);
}

TEST_CASE("checkpoint: names are sorted with their numbers, and a wrong one brings the nearest") {
  const TempFolder folder;
  CheckpointSpec spec;
  spec.matrix = {.k = 16, .n = 16, .group_size = 16};
  spec.layers = 11;
  make_checkpoint(folder.path(), spec);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK(checkpoint.matrices()[6].name == "model.layers.2.mlp.down_proj");
  CHECK(checkpoint.matrices().back().name == "model.layers.10.self_attn.q_proj");
  const std::string error = error_of([&] { checkpoint.find("model.layers.7.mlp.upproj"); });
  CHECK_MESSAGE(error.find("not_found: ") == 0, error);
  CHECK_MESSAGE(error.find("nearest: \"model.layers.7.mlp.up_proj\"") != std::string::npos, error);
  CHECK(error_of([&] { checkpoint.gptq(std::string(1 << 20, 'x')); }).size() < 1000);
  CHECK(error_of([&] { checkpoint.awq("model.layers.7.mlp.up_proj"); }).find("invalid_argument: ") == 0);

  CHECK(checkpoint::natural_less("a2", "a10"));
  CHECK_FALSE(checkpoint::natural_less("a10", "a2"));
  CHECK(checkpoint::natural_less("a1", "a01") != checkpoint::natural_less("a01", "a1"));
  CHECK_FALSE(checkpoint::natural_less("a1", "a1"));
  CHECK(checkpoint::natural_less("a", "a1"));
  CHECK(checkpoint::natural_less("a99999999999999999999998", "a99999999999999999999999"));
}

TEST_CASE("checkpoint: which files a path means") {
  const TempFolder folder;
  const GptqMatrix matrix = make_gptq({.k = 16, .n = 8, .group_size = 8});
  const auto opened = [&](const std::string& path) { return Checkpoint::open(path).matrices().at(0).name; };
  CHECK(error_of([&] { opened(folder.path()); }).find("no *.safetensors file") != std::string::npos);
  write_safetensors(folder / "only.safetensors", file_tensors("only", matrix));
  CHECK(opened(folder.path()) == "only");
  write_safetensors(folder / "second.safetensors", file_tensors("second", matrix));
  CHECK(error_of([&] { opened(folder.path()); }).find("2 files end in .safetensors ") != std::string::npos);
  CHECK(opened(folder / "second.safetensors") == "second");
  write_file(
      folder / "x.safetensors.index.json",
      R"({"weight_map":{"second.qweight":"second.safetensors","second.qzeros":"second.safetensors","second.scales":"second.safetensors"}})");
  CHECK(opened(folder.path()) == "second");
  CHECK(opened(folder / "x.safetensors.index.json") == "second");
  write_file(folder / "config.json", "{}");
  CHECK(error_of([&] { opened(folder / "config.json"); }).find("name its folder") != std::string::npos);
  // Left over from other formats and from before the quantization: no file that it names is there.
  write_file(folder / "pytorch_model.bin.index.json", R"({"weight_map":{"a":"pytorch_model-00001-of-00002.bin"}})");
  write_file(folder / "model.safetensors.index.json", R"({"weight_map":{"a":"model-00001-of-00002.safetensors"}})");
  CHECK(opened(folder.path()) == "second");
  fs::remove(folder / "x.safetensors.index.json");
  fs::remove(folder / "second.safetensors");
  write_file(folder / "._only.safetensors", "what another system keeps of it");
  CHECK(opened(folder.path()) == "only");
  CHECK(error_of([&] { opened(folder / "pytorch_model.bin.index.json"); }).find("weights_only=True") !=
        std::string::npos);
  fs::remove(folder / "model.safetensors.index.json");
  // Shards without their index: all or none.
  write_safetensors(folder / "q-00001-of-00002.safetensors", file_tensors("q1", matrix));
  CHECK(error_of([&] { opened(folder.path()); }).find("2 files end in .safetensors ") != std::string::npos);
  fs::remove(folder / "only.safetensors");
  CHECK(error_of([&] {
          opened(folder.path());
        }).find("1 of the 2 files of its set are missing: \"q-00002-of-00002.safetensors\"; fetch them") !=
        std::string::npos);
  CHECK(opened(folder / "q-00001-of-00002.safetensors") == "q1");
  write_safetensors(folder / "q-00002-of-00002.safetensors", file_tensors("q2", matrix));
  CHECK(Checkpoint::open(folder.path()).matrices().size() == 2);
  write_safetensors(folder / "q-00002-of-00002.safetensors", file_tensors("q1", matrix));
  CHECK(error_of([&] { opened(folder.path()); }).find("\"q1.qweight\" is in ") != std::string::npos);
  write_safetensors(folder / "only.safetensors", file_tensors("only", matrix));
  write_safetensors(folder / "model.safetensors", file_tensors("model", matrix));
  CHECK(opened(folder.path()) == "model");
  fs::create_symlink("only.safetensors", folder / "link.safetensors");  // as in a hub's cache
  CHECK(opened(folder / "link.safetensors") == "only");
}

TEST_CASE("checkpoint: a model of a Hugging Face cache is the snapshot that its ref names") {
  const TempFolder cache;
  const GptqMatrix matrix = make_gptq({.k = 16, .n = 8, .group_size = 8});
  for (const char* folder : {"blobs", "refs", "snapshots", "snapshots/abc", "snapshots/def"})
    fs::create_directory(cache / folder);
  write_safetensors(cache / "blobs/1", file_tensors("one", matrix));
  write_file(cache / "blobs/2", R"({"quantization_config":{"quant_method":"gptq","checkpoint_format":"gptq_v2"}})");
  fs::create_symlink("../../blobs/1", cache / "snapshots/abc/model.safetensors");
  fs::create_symlink("../../blobs/2", cache / "snapshots/abc/config.json");
  write_file(cache / "refs/main", "abc");
  const Checkpoint checkpoint = Checkpoint::open(cache.path());
  CHECK(checkpoint.matrices().at(0).name == "one");
  CHECK(checkpoint.config().zeros == ZeroFormat::kV2);
  CHECK(Checkpoint::open(cache / "snapshots/abc").matrices().at(0).name == "one");
  write_file(cache / "refs/main", "../blobs");
  CHECK(error_of([&] { Checkpoint::open(cache.path()); }).find("not a plain file name") != std::string::npos);
  fs::remove(cache / "blobs/1");  // an interrupted download
  write_file(cache / "refs/main", "abc");
  CHECK(error_of([&] {
          Checkpoint::open(cache.path());
        }).find("a symbolic link to ../../blobs/1, which does not exist") != std::string::npos);
  fs::remove(cache / "snapshots/abc/model.safetensors");
  fs::create_symlink("model.safetensors", cache / "snapshots/abc/model.safetensors");
  CHECK(error_of([&] { Checkpoint::open(cache.path()); }).find("leads back to itself") != std::string::npos);
}

TEST_CASE("checkpoint: an index that lies is an error") {
  const TempFolder folder;
  write_safetensors(folder / "a.safetensors", file_tensors("a", make_gptq({.k = 16, .n = 8, .group_size = 8})));
  fs::create_directory(folder / "sub");
  fs::copy(folder / "a.safetensors", folder / "sub/a.safetensors");
  const struct {
    const char *map, *error;
  } cases[] = {
      {R"({})", "weight_map is missing"},
      {R"([])", "weight_map is missing"},
      {R"({"weight_map":[]})", "weight_map is missing or not an object"},
      {R"({"weight_map":{"a.qweight":1}})", "\"a.qweight\" is 1, not a file name; fetch the index again"},
      {R"({"weight_map":{"a.qweight":"b.safetensors"}})", "not_found: "},
      {R"({"weight_map":{"a.qweight":"a.safetensors","b":"a.safetensors"}})",
       "puts tensor \"b\" into \"a.safetensors\", which does not hold it"},
      {R"({"weight_map":{"a.qweight":"../a.safetensors"}})",
       "\"../a.safetensors\", which is not a plain file name in its folder; fetch it again"},
      {R"({"weight_map":{"a.qweight":"sub/a.safetensors"}})", "not a plain file name"},
      {R"({"weight_map":{"a.qweight":"/etc/passwd"}})", "not a plain file name"},
      {R"({"weight_map":{"a.qweight":".."}})", "not a plain file name"},
      {R"({"weight_map":{"a.qweight":""}})", "not a plain file name"},
      {R"({"weight_map":{"a.qweight":"a.safetensors\u0000"}})", "not a plain file name"},
      {R"({"weight_map":{"a.qweight":"a.safetensors","a.qweight":"a.safetensors"}})", "key \"a.qweight\" twice"},
  };
  for (const auto& c : cases) {
    write_file(folder / "model.safetensors.index.json", c.map);
    const std::string error = error_of([&] { Checkpoint::open(folder.path()); });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, c.map, " gave ", error);
  }
}

TEST_CASE("checkpoint: tensors that do not belong together are an error") {
  // k = 32, n = 64, two groups of 16; one tensor at a time replaced by a wrong one, or with a config that disagrees.
  const auto tensor = [](const char* part, const char* dtype, std::vector<std::int64_t> shape, std::size_t element) {
    std::size_t count = 1;
    for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
    return FileTensor{std::string("m.") + part, dtype, shape, std::string(count * element, '\0')};
  };
  const FileTensor good[] = {tensor("qweight", "I32", {4, 64}, 4), tensor("qzeros", "I32", {2, 8}, 4),
                             tensor("scales", "F16", {2, 64}, 2), tensor("g_idx", "I32", {32}, 4),
                             tensor("bias", "F16", {64}, 2)};
  const struct {
    const char* what;
    std::vector<FileTensor> replaced;
    const char *config, *error;
  } cases[] = {
      {"good", {}, R"({"group_size":16})", "no error"},
      {"no config", {}, "", "no error"},
      {"64-bit g_idx", {tensor("g_idx", "I64", {32}, 8)}, "", "no error"},
      {"empty g_idx", {tensor("g_idx", "I32", {0}, 4)}, "", "no error"},
      {"fp32 scales and bias", {tensor("scales", "F32", {2, 64}, 4), tensor("bias", "BF16", {64}, 2)}, "", "no error"},
      {"another group size in the config", {}, R"({"group_size":32})", "no error"},
      {"config says AWQ", {}, R"({"quant_method":"awq"})", "is packed as GPTQ, but"},
      {"3 groups of 32 rows",
       {tensor("qzeros", "I32", {3, 8}, 4), tensor("scales", "F16", {3, 64}, 2), tensor("g_idx", "I32", {0}, 4)},
       R"({"group_size":16})",
       "fit neither group_size 16"},
      {"groups of scales and zeros",
       {tensor("scales", "F16", {4, 64}, 2)},
       "",
       "\"m.qzeros\": I32 [2, 8] does not fit qweight I32 [4, 64]: shape [4, 8]"},
      {"more groups than rows",
       {tensor("qzeros", "I32", {33, 8}, 4), tensor("scales", "F16", {33, 64}, 2)},
       "",
       "33 groups for k = 32"},
      {"short g_idx", {tensor("g_idx", "I32", {31}, 4)}, "", "\"m.g_idx\": I32 [31] does not fit"},
      {"rank of g_idx", {tensor("g_idx", "I32", {1, 32}, 4)}, "", "no error"},
      {"square g_idx", {tensor("g_idx", "I32", {4, 8}, 4)}, "", "\"m.g_idx\": I32 [4, 8] does not fit"},
      {"fp32 g_idx", {tensor("g_idx", "F32", {32}, 4)}, "", "\"m.g_idx\": dtype F32; q4 reads I32, I64"},
      {"short bias", {tensor("bias", "F16", {63}, 2)}, "", "\"m.bias\": F16 [63]"},
      {"8 bits",
       {tensor("qweight", "I32", {8, 64}, 4), tensor("qzeros", "I32", {2, 16}, 4), tensor("g_idx", "I32", {32}, 4)},
       "",
       "8-bit weights"},
      {"8 bits that the config does not know",
       {tensor("qweight", "I32", {8, 64}, 4), tensor("qzeros", "I32", {2, 16}, 4), tensor("g_idx", "I32", {32}, 4)},
       R"({"bits":4})",
       "is 8-bit packing, but"},
      {"config says 8 bits", {}, R"({"bits":8})", "says 8 bits"},
      {"8 bits of AWQ", {tensor("qweight", "I32", {32, 16}, 4)}, R"({"bits":8})", "8-bit weights of AWQ"},
      {"n of qweight", {tensor("qweight", "I32", {4, 56}, 4)}, "", "neither as GPTQ"},
      {"n = 60", {tensor("qweight", "I32", {4, 60}, 4), tensor("scales", "F16", {2, 60}, 2)}, "", "n = 60 columns"},
      {"int64 qweight", {tensor("qweight", "I64", {4, 64}, 8)}, "", "unsupported: "},
      {"fp64 scales", {tensor("scales", "F64", {2, 64}, 8)}, "", "unsupported: "},
      {"experts in one tensor", {tensor("qweight", "I32", {2, 4, 64}, 4)}, "", "save a matrix for each expert"},
      {"no rows", {tensor("qweight", "I32", {0, 64}, 4)}, "", "q4 reads two dimensions of at least 1"},
  };
  for (const auto& c : cases) {
    INFO(std::string(c.what));
    const TempFolder folder;
    std::vector<FileTensor> tensors(std::begin(good), std::end(good));
    for (FileTensor& old : tensors) {
      for (const FileTensor& replacement : c.replaced) {
        if (old.name == replacement.name) old = replacement;
      }
    }
    write_safetensors(folder / "model.safetensors", tensors);
    if (*c.config != 0) write_file(folder / "quantize_config.json", c.config);
    const std::string error = error_of([&] {
      const Checkpoint checkpoint = Checkpoint::open(folder.path());
      const GptqTensors loaded = checkpoint.gptq("m");
      CHECK(checkpoint.find("m").group_size == 16);
      CHECK(loaded.g_idx.has_value() == (std::string(c.what) != "empty g_idx"));
    });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, error);
  }
}

}  // namespace
}  // namespace q4::test
