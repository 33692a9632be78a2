// Copies, activations and outputs on the device; checking and timing of one variant.
#include "autotune/rig.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "autotune/statistics.hpp"
#include "autotune/stopwatch.hpp"
#include "runtime/runtime.hpp"

namespace q4::autotune {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Bytes of weights that are rotated: more than twice the last cache. A virtual machine may report the L3 of its whole
/// host, and packing is slow on the CPU: bounded there.
std::size_t cold_target(const DeviceInfo& info, bool gpu) {
  const std::size_t twice = 2 * info.l2_bytes + (std::size_t{1} << 20);
  return gpu ? std::max(twice, std::size_t{256} << 20) : std::min(twice, std::size_t{192} << 20);
}

constexpr std::size_t kFewestCopies = 4;
constexpr std::size_t kFewestNodes = 4;  // of a replayed graph: its start is shared by them
constexpr std::size_t kFirstReplays = 2, kMostReplays = 7, kMostCalls = 9;
constexpr double kSampleUs = 3000;       // one sample's time, unless a single run takes longer
constexpr double kLongReplayUs = 20000;  // replays are cut to fewer copies beyond this, and rest before (power limit)

}  // namespace

Rig::Rig(const Runtime& runtime, Device device, Workload& workload, std::int64_t max_m, double setup_s, bool cold,
         bool gate_up)
    : runtime_(runtime), device_(device), workload_(workload), backend_(runtime.impl().open(device)), max_m_(max_m) {
  add_copies(setup_s, cold, {.gate_up = gate_up || workload.problem().with.gated()});
  fill_x(max_m);
  const std::size_t size = size_of(workload.activation());
  out_ = Buffer(backend_, static_cast<std::size_t>(max_m * workload.problem().n) * size);
  const EpilogueChoice& with = workload.problem().with;
  if (with.any()) epilogue_.emplace(runtime, backend_, matrices_.front(), copies(), workload, with, max_m);
}

PlanOptions Rig::with_epilogue(const PlanOptions& options) const {
  PlanOptions all = options;
  if (!epilogue_) return all;
  const EpilogueChoice& with = workload_.problem().with;
  all.epilogue = with.epilogue();
  if (with.rank > 0) all.lora_rank = with.rank;
  return all;
}

void Rig::add_copies(double setup_s, bool cold, const MatrixOptions& options) {
  const auto start = Clock::now();
  const DeviceInfo& info = backend_->info();
  GptqTensors tensors = workload_.tensors();
  Buffer codes;
  if (!backend_->traits().host_addressable) {  // uploaded once, repacked on the device for each copy
    const auto bytes = static_cast<std::size_t>(tensors.qweight.rows * tensors.qweight.cols) * 4;
    codes = Buffer(backend_, bytes);
    backend_->copy(codes.get(), tensors.qweight.data, bytes, CopyKind::kToDevice);
    tensors.qweight.data = codes.get();
    tensors.qweight.device = device_;
  }
  matrices_.push_back(QuantizedMatrix::from_gptq(runtime_, device_, tensors, options));
  const std::size_t bytes = std::max<std::size_t>(matrices_.front().bytes(), 1);
  const std::size_t fit = std::max<std::size_t>(info.memory_bytes / 4 / bytes, 1);
  if (!cold) return;
  const std::size_t wanted = std::min(std::max(cold_target(info, gpu()) / bytes + 1, kFewestCopies), fit);
  while (matrices_.size() < wanted && (gpu() || matrices_.size() < kFewestCopies || seconds_since(start) < setup_s))
    matrices_.push_back(QuantizedMatrix::from_gptq(runtime_, device_, tensors, options));
}

