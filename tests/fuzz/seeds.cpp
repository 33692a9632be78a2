// Writes what the fuzz targets begin with: FOLDER/TARGET/..., small sound files of each kind.
#include <cstdio>
#include <filesystem>
#include <q4/tuning.hpp>
#include <stdexcept>

#include "checkpoint_maker.hpp"
#include "format_maker.hpp"
#include "reference.hpp"
#include "runtime/cache/pack.hpp"
#include "tools/common/npy.hpp"

namespace q4::test {
namespace {

void write_seeds(const std::string& root) {
  const auto file = [&root](const std::string& target, const std::string& name) {
    std::filesystem::create_directories(root + "/" + target);
    return root + "/" + target + "/" + name;
  };
  int number = 0;
  for (const MadeFormat& format : made_formats("m")) {
    const std::string name = std::to_string(number++);
    const std::string path = file("safetensors", name);
    write_safetensors(path, format.tensors);
    const std::string config = R"({"quantization_config":)" + format.config + "}";
    write_file(file("config", name), config);
    write_file(file("config", name + "b"), format.config);
    std::string length = {static_cast<char>(config.size() & 255), static_cast<char>(config.size() >> 8)};
    write_file(file("checkpoint", name), length + config + read_file(path));
  }
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {  // random calls: capi_calls.hpp
    Random random(seed);
    std::string bytes(400, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random.below(256));
    write_file(file("capi", std::to_string(seed)), bytes);
  }
  write_file(
      file("config", "rules"),
      R"({"bits":4,"group_size":32,"dynamic":{"-:lm_head":{},"+:.*\\.down_proj":{"bits":8},".*w[123]$":{"bits":4}},)"
      R"("modules_to_not_convert":["lm_head","re:.*gate$"]})");
  write_file(file("index", "two"),
             R"({"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors",)"
             R"("b":"model-00002-of-00002.safetensors"}})");
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32})
    tools::write_npy(file("npy", to_string(dtype)), {dtype, {2, 3}, std::vector<std::byte>(6 * size_of(dtype))});
  write_file(file("csv", "shapes"), "model,layer,k,n,group,act_order\nllama,qkv,4096,6144,128,0\n,,64,64,-1,1\n");
  write_file(file("csv", "peers"), "peer,k,n,group,act_order,m,us,tflops\nmarlin,4096,4096,128,0,1,6.5,2\n");
  write_file(file("csv", "untuned"), R"({"k":4096,"n":6144,"group":128,"act_order":false,"activation":"fp16"})"
                                     "\n");
  TuningDb db;
  TuningRecord record;
  record.key.fingerprint = "NVIDIA H200 sm_90a", record.key.arch = "sm_90a", record.key.units = 132;
  record.key.k = 4096, record.key.n = 4096, record.key.group = 128;
  record.buckets.push_back({.m = 1, .tactic = "gemv", .us = 5, .us_low = 4.9, .us_high = 5.1, .default_us = 6});
  db.add(record);
  write_file(file("tuning", "one"), db.str());
  std::vector<cache::Entry> entries;
  for (int i = 0; i < 2; ++i)
    entries.push_back(cache::make_entry({"kernel", "source " + std::to_string(i), "headers", "sm_90a", {"-std=c++20"}},
                                        "nvrtc 1", 1, std::vector<char>(40, 'a')));
  const std::string encoded = cache::encode(entries[0]);
  write_file(file("entry", "one"), encoded.substr(0, encoded.size() - 32));
  if (const std::string problem = cache::write_pack(file("pack", "two"), entries, db.str()); !problem.empty())
    throw std::runtime_error(problem);
}

}  // namespace
}  // namespace q4::test

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  q4::test::write_seeds(argv[1]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
