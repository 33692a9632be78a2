// What runs a model: on the CPU, or on an NVIDIA GPU.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "model.hpp"
#include "threads.hpp"

namespace generate {

/// x times matrices whose columns stand side by side, with what their plans do to the sums.
class Linear {
 public:
  Linear(const q4::Runtime& runtime, const Matrices& matrices, const q4::PlanOptions& options)
      : element_(static_cast<std::int64_t>(q4::size_of(options.activation))), adds_(options.epilogue.residual) {
    for (const q4::QuantizedMatrix& matrix : matrices) {
      plans_.emplace_back(runtime, matrix, options);
      columns_.push_back(matrix.gate_up() ? matrix.n() / 2 : matrix.n());
      width_ += columns_.back();
    }
  }
  bool empty() const { return plans_.empty(); }
  /// out [m, columns] = x [m, inputs] @ W, or with Epilogue::residual out += x @ W. On a GPU a launch. `norm`: the weights,
  /// with PlanOptions::norm.
  void run(q4::Stream stream, const void* x, void* out, std::int64_t m, const void* norm = nullptr) const {
    auto* place = static_cast<char*>(out);
    for (std::size_t i = 0; i < plans_.size(); ++i) {
      q4::RunInputs inputs;
      inputs.norm_weight = norm;
      if (adds_) inputs.residual = {place, width_};
      plans_[i].run(stream, {x}, {place, width_}, m, inputs);
      place += columns_[i] * element_;
    }
  }

 private:
  std::vector<q4::MatmulPlan> plans_;
  std::vector<std::int64_t> columns_;
  std::int64_t width_ = 0, element_;
  bool adds_;
};

/// What a layer's plan of gate and up does: silu(gate) * up, where they could be loaded for it.
inline q4::Epilogue finish(const Matrices& gate_up) {
  return {.activation = gate_up[0].gate_up() ? q4::Activation::kSiluMul : q4::Activation::kNone};
}

class Engine {
 public:
  virtual ~Engine() = default;
  /// Reads the prompt and then produces up to `count` tokens, always the likeliest one. Each is passed to `token`, which
  /// ends the text by returning false. Throws std::runtime_error for a prompt and count beyond the capacity.
  virtual void generate(std::span<const int> prompt, int count, const std::function<bool(int)>& token) = 0;
};

/// `capacity`: the longest text in tokens, prompt included. The model must outlive the engine.
std::unique_ptr<Engine> cpu_engine(const q4::Runtime& runtime, const Model& model, Threads& threads, int capacity);
std::unique_ptr<Engine> gpu_engine(const q4::Runtime& runtime, const Model& model, int capacity);

}  // namespace generate