void Rig::fill_x(std::int64_t rows, const std::vector<std::int32_t>& order) {
  const std::size_t size = size_of(workload_.activation());
  const std::size_t row_bytes = static_cast<std::size_t>(workload_.problem().k) * size;
  std::vector<std::byte> x(workload_.x().begin(), workload_.x().end());
  for (std::size_t r = 0; r * row_bytes < x.size(); ++r)
    for (std::size_t c = 0; c < order.size(); ++c)
      std::copy_n(workload_.x().data() + r * row_bytes + static_cast<std::size_t>(order[c]) * size, size,
                  x.data() + r * row_bytes + c * size);
  x_ = Buffer(backend_, static_cast<std::size_t>(rows) * row_bytes);
  for (std::int64_t r = 0; r < rows; r += workload_.period()) {
    const auto count = static_cast<std::size_t>(std::min(workload_.period(), rows - r));
    backend_->copy(static_cast<std::byte*>(x_.get()) + static_cast<std::size_t>(r) * row_bytes, x.data(),
                   count * row_bytes, CopyKind::kToDevice);
  }
}

std::unique_ptr<Variant> Rig::prepare(const PlanOptions& options) const {
  auto variant = std::make_unique<Variant>();
  PlanOptions shared = with_epilogue(options);
  shared.own_workspace = gpu();  // thousands of copies of a small matrix would write a workspace each first
  variant->plans.push_back(plan(shared));
  const std::size_t workspace = std::max<std::size_t>(variant->plans.front().workspace_bytes(), 1);
  if (!shared.own_workspace) {
    variant->workspace = Buffer(backend_, workspace);
    backend_->fill(variant->workspace.get(), 0, workspace);
  }
  const std::size_t fit = shared.own_workspace ? backend_->info().memory_bytes / 8 / workspace : copies();
  while (variant->plans.size() < std::min(copies(), fit))
    variant->plans.emplace_back(runtime_, matrices_[variant->plans.size()], shared);
  if (epilogue_) epilogue_->give(*variant, options.max_m);
  return variant;
}

std::unique_ptr<Variant> Rig::prepare_dense(std::int64_t m, std::unique_ptr<Variant> previous) const {
  const auto [k, n] = std::pair(workload_.problem().k, workload_.problem().n);
  auto variant = std::make_unique<Variant>();
  const DType type = dense_type(m);
  variant->dense = dense_blas(backend_, k, n, m, type);
  if (!variant->dense) return nullptr;
  if (previous) variant->dense_weights = std::move(previous->dense_weights);
  const std::size_t size = size_of(type);
  const std::size_t bytes = static_cast<std::size_t>(k * n) * size;
  const auto x = workload_.x_as(type);  // weights take their values from x: dense, normal, right type
  const std::size_t piece = std::min(x.size(), bytes);
  if (type != workload_.activation()) {
    variant->dense_x = Buffer(backend_, static_cast<std::size_t>(m * k) * size);
    variant->dense_out = Buffer(backend_, static_cast<std::size_t>(m * n) * size);
    for (std::int64_t r = 0; r < m; ++r)
      backend_->copy(static_cast<std::byte*>(variant->dense_x.get()) + static_cast<std::size_t>(r * k) * size, x.data(),
                     static_cast<std::size_t>(k) * size, CopyKind::kToDevice);
  }
  const std::size_t enough = std::max(cold_bytes(), gpu() ? 2 * bytes : bytes);
  while (variant->dense_weights.size() * bytes < enough) {
    const Buffer& weights = variant->dense_weights.emplace_back(backend_, bytes);
    for (std::size_t at = 0; at < bytes; at += piece)
      backend_->copy(static_cast<std::byte*>(weights.get()) + at, x.data(), std::min(piece, bytes - at),
                     CopyKind::kToDevice);
  }
  return variant;
}

DType Rig::dense_type(std::int64_t m) const {
  const DType type = workload_.activation();
  return dense_blas(backend_, workload_.problem().k, workload_.problem().n, m, type) ? type : DType::kF32;
}

void Rig::touch() const {
  backend_->fill(out_.get(), 0, 16);
  backend_->synchronize();
}

void Rig::launch(const Variant& variant, std::size_t copy, void* stream, std::int64_t m) const {
  if (variant.dense) {
    const bool own = variant.dense_x.get() != nullptr;
    variant.dense(stream, own ? variant.dense_x.get() : x_.get(), variant.dense_weights[copy].get(),
                  own ? variant.dense_out.get() : out_.get());
  } else {
    run(variant, copy, stream, m);
  }
}

