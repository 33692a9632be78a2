// Loads a Llama checkpoint: the names are those of Hugging Face transformers.
#include "model.hpp"

#include <bit>
#include <stdexcept>

namespace generate {
namespace {

void must_be(const std::string& name, const q4::TensorView& tensor, std::int64_t rows, std::int64_t cols) {
  const bool number =
      tensor.dtype == q4::DType::kF16 || tensor.dtype == q4::DType::kBF16 || tensor.dtype == q4::DType::kF32;
  if (tensor.rows != rows || tensor.cols != cols || !number)
    throw std::runtime_error(name + " is " + q4::to_string(tensor.dtype) + " [" + std::to_string(tensor.rows) + ", " +
                             std::to_string(tensor.cols) + "], and config.json wants floats [" + std::to_string(rows) +
                             ", " + std::to_string(cols) + "]");
}

void must_be(const std::string& name, const Matrices& matrices, std::int64_t in, std::int64_t out) {
  std::int64_t columns = 0;
  for (const q4::QuantizedMatrix& matrix : matrices) columns += matrix.n();
  if (matrices[0].k() != in || columns != out)
    throw std::runtime_error(name + " has " + std::to_string(matrices[0].k()) + " inputs and " +
                             std::to_string(columns) + " outputs, and config.json wants " + std::to_string(in) +
                             " and " + std::to_string(out));
}

}  // namespace

Model load_model(const q4::Runtime& runtime, q4::Device device, const std::string& folder) {
  Model model;
  const Config& c = model.config = read_config(folder);
  model.files = q4::Checkpoint::open(folder);

  // q, k and v, and gate and up, are one matrix where the checkpoint allows it: fewer, larger products are faster.
  const auto linear = [&](const std::vector<std::string>& names, std::int64_t in, std::int64_t out) {
    Matrices result = model.files.load_together(runtime, device, names);
    must_be(names[0], result, in, out);
    return result;
  };
  // Gate and up for a plan that finishes silu(gate) * up itself.
  const auto gate_and_up = [&](const std::string& gate, const std::string& up) -> Matrices {
    if (model.files.find(gate).format == q4::QuantFormat::kGptq &&
        model.files.find(up).format == q4::QuantFormat::kGptq)
      try {
        const std::vector<q4::GptqTensors> tensors = {model.files.gptq(gate), model.files.gptq(up)};
        const Matrices result = {q4::QuantizedMatrix::fuse_gptq(runtime, device, tensors, {.gate_up = true})};
        must_be(gate, result, c.hidden, 2 * c.intermediate);
        return result;
      } catch (const q4::Error& error) {
        if (error.code() != q4::ErrorCode::kUnsupported) throw;  // they cannot be one matrix
      }
    return linear({gate, up}, c.hidden, 2 * c.intermediate);
  };
  const auto norm = [&](const std::string& name) {
    const q4::TensorView tensor = model.files.tensor(name + ".weight");
    must_be(name, tensor, 1, c.hidden);
    std::vector<float> result(c.hidden);
    read_row(tensor, 0, result.data());
    return result;
  };

  for (int i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    model.layers.push_back({.attention_norm = norm(layer + "input_layernorm"),
                            .mlp_norm = norm(layer + "post_attention_layernorm"),
                            .qkv = linear({attention + "q_proj", attention + "k_proj", attention + "v_proj"}, c.hidden,
                                          c.q_columns() + 2 * c.kv_columns()),
                            .o = linear({attention + "o_proj"}, c.q_columns(), c.hidden),
                            .gate_up = gate_and_up(mlp + "gate_proj", mlp + "up_proj"),
                            .down = linear({mlp + "down_proj"}, c.intermediate, c.hidden)});
  }
  model.final_norm = norm("model.norm");
  model.embedding = model.files.tensor("model.embed_tokens.weight");
  must_be("model.embed_tokens.weight", model.embedding, c.vocab, c.hidden);
  bool quantized = false;
  for (const q4::MatrixEntry& entry : model.files.matrices()) quantized |= entry.name == "lm_head";
  if (quantized)
    model.quantized_head = linear({"lm_head"}, c.hidden, c.vocab);
  else
    model.head = c.tied_head ? model.embedding : model.files.tensor("lm_head.weight");
  if (!quantized) must_be("lm_head.weight", model.head, c.vocab, c.hidden);
  return model;
}

std::size_t Model::bytes_per_token() const {
  std::size_t bytes = head.rows * head.cols * q4::size_of(head.dtype);
  const auto add = [&bytes](const Matrices& matrices) {
    for (const q4::QuantizedMatrix& matrix : matrices) bytes += matrix.bytes();
  };
  add(quantized_head);
  for (const Layer& layer : layers)
    for (const Matrices* matrices : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) add(*matrices);
  return bytes;
}

std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), sign = bits >> 16 & 0x8000;
  const float size = std::bit_cast<float>(bits & 0x7fffffff);
  if (!(size < 65520.0f)) return static_cast<std::uint16_t>(sign | (size != size ? 0x7e00 : 0x7c00));
  // Adding a power of two makes the addition itself round to the last place of the result, to even.
  const std::uint32_t exponent = std::max(bits >> 23 & 255, 113u);
  const float shifter = std::bit_cast<float>((exponent + 13) << 23);
  const std::uint32_t mantissa = std::bit_cast<std::uint32_t>(size + shifter) - std::bit_cast<std::uint32_t>(shifter);
  return static_cast<std::uint16_t>(sign | (((exponent - 113) << 10) + mantissa));
}

void read_row(const q4::TensorView& tensor, std::int64_t row, float* out) {
  const auto* words = static_cast<const std::uint16_t*>(tensor.data) + row * tensor.cols;
  if (tensor.dtype == q4::DType::kF32)
    std::copy_n(static_cast<const float*>(tensor.data) + row * tensor.cols, tensor.cols, out);
  if (tensor.dtype == q4::DType::kF16)
    for (std::int64_t i = 0; i < tensor.cols; ++i) out[i] = half_to_float(words[i]);
  if (tensor.dtype == q4::DType::kBF16)
    for (std::int64_t i = 0; i < tensor.cols; ++i) out[i] = bf16_to_float(words[i]);
}

}  // namespace generate
