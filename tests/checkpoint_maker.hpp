// Checkpoints on disk for the tests and for trying the tools: safetensors files, index and config, the same bytes every
// run.
#pragma once

#include <cstdint>
#include <q4/error.hpp>
#include <string>
#include <vector>

#include "reference.hpp"
#include "temp_folder.hpp"

namespace q4::test {

/// One tensor of a file to write; `dtype` as safetensors names it.
struct FileTensor {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

/// A valid safetensors file, the data in the given order. The data begins at a multiple of `alignment` plus `skew`; old
/// writers aligned nothing.
void write_safetensors(const std::string& path, const std::vector<FileTensor>& tensors, std::size_t alignment = 8,
                       std::size_t skew = 0);
/// A file of these bytes.
void write_file(const std::string& path, const std::string& bytes);
std::string read_file(const std::string& path);

std::vector<FileTensor> file_tensors(const std::string& prefix, const GptqMatrix& matrix);
std::vector<FileTensor> file_tensors(const std::string& prefix, const AwqMatrix& matrix);

struct CheckpointSpec {
  enum class Format { kGptq, kGptqV2, kAwq } format = Format::kGptq;
  /// Of the up_proj. `zeros` follows the format; `seed` is the first matrix's, each further one adds 1.
  MatrixSpec matrix;
  int layers = 1;
  int shards = 1;  ///< more than 1: model-0000i-of-0000s.safetensors and an index
};

/// One matrix of a made checkpoint, as it was generated.
struct MadeMatrix {
  std::string name;
  GptqMatrix gptq;  ///< for AWQ: what was converted
};

/// Writes model.safetensors (or shards and their index) and config.json into `folder`, which exists. Each layer has
/// self_attn.q_proj [k, k], mlp.up_proj [k, n], mlp.down_proj [n, k] and an fp16 norm. Returns them sorted as the
/// library sorts them.
std::vector<MadeMatrix> make_checkpoint(const std::string& folder, const CheckpointSpec& spec);

/// "code: text" of the q4::Error that `call` throws; "no error" if it returns. Any other exception passes through.
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) { return std::string(to_string(error.code())) + ": " + error.what(); }
  return "no error";
}

}  // namespace q4::test
