// Checkpoints on disk: what quantizers write, from the matrices of reference.hpp.
#include "checkpoint_maker.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace q4::test {
namespace {

using Json = nlohmann::ordered_json;

template <class T>
FileTensor file_tensor(const std::string& name, const char* dtype, std::vector<std::int64_t> shape,
                       const std::vector<T>& values) {
  return {name, dtype, std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

/// config.json as transformers stores it.
std::string config_text(const CheckpointSpec& spec) {
  Json quantization;
  if (spec.format == CheckpointSpec::Format::kAwq) {
    quantization = {{"quant_method", "awq"}, {"bits", 4},         {"group_size", spec.matrix.group_size},
                    {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", nullptr}};
  } else {
    quantization = {{"quant_method", "gptq"},
                    {"bits", 4},
                    {"group_size", spec.matrix.group_size},
                    {"desc_act", spec.matrix.act_order != ActOrder::kNone},
                    {"sym", spec.matrix.stored_zeros == StoredZeros::kSymmetric},
                    {"lm_head", false},
                    {"checkpoint_format", spec.format == CheckpointSpec::Format::kGptqV2 ? "gptq_v2" : "gptq"},
                    {"pack_dtype", "int32"}};
  }
  const Json config = {
      {"architectures", {"LlamaForCausalLM"}}, {"hidden_size", spec.matrix.k}, {"quantization_config", quantization}};
  return config.dump(2) + "\n";
}

/// Tensors over `shards` files, in order, about as many in each; returns the index when there is more than one file.
void write_shards(const std::string& folder, const std::vector<FileTensor>& tensors, int shards) {
  if (shards == 1) {
    write_safetensors(folder + "/model.safetensors", tensors);
    return;
  }
  Json map = Json::object();
  std::size_t total = 0, first = 0;
  for (int s = 0; s < shards; ++s) {
    const std::size_t last = tensors.size() * static_cast<std::size_t>(s + 1) / static_cast<std::size_t>(shards);
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards);
    for (std::size_t t = first; t < last; ++t) {
      map[tensors[t].name] = name;
      total += tensors[t].bytes.size();
    }
    write_safetensors(folder + "/" + name, {tensors.begin() + static_cast<std::ptrdiff_t>(first),
                                            tensors.begin() + static_cast<std::ptrdiff_t>(last)});
    first = last;
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  write_file(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace

void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);  // ext4 flushes a file that is truncated and written again: slow in the fuzz tests
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_safetensors(const std::string& path, const std::vector<FileTensor>& tensors, std::size_t alignment,
                       std::size_t skew) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::size_t offset = 0;
  for (const FileTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = header.dump();
  while ((8 + text.size()) % alignment != skew) text += ' ';
  std::uint64_t length = text.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  bytes += text;
  for (const FileTensor& tensor : tensors) bytes += tensor.bytes;
  write_file(path, bytes);
}

std::vector<FileTensor> file_tensors(const std::string& prefix, const GptqMatrix& matrix) {
  const std::int64_t k = matrix.spec.k, n = matrix.spec.n, groups = matrix.groups;
  std::vector<FileTensor> tensors;
  tensors.push_back(file_tensor(prefix + ".qweight", "I32", {k / 8, n}, matrix.qweight));
  tensors.push_back(file_tensor(prefix + ".qzeros", "I32", {groups, n / 8}, matrix.qzeros));
  if (!matrix.g_idx.empty()) tensors.push_back(file_tensor(prefix + ".g_idx", "I32", {k}, matrix.g_idx));
  tensors.push_back(file_tensor(prefix + ".scales", "F16", {groups, n}, matrix.scales));
  if (!matrix.bias.empty()) tensors.push_back(file_tensor(prefix + ".bias", "F16", {n}, matrix.bias));
  return tensors;
}

std::vector<FileTensor> file_tensors(const std::string& prefix, const AwqMatrix& matrix) {
  const std::int64_t k = matrix.spec.k, n = matrix.spec.n, groups = matrix.groups;
  std::vector<FileTensor> tensors;
  tensors.push_back(file_tensor(prefix + ".qweight", "I32", {k, n / 8}, matrix.qweight));
  tensors.push_back(file_tensor(prefix + ".qzeros", "I32", {groups, n / 8}, matrix.qzeros));
  tensors.push_back(file_tensor(prefix + ".scales", "F16", {groups, n}, matrix.scales));
  if (!matrix.bias.empty()) tensors.push_back(file_tensor(prefix + ".bias", "F16", {n}, matrix.bias));
  return tensors;
}

std::vector<MadeMatrix> make_checkpoint(const std::string& folder, const CheckpointSpec& spec) {
  const bool awq = spec.format == CheckpointSpec::Format::kAwq;
  if (awq && spec.matrix.act_order != ActOrder::kNone) throw std::invalid_argument("AWQ has no act-order");
  std::vector<MadeMatrix> made;
  std::vector<FileTensor> tensors;
  MatrixSpec next = spec.matrix;
  next.zeros = spec.format == CheckpointSpec::Format::kGptqV2 ? ZeroFormat::kV2 : ZeroFormat::kV1;
  const auto add = [&](const std::string& name, std::int64_t k, std::int64_t n) {
    next.k = k, next.n = n;
    made.push_back({name, make_gptq(next)});
    next.seed += 1;
    for (FileTensor& tensor :
         awq ? file_tensors(name, to_awq(made.back().gptq)) : file_tensors(name, made.back().gptq)) {
      tensors.push_back(std::move(tensor));
    }
  };
  const std::int64_t k = spec.matrix.k, n = spec.matrix.n;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    tensors.push_back(file_tensor(prefix + "input_layernorm.weight", "F16", {k},
                                  std::vector<std::uint16_t>(static_cast<std::size_t>(k), half_bits(1))));
    add(prefix + "mlp.down_proj", n, k);
    add(prefix + "mlp.up_proj", k, n);
    add(prefix + "self_attn.q_proj", k, k);
  }
  write_shards(folder, tensors, spec.shards);
  write_file(folder + "/config.json", config_text(spec));
  return made;
}

}  // namespace q4::test
