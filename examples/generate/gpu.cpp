// A Llama on an NVIDIA GPU: q4's plans and the example's own kernels on one stream, a whole step as one CUDA graph.
#include <algorithm>
#include <stdexcept>

#include "cuda.hpp"
#include "engine.hpp"
#include "kernels.hpp"

namespace generate {
namespace {

constexpr int kChunk = 64;  // tokens of a prompt that are read at once

struct State {  // as the kernels have it
  int position, blocks;
  unsigned long long best;
};

class GpuEngine : public Engine {
 public:
  GpuEngine(const q4::Runtime& runtime, const Model& model, int capacity)
      : runtime_(runtime),
        model_(model),
        c_(model.config),
        capacity_(capacity),
        cuda_(device(model).ordinal),
        quantized_head_(linear(model.quantized_head, {.norm = true})) {
    const KernelSource source = kernel_source(c_);
    cuda_.load(compile(source.text, cuda_.capability(), source.options));
    embed_ = cuda_.function("embed"), store_ = cuda_.function("store"), attend_ = cuda_.function("attend");
    silu_mul_ = cuda_.function("silu_mul"), likeliest_ = cuda_.function("likeliest");

    embedding_ = upload_halves(model.embedding);
    head_ = !model.quantized_head.empty()             ? nullptr
            : model.head.data == model.embedding.data ? embedding_
                                                      : upload_halves(model.head);
    final_norm_ = upload_halves(model.final_norm);
    rope_ = upload_floats(rope_table(c_, capacity));
    for (const Layer& layer : model.layers)
      layers_.push_back({
          linear(layer.qkv, {.max_m = kChunk, .norm = true}),
          linear(layer.o, {.max_m = kChunk, .epilogue = {.residual = true}}),
          // Of a decoding step: it asks for its weights while attend runs on the multiprocessors that it leaves.
          linear(layer.o, {.spare_units = c_.kv_heads, .epilogue = {.residual = true}}),
          linear(layer.gate_up, {.max_m = kChunk, .epilogue = finish(layer.gate_up), .norm = true}),
          linear(layer.down, {.max_m = kChunk, .epilogue = {.residual = true}}),
          layer.gate_up[0].gate_up(),
          upload_halves(layer.attention_norm),
          upload_halves(layer.mlp_norm),
          halves(2LL * capacity * c_.kv_columns()),
      });
    state_ = cuda_.allocate(sizeof(State));
    tokens_ = cuda_.allocate(sizeof(int) * (capacity + 1));
    std::tie(told_, told_device_) = cuda_.allocate_shared(sizeof(int) * (capacity + 1));
    x_ = halves(kChunk * c_.hidden), mixed_ = halves(kChunk * c_.q_columns());
    qkv_ = halves(kChunk * (c_.q_columns() + 2 * c_.kv_columns()));
    gate_up_ = halves(kChunk * 2LL * c_.intermediate),
    product_ = halves(kChunk * static_cast<long long>(c_.intermediate));
    logits_ = halves(c_.vocab);
    partial_ = cuda_.allocate(sizeof(float) * kChunk * kSplits * c_.heads * (c_.head_dim + 2));
    arrived_ = cuda_.allocate(sizeof(int) * kChunk * c_.kv_heads);
    for (void*& event : events_) event = cuda_.event();
  }

  void generate(std::span<const int> prompt, int count, const std::function<bool(int)>& token) override {
    const int length = static_cast<int>(prompt.size());
    if (length + count > capacity_) throw std::runtime_error("the text is longer than the capacity");
    cuda_.upload(tokens_, prompt.data(), prompt.size() * sizeof(int));
    for (int at = 0; at < length; at += kChunk) {
      const State state = {at, 0, 0};
      cuda_.upload(state_, &state, sizeof state);
      read(std::min(kChunk, length - at), true, at + kChunk >= length);
    }
    cuda_.record(events_[0]);
    if (!step_ && count > 1) {
      cuda_.begin_capture();
      read(1, false, true);
      step_ = cuda_.end_capture();
    }
    // The GPU is one step ahead of the host, so that it never waits for it.
    for (int i = 0; i < count; ++i) {
      if (i + 1 < count) {
        cuda_.launch_graph(step_);
        cuda_.record(events_[(i + 1) % 2]);
      }
      cuda_.wait(events_[i % 2]);
      if (!token(static_cast<const volatile int*>(told_)[length + i])) break;
    }
  }

 private:
  struct LayerState {
    Linear qkv, o, o_of_one, gate_up, down;
    bool finished;  ///< gate_up gives silu(gate) * up
    void *attention_norm, *mlp_norm;
    void* cache;  ///< [2][kv_heads][capacity][head_dim]: keys and values
  };

