// The weights of a model: every linear is a q4::QuantizedMatrix, the rest is views of the checkpoint's files.
#pragma once

#include <bit>
#include <cstdint>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "config.hpp"

namespace generate {

/// Matrices of one input, whose columns stand side by side: one, where they could be loaded as one.
using Matrices = std::vector<q4::QuantizedMatrix>;

struct Layer {
  std::vector<float> attention_norm, mlp_norm;  ///< [hidden]
  Matrices qkv, o;
  Matrices gate_up;  ///< one with QuantizedMatrix::gate_up(), whose plans multiply silu(gate) by up, or without
  Matrices down;
};

struct Model {
  Config config;
  q4::Checkpoint files;  ///< keeps the views below valid
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  q4::TensorView embedding;  ///< [vocab, hidden]
  q4::TensorView head;       ///< the same, [vocab, hidden]; without data where the output layer is quantized
  Matrices quantized_head;   ///< empty where it is not

  /// Bytes that a step of one token reads.
  std::size_t bytes_per_token() const;
};

/// Loads a checkpoint folder to a device.
Model load_model(const q4::Runtime& runtime, q4::Device device, const std::string& folder);

/// fp16 and bf16 as floats, without branches: loops of them become vector instructions.
inline float half_to_float(std::uint16_t bits) {
  // The exponent is moved into place by a multiplication, which normalizes subnormal numbers too.
  const float size = std::bit_cast<float>((bits & 0x7fffu) << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(size) | (bits & 0x8000u) << 16);
}
inline float bf16_to_float(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

/// One row of fp16, bf16 or fp32 numbers as floats.
void read_row(const q4::TensorView& tensor, std::int64_t row, float* out);
std::uint16_t float_to_half(float value);

}  // namespace generate
