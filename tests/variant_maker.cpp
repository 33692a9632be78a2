// Writes every format of format_maker.cpp in each way in which checkpoints are laid out on a disk.
#include "variant_maker.hpp"

#include <filesystem>
#include <fstream>

#include <fmt/format.h>
#include "format_maker.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;

void write_config(const std::string& folder, const std::string& file, const std::string& text) {
  write_file(folder + "/" + file, text);
}

/// Every second tensor in a second file, and an index.
void write_shards(const std::string& folder, const std::vector<FileTensor>& tensors) {
  std::vector<FileTensor> files[2];
  std::string map;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    files[i % 2].push_back(tensors[i]);
    map += fmt::format(R"({}"{}":"model-0000{}-of-00002.safetensors")", i ? "," : "", tensors[i].name, i % 2 + 1);
  }
  for (int i : {0, 1}) write_safetensors(fmt::format("{}/model-0000{}-of-00002.safetensors", folder, i + 1), files[i]);
  write_file(folder + "/model.safetensors.index.json", R"({"metadata":{},"weight_map":{)" + map + "}}");
}

/// As a hub's cache has it: a snapshot of symbolic links to files that are named by their content.
void write_hub(const std::string& folder, const std::string& config, const std::vector<FileTensor>& tensors) {
  const std::string snapshot = folder + "/snapshots/0123abcd";
  fs::create_directories(snapshot), fs::create_directories(folder + "/blobs"), fs::create_directories(folder + "/refs");
  write_file(folder + "/refs/main", "0123abcd");
  write_safetensors(folder + "/blobs/aa", tensors);
  write_file(folder + "/blobs/bb", R"({"quantization_config":)" + config + "}");
  fs::create_symlink("../../blobs/aa", snapshot + "/model.safetensors");
  fs::create_symlink("../../blobs/bb", snapshot + "/config.json");
}

void write_weights(const std::string& path, const PlainMatrix& matrix) {
  std::ofstream file(path, std::ios::binary);
  for (std::int64_t r = 0; r < matrix.k; ++r)
    for (std::int64_t c = 0; c < matrix.n; ++c) {
      const auto weight = static_cast<float>(matrix.weight(r, c));
      file.write(reinterpret_cast<const char*>(&weight), sizeof weight);
    }
}

}  // namespace

int make_variants(const std::string& folder) {
  const std::string plain = "model.layers.0.self_attn.k_proj", prefixed = "language_model." + plain;
  const auto formats = made_formats(plain), nested = made_formats(prefixed);
  std::string list;
  int count = 0;
  for (std::size_t f = 0; f < formats.size(); ++f) {
    const std::string whole = R"({"quantization_config":)" + formats[f].config + "}";
    const auto add = [&](const char* layout, const std::string& matrix, const auto& write) {
      const std::string name = fmt::format("{:02}-{}", f, layout), path = folder + "/" + name;
      const std::string checkpoint = layout == std::string_view("hub") ? name + "/models--q4--tiny" : name;
      fs::create_directories(folder + "/" + checkpoint);
      write(folder + "/" + checkpoint);
      write_weights(path + "/W.f32", formats[f].want);
      list += fmt::format(
          R"({}{{"checkpoint":"{}","weights":"{}/W.f32","format":"{}","matrix":"{}","k":{},"n":{},"act_order":{}}})",
          count++ ? ",\n" : "", checkpoint, name, formats[f].name, matrix, formats[f].want.k, formats[f].want.n,
          formats[f].act_order);
    };
    add("file", plain, [&](const std::string& to) {
      write_safetensors(to + "/model.safetensors", formats[f].tensors);
      write_config(to, "config.json", whole);
    });
    add("shards", plain, [&](const std::string& to) {
      write_shards(to, formats[f].tensors);
      write_config(to, "config.json", "{}");
      write_config(to, "quantize_config.json", formats[f].config);
    });
    add("hub", plain, [&](const std::string& to) { write_hub(to, formats[f].config, formats[f].tensors); });
    add("nested", prefixed, [&](const std::string& to) {
      write_safetensors(to + "/model.safetensors", nested[f].tensors);
      write_config(to, "config.json", R"({"text_config":)" + whole + "}");
    });
  }
  write_file(folder + "/variants.json", "[" + list + "]\n");
  return count;
}

}  // namespace q4::test