void Rig::run(const Variant& variant, std::size_t copy, void* stream, std::int64_t m) const {
  RunInputs inputs;
  inputs.workspace = variant.workspace.get();
  inputs.residual = {variant.residual.get()};
  if (!variant.adapters.empty()) {
    inputs.adapters = &variant.adapters[copy % variant.adapters.size()];
    inputs.adapter_of_row = variant.adapter_of_row.as<const std::int32_t>();
  }
  variant.plans[copy].run({stream}, {x_.get()}, {out_.get()}, m, inputs);
}

/// All of a few, else the first, the last, and some between that differ with m.
std::vector<std::int64_t> Rig::sampled_rows(std::int64_t m) {
  constexpr std::int64_t kMost = 16;
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < std::min(m, kMost); ++i) rows.push_back(m <= kMost ? i : i * (m - 1) / (kMost - 1));
  return rows;
}

std::size_t Rig::first_runs() const { return gpu() ? kFirstReplays * std::max(copies(), kFewestNodes) : 1; }
std::size_t Rig::most_runs() const { return gpu() ? kMostReplays * std::max(copies(), kFewestNodes) : kMostCalls; }

double Rig::error(const Variant& variant, std::int64_t m, const Workload::Finish& finish) const {
  const std::int64_t outs = variant.plans.front().out_columns();
  const std::size_t row_bytes = static_cast<std::size_t>(outs) * size_of(workload_.activation());
  backend_->fill(out_.get(), 0xff, static_cast<std::size_t>(m) * row_bytes);  // all ones is a NaN in every type
  const std::size_t copy = variant.plans.size() - 1;
  run(variant, copy, nullptr, m);
  backend_->synchronize();

  const std::vector<std::int64_t> rows = sampled_rows(m);
  std::vector<std::byte> host(rows.size() * row_bytes);
  std::vector<Workload::OutputRow> outputs;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::byte* to = host.data() + i * row_bytes;
    backend_->copy(to, static_cast<std::byte*>(out_.get()) + static_cast<std::size_t>(rows[i]) * row_bytes, row_bytes,
                   CopyKind::kToHost);
    outputs.push_back({rows[i], to});
  }
  return workload_.error(outputs, !finish && epilogue_ ? epilogue_->finish() : finish, outs);
}

double Rig::sample(Variant& variant, std::int64_t m) const {
  variant.estimate_us = gpu() ? replay(variant, m) : call(variant, m);
  return variant.estimate_us;
}

double Rig::replay(Variant& variant, std::int64_t m) const {
  std::size_t nodes = std::max(variant.copies(), kFewestNodes);
  const double all_us = variant.estimate_us * static_cast<double>(nodes);
  if (all_us > kLongReplayUs)
    nodes = std::max<std::size_t>(1, static_cast<std::size_t>(kLongReplayUs / variant.estimate_us));
  const double replay_us = variant.estimate_us * static_cast<double>(nodes);
  if (replay_us > kSampleUs) std::this_thread::sleep_for(std::chrono::microseconds(static_cast<int>(2 * replay_us)));
  const int runs = variant.estimate_us > 0 ? std::clamp(static_cast<int>(kSampleUs / replay_us), 1, int{kMostReplays})
                                           : int{kFirstReplays};
  const auto times = time_runs(
      *backend_,
      [&](void* stream) {
        for (std::size_t i = 0; i < nodes; ++i) launch(variant, i % variant.copies(), stream, m);
      },
      runs);
  return median(times) / static_cast<double>(nodes);
}

double Rig::call(Variant& variant, std::int64_t m) const {
  const int runs =
      variant.estimate_us > 0 ? std::clamp(static_cast<int>(kSampleUs / variant.estimate_us), 1, int{kMostCalls}) : 1;
  return median(time_runs(
      *backend_,
      [&](void* stream) {
        variant.next = (variant.next + 1) % variant.copies();
        launch(variant, variant.next, stream, m);
      },
      runs));
}

}  // namespace q4::autotune
