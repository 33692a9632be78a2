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

float dot(const float* a, const float* b, std::int64_t count) {
  float sums[16] = {};  // that many independent sums let the compiler use vectors
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; ++j) sums[j] += a[i + j] * b[i + j];
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  float sum = 0;
  for (const float s : sums) sum += s;
  return sum;
}

class CpuEngine : public Engine {
 public:
  CpuEngine(const q4::Runtime& runtime, const Model& model, Threads& threads, int capacity)
      : runtime_(runtime), model_(model), c_(model.config), threads_(threads), capacity_(capacity) {
    rope_ = rope_table(c_, capacity);
    for (const Layer& layer : model.layers)
      layers_.push_back({plan(layer.q), plan(layer.k), plan(layer.v), plan(layer.o), plan(layer.gate), plan(layer.up),
                         plan(layer.down), std::vector<float>(std::size_t(capacity) * c_.kv_columns()),
                         std::vector<float>(std::size_t(capacity) * c_.kv_columns())});
    if (model.quantized_head) head_ = plan(model.quantized_head);
    for (auto* buffer : {&x_, &normed_, &added_}) buffer->resize(std::size_t(kChunk) * c_.hidden);
    for (auto* buffer : {&gate_, &up_}) buffer->resize(std::size_t(kChunk) * c_.intermediate);
    for (auto* buffer : {&q_, &mixed_}) buffer->resize(std::size_t(kChunk) * c_.q_columns());
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
    q4::MatmulPlan q, k, v, o, gate, up, down;
    std::vector<float> keys, values;  ///< of every position so far: [capacity, kv_columns]
  };

  q4::MatmulPlan plan(const q4::QuantizedMatrix& matrix) const {
    return {runtime_, matrix, {.max_m = kChunk, .activation = q4::DType::kF32}};
  }
  static void multiply(const q4::MatmulPlan& plan, const std::vector<float>& x, float* out, int m) {
    plan.run({}, {x.data()}, {out}, m);
  }

  /// Appends tokens to the text. Returns the likeliest next one, if it is wanted.
  int read(std::span<const int> tokens, bool want_next) {
    const int m = static_cast<int>(tokens.size());
    for (int i = 0; i < m; ++i) read_row(model_.embedding, tokens[i], row(x_, i));
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = model_.layers[l];
      LayerState& state = layers_[l];
      float* const keys = state.keys.data() + std::int64_t(position_) * c_.kv_columns();
      float* const values = state.values.data() + std::int64_t(position_) * c_.kv_columns();
      norm(layer.attention_norm, m);
      multiply(state.q, normed_, q_.data(), m);
      multiply(state.k, normed_, keys, m);
      multiply(state.v, normed_, values, m);
      attend(state, keys, m);
      multiply(state.o, mixed_, added_.data(), m);
      add(m);
      norm(layer.mlp_norm, m);
      multiply(state.gate, normed_, gate_.data(), m);
      multiply(state.up, normed_, up_.data(), m);
      threads_.ranges(std::int64_t(m) * c_.intermediate, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) gate_[i] *= up_[i] / (1 + std::exp(-gate_[i]));
      });
      multiply(state.down, gate_, added_.data(), m);
      add(m);
    }
    position_ += m;
    return want_next ? likeliest(row(x_, m - 1)) : -1;
  }

  float* row(std::vector<float>& rows, int i) const { return rows.data() + std::int64_t(i) * c_.hidden; }
  void norm(const std::vector<float>& weight, int m) {
    for (int i = 0; i < m; ++i) rms_norm(row(x_, i), weight, c_.norm_epsilon, row(normed_, i));
  }
  void add(int m) {
    for (std::int64_t i = 0; i < std::int64_t(m) * c_.hidden; ++i) x_[i] += added_[i];
  }

  /// mixed = softmax(q k^T / sqrt(head_dim)) v, a row for each of the m new tokens, which see themselves and all before.
  void attend(const LayerState& state, float* new_keys, int m) {
    const int dim = c_.head_dim, half = dim / 2, width = c_.kv_columns();
    for (int i = 0; i < m; ++i)
      for (int h = 0; h < c_.kv_heads; ++h) rope(new_keys + std::int64_t(i) * width + h * dim, angles(i), half);
    threads_.ranges(std::int64_t(m) * c_.heads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        const int i = static_cast<int>(task / c_.heads), h = static_cast<int>(task % c_.heads);
        const int kv = h / (c_.heads / c_.kv_heads) * dim, seen = position_ + i + 1;
        float* const q = q_.data() + task * dim;
        float* const out = mixed_.data() + task * dim;
        float* const score = scores_.data() + task * capacity_;
        rope(q, angles(i), half);
        float largest = -INFINITY, sum = 0;
        for (int p = 0; p < seen; ++p) {
          score[p] = dot(q, state.keys.data() + std::int64_t(p) * width + kv, dim) / std::sqrt(float(dim));
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
    if (head_)
      multiply(head_, normed_, logits_.data(), 1);
    else
      threads_.ranges(c_.vocab, 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> weights(c_.hidden);
        for (std::int64_t token = begin; token < end; ++token) {
          read_row(model_.head, token, weights.data());
          logits_[token] = dot(normed_.data(), weights.data(), c_.hidden);
        }
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
  q4::MatmulPlan head_;
  std::vector<float> x_, normed_, added_, q_, mixed_, gate_, up_, logits_, scores_;
};

}  // namespace

std::unique_ptr<Engine> cpu_engine(const q4::Runtime& runtime, const Model& model, Threads& threads, int capacity) {
  return std::make_unique<CpuEngine>(runtime, model, threads, capacity);
}

}  // namespace generate
