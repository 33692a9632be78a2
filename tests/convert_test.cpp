// q4-convert: every format to every other, exactly or refused with the reason, and nothing half-done.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "format_maker.hpp"
#include "sandbox.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const char* const kTargets[] = {"gptq", "gptq_v2", "compressed-tensors", "awq"};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

PlainMatrix loaded(const std::string& folder, const std::string& name) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  REQUIRE(checkpoint.find(name).unsupported == "");
  return checkpoint.find(name).format == QuantFormat::kAwq ? unpack(checkpoint.awq(name))
                                                           : unpack(checkpoint.gptq(name));
}

void check_same(const PlainMatrix& got, const PlainMatrix& want) {
  CHECK(got.codes == want.codes);
  CHECK(got.zeros == want.zeros);
  CHECK(got.scales == want.scales);
  CHECK(got.group == want.group);
}

/// Names below a folder, hidden ones too.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    names.push_back(fs::relative(entry.path(), folder).string());
  std::sort(names.begin(), names.end());
  return names;
}

/// A model's folder "in" of the sandbox: a matrix, tensors that are none, and files beside them.
std::string make_model(const Sandbox& box, const std::string& config, std::vector<FileTensor> tensors) {
  const std::string folder = box.file("in");
  fs::create_directories(folder + "/chat");
  tensors.push_back({"model.layers.0.mlp.gate.weight", "BF16", {3, 5}, std::string(30, 'w')});
  tensors.push_back({"model.norm.weight", "F16", {3}, "abcdef"});
  tensors.push_back({"empty", "F32", {0, 4}, ""});
  write_safetensors(folder + "/model.safetensors", tensors);
  write_file(folder + "/config.json",
             R"({"model_type":"llama","limit":[0.0,Infinity],"text_config":{"z":1,"quantization_config":)" + config +
                 R"(},"rms_norm_eps":1e-05})");
  write_file(folder + "/tokenizer.json", "{\"t\": 1}");
  write_file(folder + "/chat/template.jinja", "{{ x }}");
  write_file(folder + "/pytorch_model.bin", "not copied");
  return folder;
}

TEST_CASE("convert: each format to each other, exactly or with the reason why not") {
  const std::string name = "model.layers.0.self_attn.k_proj";
  int converted = 0, refused = 0;
  for (const MadeFormat& made : made_formats(name)) {
    for (const char* const target : kTargets) {
      INFO(made.name, " to ", target);
      const Sandbox box;
      const std::string in = make_model(box, made.config, made.tensors), out = box.file("out");
      const Ended ended = box.run("q4-convert " + in + " " + out + " --quiet --to " + target, true);
      const bool zero_0 = std::count(made.want.zeros.begin(), made.want.zeros.end(), 0) != 0;
      const bool from_v1 = contains(made.packing, "GPTQ") && contains(ended.out, "of GPTQ");
      const bool to_v1 = target == std::string("gptq");
      if ((made.act_order && target == std::string("awq")) || (to_v1 && zero_0 && !from_v1)) {
        ++refused;
        CHECK(ended.status == 1);
        CHECK_MESSAGE(contains(ended.out, "\"" + name + "\": " + (to_v1 ? "a zero is 0" : "it has act-order")),
                      ended.out);
        CHECK(!fs::exists(out));
        continue;
      }
      ++converted;
      REQUIRE_MESSAGE(ended.status == 0, ended.out);
      check_same(loaded(out, name), made.want);
      CHECK(names_in(out) == std::vector<std::string>{"chat", "chat/template.jinja", "config.json", "model.safetensors",
                                                      "tokenizer.json"});
      CHECK(contains(ended.out, "not copied: pytorch_model.bin"));
      CHECK(read_file(out + "/tokenizer.json") == "{\"t\": 1}");
      const Checkpoint checkpoint = Checkpoint::open(out);
      CHECK(std::string(static_cast<const char*>(checkpoint.tensor("model.norm.weight").data), 6) == "abcdef");
      CHECK(checkpoint.tensor("empty").cols == 4);
      const std::string config = read_file(out + "/config.json");
      CHECK(contains(config, "Infinity\n"));
      CHECK(contains(config, "1e-05"));
      CHECK(!contains(config, "q4-convert"));
      CHECK(contains(config, "gate"));  // which is dense, and must be said to be
      CHECK(names_in(box.file("")).front() != ".out");
      for (const std::string& left : names_in(box.file(""))) CHECK(left[0] != '.');
    }
  }
  CHECK(converted > 40);
  CHECK(refused > 3);
}