  static q4::Device device(const Model& model) {
    const q4::Device device = model.layers.at(0).o[0].device();
    if (device.kind != q4::BackendKind::kCuda)
      throw std::runtime_error("--device " + device.str() + ": the example runs on the CPU and on NVIDIA GPUs");
    const Config& c = model.config;
    if (c.head_dim % 32 != 0 || c.head_dim > 256 || c.hidden % 8 != 0 || c.heads > 8 * c.kv_heads)
      throw std::runtime_error(
          "the example's kernels take a head_dim that is a multiple of 32 up to 256, a hidden_size of 8, and up to 8 "
          "heads "
          "of queries for one of keys: config.json has head_dim " +
          std::to_string(c.head_dim) + ", hidden_size " + std::to_string(c.hidden) + " and " + std::to_string(c.heads) +
          " heads for " + std::to_string(c.kv_heads));
    return device;
  }

  /// What all plans have in common. With `norm` they normalize x themselves, in the launch that multiplies where rows are few.
  Linear linear(const Matrices& matrices, q4::PlanOptions options) const {
    options.overlap_previous = true, options.norm_epsilon = c_.norm_epsilon;
    return {runtime_, matrices, options};
  }
  void* halves(long long count) const { return cuda_.allocate(2 * count); }
  void* upload_floats(const std::vector<float>& values) const {
    void* const memory = cuda_.allocate(values.size() * sizeof(float));
    cuda_.upload(memory, values.data(), values.size() * sizeof(float));
    return memory;
  }
  void* upload_halves(const q4::TensorView& tensor) const {
    void* const memory = halves(tensor.rows * tensor.cols);
    std::vector<float> row(tensor.cols);
    std::vector<std::uint16_t> words;
    for (std::int64_t r = 0, sent = 0; r < tensor.rows; ++r) {
      read_row(tensor, r, row.data());
      for (const float value : row) words.push_back(float_to_half(value));
      if (words.size() < (1u << 22) && r + 1 < tensor.rows) continue;
      cuda_.upload(static_cast<char*>(memory) + sent, words.data(), 2 * words.size());
      sent += 2 * static_cast<std::int64_t>(words.size());
      words.clear();
    }
    return memory;
  }

  void* upload_halves(const std::vector<float>& values) const {
    std::vector<std::uint16_t> words;
    for (const float value : values) words.push_back(float_to_half(value));
    void* const memory = halves(static_cast<long long>(words.size()));
    cuda_.upload(memory, words.data(), 2 * words.size());
    return memory;
  }

  template <class... Arguments>
  void launch(void* kernel, unsigned x, unsigned y, unsigned z, unsigned threads, Arguments... arguments) const {
    cuda_.launch(kernel, x, y, z, threads, {static_cast<void*>(&arguments)...}, true);
  }
  /// Launches all that reads m tokens at the text's position, and with `want_next` appends the likeliest next one, whose
  /// embedding then is x for the step that reads it; `embed`: it is not there yet.
  void read(int m, bool embed, bool want_next) const {
    void* const none = nullptr;
    const q4::Stream stream = {cuda_.stream()};
    const int fresh = m == 1;
    const auto [warps, tiles] = attend_shape(c_);
    const int shares = std::min(kSplits, (capacity_ + 16 * warps * tiles - 1) / (16 * warps * tiles));
    if (embed) launch(embed_, m, 1, 1, 256, embedding_, tokens_, state_, x_);
    for (const LayerState& layer : layers_) {
      layer.qkv.run(stream, x_, qkv_, m, layer.attention_norm);
      if (!fresh) launch(store_, m, c_.kv_heads, 1, 16, qkv_, layer.cache, rope_, state_, capacity_);
      launch(attend_, c_.kv_heads, shares, m, 32 * warps, qkv_, layer.cache, rope_, state_, capacity_, fresh, partial_,
             arrived_, mixed_);
      (fresh ? layer.o_of_one : layer.o).run(stream, mixed_, x_, m);
      layer.gate_up.run(stream, x_, layer.finished ? product_ : gate_up_, m, layer.mlp_norm);
      if (!layer.finished) launch(silu_mul_, (c_.intermediate / 4 + 1023) / 1024, m, 1, 1024, gate_up_, product_);
      layer.down.run(stream, product_, x_, m);
    }
    if (!want_next) return;
    void* const last = static_cast<std::uint16_t*>(x_) + static_cast<long long>(m - 1) * c_.hidden;
    if (!quantized_head_.empty()) quantized_head_.run(stream, last, logits_, 1, final_norm_);
    launch(likeliest_, kHeadBlocks, 1, 1, 256, head_, last, final_norm_, quantized_head_.empty() ? none : logits_,
           embedding_, state_, tokens_, told_device_, x_, m);
  }

  const q4::Runtime runtime_;
  const Model& model_;
  const Config& c_;
  const int capacity_;
  Cuda cuda_;
  void *embed_, *store_, *attend_, *silu_mul_, *likeliest_;
  void *embedding_, *head_, *final_norm_, *rope_;
  std::vector<LayerState> layers_;
  const Linear quantized_head_;
  void *state_, *tokens_, *told_, *told_device_;
  void *x_, *qkv_, *mixed_, *gate_up_, *product_, *logits_, *partial_, *arrived_;
  void *events_[2], *step_ = nullptr;
};

}  // namespace

std::unique_ptr<Engine> gpu_engine(const q4::Runtime& runtime, const Model& model, int capacity) {
  return std::make_unique<GpuEngine>(runtime, model, capacity);
}

}  // namespace generate
