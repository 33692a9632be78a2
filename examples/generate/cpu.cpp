// A Llama on the CPU in plain C++: everything between the matrices that q4 multiplies by.
#include <bit>
#include <cmath>
#include <stdexcept>

#include "engine.hpp"

namespace generate {
namespace {

constexpr int kChunk = 128;  // tokens of a prompt that are read at once

/// out = x / rms(x) * weight
void rms_norm(const float* x, const std::vector<float>& weight, float epsilon, float* out) {
  float sum = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) sum += x[i] * x[i];
  const float scale = 1 / std::sqrt(sum / static_cast<float>(weight.size()) + epsilon);
  for (std::size_t i = 0; i < weight.size(); ++i) out[i] = x[i] * scale * weight[i];
}

/// Rotates each pair (i, i + half) of a head by the position's angle.
void rope(float* head, const float* table, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half], c = table[i], s = table[half + i];
    head[i] = a * c - b * s;
    head[i + half] = b * c + a * s;
  }
}

/// The dot product of floats and of what `load` makes floats.
template <class T, class Load>
inline float dot(const float* a, const T* b, std::int64_t count, Load&& load) {
  float sums[16] = {};  // that many independent sums let the compiler use vectors
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; ++j) sums[j] += a[i + j] * load(b[i + j]);
  for (; i < count; ++i) sums[0] += a[i] * load(b[i]);
  float sum = 0;
  for (const float s : sums) sum += s;
  return sum;
}

// The output layer is as large as all others of a small model: with GCC it is compiled for newer processors too. (Code
// that chooses among such copies runs before the thread sanitizer is ready.)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define GENERATE_CLONES __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define GENERATE_CLONES
#endif

/// logits[token] = head[token] . x, for the tokens from `begin` to `end`.
GENERATE_CLONES void output_layer(const q4::TensorView& head, const float* x, std::int64_t begin, std::int64_t end,
                                  float* logits) {
  for (std::int64_t token = begin; token < end; ++token) {
    const auto* const halves = static_cast<const std::uint16_t*>(head.data) + token * head.cols;
    const auto* const floats = static_cast<const float*>(head.data) + token * head.cols;
    logits[token] = head.dtype == q4::DType::kF32   ? dot(x, floats, head.cols, [](float v) { return v; })
                    : head.dtype == q4::DType::kF16 ? dot(x, halves, head.cols, half_to_float)
                                                    : dot(x, halves, head.cols, bf16_to_float);
  }
}

class CpuEngine : public Engine {
 public:
  CpuEngine(const q4::Runtime& runtime, const Model& model, Threads& threads, int capacity)
      : runtime_(runtime),
        model_(model),
        c_(model.config),
        threads_(threads),
        capacity_(capacity),
        head_(linear(model.quantized_head)) {
    rope_ = rope_table(c_, capacity);
    for (const Layer& layer : model.layers)
      layers_.push_back({linear(layer.qkv), linear(layer.o, kAdd), linear(layer.gate_up, finish(layer.gate_up)),
                         linear(layer.down, kAdd), std::vector<float>(std::size_t(capacity) * c_.kv_columns()),
                         std::vector<float>(std::size_t(capacity) * c_.kv_columns())});
    for (auto* buffer : {&x_, &normed_}) buffer->resize(std::size_t(kChunk) * c_.hidden);
    gate_up_.resize(std::size_t(kChunk) * 2 * c_.intermediate);
    product_.resize(std::size_t(kChunk) * c_.intermediate);
    qkv_.resize(std::size_t(kChunk) * (c_.q_columns() + 2 * c_.kv_columns()));
    mixed_.resize(std::size_t(kChunk) * c_.q_columns());
    logits_.resize(c_.vocab);
    scores_.resize(std::size_t(kChunk) * c_.heads * capacity);
  }

  void generate(std::span<const int> prompt, int count, const std::function<bool(int)>& token) override {
    if (static_cast<std::int64_t>(prompt.size()) + count > capacity_)
      throw std::runtime_error("the text is longer than the capacity");
    int next = 0;
    for (std::size_t at = 0; at < prompt.size(); at += kChunk)
      next = read(prompt.subspan(at, std::min<std::size_t>(kChunk, prompt.size() - at)), at + kChunk >= prompt.size());
    while (count-- > 0 && token(next) && count > 0) next = read({&next, 1}, true);
  }

 private:
  struct LayerState {
    Linear qkv, o, gate_up, down;
    std::vector<float> keys, values;  ///< of every position so far: [capacity, kv_columns]
  };

  static constexpr q4::Epilogue kAdd = {.residual = true};  // the sums are added to what is there
  Linear linear(const Matrices& matrices, const q4::Epilogue& epilogue = {}) const {
    return {runtime_, matrices, {.max_m = kChunk, .activation = q4::DType::kF32, .epilogue = epilogue}};
  }