TEST_CASE("convert: there and back gives the same bytes") {
  for (const auto format :
       {CheckpointSpec::Format::kGptq, CheckpointSpec::Format::kGptqV2, CheckpointSpec::Format::kAwq}) {
    const Sandbox box;
    const std::string in = box.file("in"), there = box.file("there"), back = box.file("back");
    const std::string own = format == CheckpointSpec::Format::kGptq     ? "gptq"
                            : format == CheckpointSpec::Format::kGptqV2 ? "gptq_v2"
                                                                        : "awq";
    INFO(own);
    fs::create_directory(in);
    make_checkpoint(in, {.format = format,
                         .matrix = {.k = 128,
                                    .n = 64,
                                    .group_size = 32,
                                    .stored_zeros = own == "gptq" ? StoredZeros::kSymmetric : StoredZeros::kRandom,
                                    .bias = true},
                         .layers = 2,
                         .shards = 2});
    const std::string over = own == "awq" ? "gptq_v2" : "compressed-tensors";
    REQUIRE(box.run("q4-convert " + in + " " + there + " --to " + over).status == 0);
    const Ended ended = box.run("q4-convert " + there + " " + back + " --shard-size 9KB --to " + own, true);
    REQUIRE_MESSAGE(ended.status == 0, ended.out);
    const Checkpoint first = Checkpoint::open(in), second = Checkpoint::open(back);
    for (const std::string& name : first.tensor_names()) {
      INFO(name);
      const TensorView a = first.tensor(name), b = second.tensor(name);
      REQUIRE(a.rows * a.cols == b.rows * b.cols);
      CHECK(a.dtype == b.dtype);
      CHECK(std::memcmp(a.data, b.data, static_cast<std::size_t>(a.rows * a.cols) * size_of(a.dtype)) == 0);
    }
    const Json index = Json::parse(read_file(back + "/model.safetensors.index.json"));
    CHECK(index["weight_map"].size() == second.tensor_names().size());
    CHECK(index["metadata"]["total_size"] > 0);
    CHECK(box.run("q4-verify " + back + " --device cpu").status == 0);
  }
}

TEST_CASE("convert: of a single file nothing beside it is copied") {
  const Sandbox box;
  const std::string name = "model.layers.0.self_attn.k_proj";
  const MadeFormat made = made_formats(name).front();
  const std::string in = make_model(box, made.config, made.tensors), out = box.file("out");
  const Ended ended = box.run("q4-convert " + in + "/model.safetensors " + out + " --quiet --to gptq_v2", true);
  REQUIRE_MESSAGE(ended.status == 0, ended.out);
  CHECK(names_in(out) == std::vector<std::string>{"config.json", "model.safetensors"});
  check_same(loaded(out, name), loaded(in, name));
}

TEST_CASE("convert: several group sizes become rules, or are refused where the format has one") {
  const Sandbox box;
  const std::string in = box.file("in");
  fs::create_directory(in);
  std::vector<FileTensor> tensors;
  for (int layer = 0; layer < 3; ++layer)
    for (const char* part : {"q_proj", "k_proj"}) {
      const bool small = layer == 1 && part[0] == 'k';
      const GptqMatrix matrix = make_gptq({.k = 128, .n = 16, .group_size = small ? 16 : 64, .seed = 7u});
      for (FileTensor& tensor : file_tensors("model.layers." + std::to_string(layer) + "." + part, matrix))
        tensors.push_back(std::move(tensor));
    }
  write_safetensors(in + "/model.safetensors", tensors);
  write_file(in + "/config.json", R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":64}})");
  REQUIRE(box.run("q4-convert " + in + " " + box.file("v2") + " --to gptq_v2").status == 0);
  const Json v2 = Json::parse(read_file(box.file("v2/config.json")))["quantization_config"];
  CHECK(v2["group_size"] == 64);
  CHECK(v2["dynamic"]["+:^model\\.layers\\.1\\.k_proj$"]["group_size"] == 16);
  REQUIRE(box.run("q4-convert " + in + " " + box.file("ct") + " --to compressed-tensors").status == 0);
  const Json ct = Json::parse(read_file(box.file("ct/config.json")))["quantization_config"]["config_groups"];
  REQUIRE(ct.size() == 2);
  CHECK(ct["group_0"]["weights"]["group_size"] == 16);
  CHECK(ct["group_0"]["targets"] == Json::array({"re:^model\\.layers\\.1\\.k_proj$"}));
  CHECK(contains(ct["group_1"]["targets"].dump(), "re:^model\\\\.layers\\\\.\\\\d+\\\\.q_proj$"));
  const Ended awq = box.run("q4-convert " + in + " " + box.file("awq") + " --to awq", true);
  CHECK(awq.status == 1);
  CHECK_MESSAGE(contains(awq.out, "AWQ's configuration has one"), awq.out);
}

