// One odd matrix in a checkpoint is listed with its reason, fails when it is requested, and leaves the others alone.
#include <doctest/doctest.h>

#include <q4/q4.hpp>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

FileTensor zeros(const std::string& name, const char* dtype, std::vector<std::int64_t> shape, std::size_t element) {
  std::size_t count = element;
  for (const std::int64_t extent : shape) count *= static_cast<std::size_t>(extent);
  return {name, dtype, std::move(shape), std::string(count, '\0')};
}

/// The odd matrices of one checkpoint: what their tensors are, and what their reason must hold.
struct Odd {
  const char* name;
  std::vector<FileTensor> tensors;
  const char* reason;
  bool damaged;
};

std::vector<Odd> odd_matrices() {
  return {
      {"gate",
       {zeros("gate.qweight", "I32", {32, 1}, 4), zeros("gate.qzeros", "I32", {8, 0}, 4),
        zeros("gate.scales", "F16", {8, 1}, 2)},
       "n = 1 columns; q4 needs a multiple of 8",
       false},
      {"sixty",
       {zeros("sixty.qweight", "I32", {32, 60}, 4), zeros("sixty.qzeros", "I32", {8, 7}, 4),
        zeros("sixty.scales", "F16", {8, 60}, 2)},
       "n = 60 columns",
       false},
      {"lm_head",
       {zeros("lm_head.qweight", "I32", {64, 128}, 4), zeros("lm_head.qzeros", "I32", {8, 32}, 4),
        zeros("lm_head.scales", "F16", {8, 128}, 2)},
       "8-bit weights",
       false},
      {"two",
       {zeros("two.qweight", "I32", {16, 128}, 4), zeros("two.qzeros", "I32", {8, 8}, 4),
        zeros("two.scales", "F16", {8, 128}, 2)},
       "2-bit weights",
       false},
      {"experts",
       {zeros("experts.qweight", "I32", {2, 32, 64}, 4), zeros("experts.qzeros", "I32", {2, 8, 8}, 4),
        zeros("experts.scales", "F16", {2, 8, 64}, 2)},
       "two dimensions",
       false},
      {"alone", {zeros("alone.qweight", "I32", {32, 64}, 4)}, "there is no \"alone.scales\" beside it", true},
      {"future",
       {zeros("future.qweight", "X9", {32, 64}, 4), zeros("future.qzeros", "I32", {8, 8}, 4),
        zeros("future.scales", "F16", {8, 64}, 2)},
       "dtype X9",
       false},
  };
}

TEST_CASE("checkpoint: odd matrices are listed with their reasons, and the good one loads") {
  const TempFolder folder;
  const GptqMatrix good = make_gptq({.k = 256, .n = 64, .group_size = 32});
  std::vector<FileTensor> tensors = file_tensors("good", good);
  const auto odd = odd_matrices();
  for (const Odd& matrix : odd) tensors.insert(tensors.end(), matrix.tensors.begin(), matrix.tensors.end());
  write_safetensors(folder / "model.safetensors", tensors);
  // A rule for modules that are not there, and one of GPTQModel's for the head.
  write_file(folder / "quantize_config.json",
             R"({"bits":4,"group_size":32,"quant_method":"gptq","dynamic":{"+:nothing.*":{"bits":8},)"
             R"("lm_head":{"bits":8},"+:two":{"bits":2}}})");
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Runtime runtime;
  REQUIRE(checkpoint.matrices().size() == odd.size() + 1);
  for (const Odd& matrix : odd) {
    const MatrixEntry& entry = checkpoint.find(matrix.name);
    CHECK_MESSAGE(entry.unsupported.find(matrix.reason) != std::string::npos, matrix.name, ": ", entry.unsupported);
    CHECK(entry.damaged == matrix.damaged);
    const std::string error = error_of([&] { checkpoint.load(runtime, Device{}, matrix.name); });
    CHECK_MESSAGE(error.find(std::string(matrix.damaged ? "corrupt" : "unsupported") + ": Checkpoint::load: ") == 0,
                  error);
    CHECK(error.find(matrix.reason) != std::string::npos);
  }
  CHECK(checkpoint.find("lm_head").bits == 8);
  CHECK(checkpoint.find("good").unsupported.empty());
  CHECK(checkpoint.find("good").bits == 4);
  CHECK(unpack(checkpoint.gptq("good")).codes == unpack(good.tensors()).codes);
  CHECK(checkpoint.load(runtime, Device{}, "good").k() == 256);
  CHECK_NOTHROW(runtime.warmup(checkpoint, {.device = Device{}}));
}

TEST_CASE("checkpoint: symmetric matrices without stored zeros have the zero 8") {
  const MatrixSpec spec{.k = 64, .n = 32, .group_size = 16, .stored_zeros = StoredZeros::kSymmetric};
  const GptqMatrix gptq = make_gptq(spec);
  const AwqMatrix awq = to_awq(gptq);
  const Runtime runtime;
  for (const bool packed_awq : {false, true}) {
    for (const bool empty : {false, true}) {
      const TempFolder folder;
      std::vector<FileTensor> tensors;
      for (FileTensor& tensor : packed_awq ? file_tensors("m", awq) : file_tensors("m", gptq)) {
        if (tensor.name == "m.qzeros" && empty) tensors.push_back({tensor.name, "I32", {0}, ""});
        if (tensor.name != "m.qzeros") tensors.push_back(std::move(tensor));
      }
      write_safetensors(folder / "model.safetensors", tensors);
      const std::string error = error_of([&] { Checkpoint::open(folder.path()).load(runtime, Device{}, "m"); });
      CHECK_MESSAGE(error.find("no configuration says sym") != std::string::npos, error);  // it could be anything
      write_file(folder / "quant_config.json",
                 packed_awq ? R"({"version":"gemm","zero_point":false})" : R"({"sym":true})");
      const Checkpoint checkpoint = Checkpoint::open(folder.path());
      const PlainMatrix want = unpack(gptq.tensors());
      const PlainMatrix got = packed_awq ? unpack(checkpoint.awq("m")) : unpack(checkpoint.gptq("m"));
      CHECK(got.codes == want.codes);
      CHECK(got.zeros == want.zeros);
      CHECK(checkpoint.load(runtime, Device{}, "m").zeros() == ZeroFormat::kV2);
      if (!packed_awq)  // there is nothing that a claim on stored zeros could be about
        CHECK(checkpoint.load(runtime, Device{}, "m", ZeroFormat::kV1).zeros() == ZeroFormat::kV2);
    }
  }
}

}  // namespace
}  // namespace q4::test
