// Multiplies two rows of activations by a 4-bit GPTQ matrix on the CPU.
#include <cstdio>
#include <q4/q4.hpp>
#include <vector>

int main() try {
  const std::int64_t k = 256, n = 64, groups = 2, m = 2;
  std::vector<std::uint32_t> qweight(k / 8 * n, 0x76543210);  // in each column the codes 0, 1, ... 7, 0, 1, ...
  std::vector<std::uint32_t> qzeros(groups * n / 8, 0);       // every stored zero is 0, which means 1
  std::vector<std::uint16_t> scales(groups * n, 0x3800);      // fp16 0.5
  q4::GptqTensors tensors;
  tensors.qweight = {qweight.data(), q4::DType::kI32, k / 8, n};
  tensors.qzeros = {qzeros.data(), q4::DType::kI32, groups, n / 8};
  tensors.scales = {scales.data(), q4::DType::kF16, groups, n};

  const q4::Runtime runtime;
  const q4::Device cpu = q4::Device::parse("cpu");  // "cuda:0": x and out are then device memory
  const auto matrix = q4::QuantizedMatrix::from_gptq(runtime, cpu, tensors);
  // From files: q4::Checkpoint::open("model/").load(runtime, cpu, "model.layers.0.mlp.down_proj")

  const q4::MatmulPlan plan(runtime, matrix, {.max_m = m, .activation = q4::DType::kF32});
  std::vector<float> x(m * k, 1.0f), out(m * n);
  plan.run(q4::Stream(), {x.data()}, {out.data()}, m);  // on a GPU a launch and nothing else
  std::printf("%s: out[0][0] = %g\n", plan.tactic(m).c_str(), out[0]);
  return out[0] == 32 * 0.5f * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7 - 8 * 1) ? 0 : 1;
} catch (const q4::Error& error) {
  std::fprintf(stderr, "%s: %s\n", q4::to_string(error.code()), error.what());
  return 1;
}
