// What runs a model: on the CPU, or on an NVIDIA GPU.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "model.hpp"
#include "threads.hpp"

namespace generate {

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