  /// Appends tokens to the text. Returns the likeliest next one, if it is wanted.
  int read(std::span<const int> tokens, bool want_next) {
    const int m = static_cast<int>(tokens.size());
    for (int i = 0; i < m; ++i) read_row(model_.embedding, tokens[i], row(x_, i));
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = model_.layers[l];
      LayerState& state = layers_[l];
      norm(layer.attention_norm, m);
      state.qkv.run({}, normed_.data(), qkv_.data(), m);
      attend(state, m);
      state.o.run({}, mixed_.data(), x_.data(), m);  // x += mixed @ o
      norm(layer.mlp_norm, m);
      const bool finished = layer.gate_up[0].gate_up();
      state.gate_up.run({}, normed_.data(), finished ? product_.data() : gate_up_.data(), m);
      if (!finished) multiply_gates(m);
      state.down.run({}, product_.data(), x_.data(), m);
    }
    position_ += m;
    return want_next ? likeliest(row(x_, m - 1)) : -1;
  }

  float* row(std::vector<float>& rows, int i) const { return rows.data() + std::int64_t(i) * c_.hidden; }
  void norm(const std::vector<float>& weight, int m) {
    for (int i = 0; i < m; ++i) rms_norm(row(x_, i), weight, c_.norm_epsilon, row(normed_, i));
  }
  /// product = silu(gate) * up, where gate and up are not one matrix.
  void multiply_gates(int m) {
    threads_.ranges(std::int64_t(m) * c_.intermediate, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const float* const gate = gate_up_.data() + i + i / c_.intermediate * c_.intermediate;
        product_[i] = gate[0] / (1 + std::exp(-gate[0])) * gate[c_.intermediate];
      }
    });
  }

  /// mixed = softmax(q k^T / sqrt(head_dim)) v, a row for each of the m new tokens, which see themselves and all before.
  void attend(LayerState& state, int m) {
    const int dim = c_.head_dim, half = dim / 2, width = c_.kv_columns(), row_width = c_.q_columns() + 2 * width;
    for (int i = 0; i < m; ++i) {
      const float* const key = qkv_.data() + std::int64_t(i) * row_width + c_.q_columns();
      const std::int64_t place = std::int64_t(position_ + i) * width;
      std::copy_n(key, width, state.keys.data() + place);
      std::copy_n(key + width, width, state.values.data() + place);
      for (int h = 0; h < c_.kv_heads; ++h) rope(state.keys.data() + place + h * dim, angles(i), half);
    }
    threads_.ranges(std::int64_t(m) * c_.heads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const int i = static_cast<int>(task / c_.heads), h = static_cast<int>(task % c_.heads);
        const int kv = h / (c_.heads / c_.kv_heads) * dim, seen = position_ + i + 1;
        float* const q = qkv_.data() + std::int64_t(i) * row_width + h * dim;
        float* const out = mixed_.data() + task * dim;
        float* const score = scores_.data() + task * capacity_;
        rope(q, angles(i), half);
        float largest = -INFINITY, sum = 0;
        for (int p = 0; p < seen; ++p) {
          score[p] = dot(q, state.keys.data() + std::int64_t(p) * width + kv, dim, [](float v) { return v; }) /
                     std::sqrt(float(dim));
          largest = std::max(largest, score[p]);
        }
        std::fill_n(out, dim, 0.0f);
        for (int p = 0; p < seen; ++p) {
          const float weight = std::exp(score[p] - largest);
          const float* const value = state.values.data() + std::int64_t(p) * width + kv;
          sum += weight;
          for (int d = 0; d < dim; ++d) out[d] += weight * value[d];
        }
        for (int d = 0; d < dim; ++d) out[d] /= sum;
      }
    });
  }
  const float* angles(int i) const { return rope_.data() + std::int64_t(position_ + i) * c_.head_dim; }

  int likeliest(const float* x) {
    rms_norm(x, model_.final_norm, c_.norm_epsilon, normed_.data());
    if (!head_.empty())
      head_.run({}, normed_.data(), logits_.data(), 1);
    else
      threads_.ranges(c_.vocab, 1, [&](std::int64_t begin, std::int64_t end) {
        output_layer(model_.head, normed_.data(), begin, end, logits_.data());
      });
    return static_cast<int>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
  }

  const q4::Runtime runtime_;
  const Model& model_;
  const Config& c_;
  Threads& threads_;
  const int capacity_;
  int position_ = 0;  ///< tokens read so far
  std::vector<float> rope_;
  std::vector<LayerState> layers_;
  const Linear head_;
  std::vector<float> x_, normed_, qkv_, mixed_, gate_up_, product_, logits_, scores_;
};

}  // namespace

std::unique_ptr<Engine> cpu_engine(const q4::Runtime& runtime, const Model& model, Threads& threads, int capacity) {
  return std::make_unique<CpuEngine>(runtime, model, threads, capacity);
}

}  // namespace generate