TEST_CASE("convert: never over what is there, and nothing half-done") {
  const Sandbox box;
  const std::string in = box.file("in"), out = box.file("out"), to = " --to gptq_v2";
  fs::create_directory(in);
  make_checkpoint(in, {.matrix = {.k = 128, .n = 64, .group_size = 32}});
  const auto refused = [&](const std::string& arguments, int status, const std::string& part) {
    INFO(arguments);
    const Ended ended = box.run("q4-convert " + arguments, true);
    CHECK(ended.status == status);
    CHECK_MESSAGE(contains(ended.out, part), ended.out);
    for (const std::string& left : names_in(box.file(""))) CHECK(left[0] != '.');
  };
  refused(in + " " + out, 2, "--to is required");
  refused(in + " " + out + " --to gguf", 2, "gguf");
  refused(in + " " + out + to + " --shard-size 5XB", 2, "--shard-size = 5XB");
  refused(in + " " + out + to + " --shard-size 0", 2, "--shard-size");
  refused(box.file("none") + " " + out + to, 2, "none");
  refused(in + " " + box.file("no/where") + to, 2, "make it first");
  refused(in + " " + in + to + " --force", 2, "apart from it");
  refused(in + " " + in + "/below" + to, 2, "apart from it");
  refused(in + " '' " + to, 2, "OUT");
  write_file(out, "a file");
  refused(in + " " + out + to + " --force", 2, "is not a folder");
  fs::remove(out);
  fs::create_directory(out);
  write_file(out + "/precious.txt", "x");
  refused(in + " " + out + to, 2, "not empty");
  refused(in + " " + out + to + " --force", 2, "not of this one: precious.txt");
  // What makes it look like a checkpoint's folder does not make the rest worthless.
  write_file(out + "/config.json", "{}");
  write_file(out + "/model.safetensors", "");
  refused(in + " " + out + to + " --force", 2, "not of this one: precious.txt");
  fs::create_directory(out + "/src");
  fs::rename(out + "/precious.txt", out + "/src/main.c");
  refused(in + " " + out + to + " --force", 2, "not of this one: src/main.c");
  CHECK(read_file(out + "/src/main.c") == "x");
  fs::remove_all(out + "/src");
  write_file(out + "/other-model.safetensors", "");
  refused(in + " " + out + to + " --force", 2, "not of this one: other-model.safetensors");
  fs::remove(out + "/other-model.safetensors");
  CHECK(box.run("q4-convert " + in + " " + out + to + " --force").status == 0);
  CHECK(names_in(out) == std::vector<std::string>{"config.json", "model.safetensors"});
  fs::remove_all(out);
  fs::create_directory(out);  // an empty one is as good as none
  CHECK(box.run("q4-convert " + in + " " + out + to).status == 0);
  fs::remove_all(out);
  // A disk that is full while it is written: here a limit of the size of files, which write() meets in the same way.
  const Ended full = box.run("q4-convert " + in + " " + out + to, true, "trap '' XFSZ; ulimit -f 8; ");
  CHECK(full.status == 1);
  CHECK_MESSAGE(contains(full.out, "model.safetensors: cannot be written: File too large"), full.out);
  CHECK(names_in(box.file("")) == std::vector<std::string>{"in", "in/config.json", "in/model.safetensors"});
  // 8-bit matrices have no place in the result.
  const std::string config = read_file(in + "/config.json");
  write_file(in + "/config.json", R"({"quantization_config":{"quant_method":"gptq","bits":8}})");
  refused(in + " " + out + to, 2, "3 of 3 matrices are not ones that q4 reads");
  write_file(in + "/config.json", "{\"quantization_config\": 7}");
  refused(in + " " + out + to, 2, "quantization_config is 7, not an object; correct it");
  write_file(in + "/config.json", config);
  fs::create_symlink("nowhere", in + "/tokenizer.model");
  refused(in + " " + out + to, 2, "tokenizer.model");
}

}  // namespace
}  // namespace q4::test
