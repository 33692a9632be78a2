// Multiplies each expert's rows with the dense kernels, the tasks of all experts in one job.
#include "runtime/backends/cpu/grouped.hpp"

#include <algorithm>

#include "runtime/backends/cpu/exact.hpp"
#include "runtime/backends/cpu/plan.hpp"

namespace q4::cpu {
namespace {

constexpr std::size_t kAlign = 256;
constexpr std::int64_t kPadRows = 16;                        // of a tile register of AMX
constexpr std::int64_t kMostTaskRows = kUsualRows + 2 * 16;  // with a rest that a task takes along
constexpr std::size_t kSumsBytes = kMostTaskRows * kTile * sizeof(float);
constexpr std::size_t kThreadScratch = kScratch + 2 * kSumsBytes;      // gate and up
constexpr std::int64_t kPackValues = 1 << 13, kAloneValues = 1 << 14;  // so few are packed sooner than threads wake up

/// Of one activation, packed for whichever path takes most: experts of one product take different ones.
std::size_t element_bytes(Element element) { return std::size_t(std::max(4, 2 * bf16_terms(element))); }

}  // namespace

GroupedProduct::GroupedProduct(std::shared_ptr<const CpuExperts> experts, const Kernels& kernels, ThreadPool& pool,
                               Element element, const Activation& activation, bool batch_invariant,
                               std::optional<Path> forced)
    : experts_(std::move(experts)),
      kernels_(kernels),
      pool_(pool),
      element_(element),
      activation_(activation),
      batch_invariant_(batch_invariant),
      forced_(forced) {}

PathRules GroupedProduct::rules() const {
  return {&kernels_, element_, experts_->matrix(0).segment, false, batch_invariant_};
}

GroupedProduct::Places GroupedProduct::places(std::int64_t positions) const {
  const CpuMatrix& matrix = experts_->matrix(0);
  const std::int64_t active = std::min(positions, experts_->shape().experts);
  const auto rows = std::size_t(positions + (rules().valid(Path::kAmx) ? active * (kPadRows - 1) : 0));
  const auto packed_k = std::size_t(matrix.blocks * kBlock);
  Places at{};
  at.x = round_up(std::size_t(active) * sizeof(Item), kAlign);
  at.sums = round_up(at.x + rows * packed_k * element_bytes(element_), kAlign);
  at.scratch = round_up(at.sums + rows * packed_k / std::size_t(matrix.segment) * sizeof(float), kAlign);
  at.end = round_up(at.scratch + std::size_t(pool_.threads()) * kThreadScratch, kAlign);
  return at;
}

std::size_t GroupedProduct::workspace_bytes(std::int64_t positions) const { return places(positions).end; }

/// Of one task of packing.
std::int64_t GroupedProduct::pack_rows(const Item& item) const {
  const std::int64_t values = experts_->matrix(0).blocks * kBlock;
  return std::int64_t(round_up(std::size_t(std::max<std::int64_t>(1, kPackValues / values)),
                               std::size_t(rest_rows(kernels_, item.path))));
}

std::int64_t GroupedProduct::list_items(const SortedRows& rows, Item* items) const {
  const CpuMatrix& matrix = experts_->matrix(0);
  std::int64_t count = 0, tasks = 0, pack_tasks = 0, packed = 0;
  for (std::int64_t expert = 0; expert < experts_->shape().experts; ++expert) {
    Item item{};
    item.expert = expert, item.begin = rows.begin[expert], item.rows = rows.begin[expert + 1] - item.begin;
    if (item.rows <= 0) continue;
    item.path = forced_.value_or(rules().usual(item.rows));
    const std::int64_t rest = rest_rows(kernels_, item.path), some = pack_rows(item);
    const std::int64_t most = task_rows(item.path, element_, matrix.blocks), parts = (item.rows + most - 1) / most;
    item.part = std::int64_t(
        round_up(std::size_t((item.rows + parts - 1) / parts), std::size_t(step_rows(kernels_, item.path))));
    tasks += (std::max<std::int64_t>((item.rows - rest) / item.part, 0) + 1) * matrix.span_tiles();
    pack_tasks += std::max<std::int64_t>((item.rows - rest) / some, 0) + 1;
    item.packed = packed, item.tasks_end = tasks, item.pack_tasks_end = pack_tasks;
    packed += item.path == Path::kAmx ? std::int64_t(round_up(std::size_t(item.rows), kPadRows)) : item.rows;
    items[count++] = item;
  }
  return count;
}

const GroupedProduct::Item& GroupedProduct::item_of(const Item* items, std::int64_t count, std::int64_t Item::*end,
                                                    std::int64_t task) {
  return *std::upper_bound(items, items + count, task, [&](std::int64_t t, const Item& item) { return t < item.*end; });
}

void GroupedProduct::pack(const Item& item, std::int64_t piece, const PlacedRows& x, const Places& at,
                          std::byte* workspace) const {
  const CpuMatrix& matrix = experts_->matrix(item.expert);
  const std::int64_t packed_k = matrix.blocks * kBlock;
  PackX job{};
  job.x = x.place ? x.data : x.row(item.begin);
  job.place = x.place ? x.place + item.begin : nullptr;
  job.x_stride = x.stride, job.element = element_;
  job.source = matrix.source.empty() ? nullptr : matrix.source.data();
  job.k = matrix.k, job.blocks = job.end = matrix.blocks, job.segment = matrix.segment, job.rows = item.rows;
  job.out = workspace + at.x + std::size_t(item.packed * packed_k) * element_bytes(element_);
  job.sums = reinterpret_cast<float*>(workspace + at.sums) + item.packed * packed_k / matrix.segment;
  const std::int64_t row = piece * pack_rows(item);
  kernels_of(kernels_, item.path)
      .pack_x(job, row, end_of_task(row, pack_rows(item), item.rows, rest_rows(kernels_, item.path)));
}

void GroupedProduct::finish(const CpuMatrix& matrix, std::int64_t tile, const std::byte* x, float* y,
                            std::byte* scratch) const {
  if (has_nonfinite(y))
    return make_exact(
        {&matrix, &kernels_, tile, x, element_, y, matrix.columns_of(tile), reinterpret_cast<float*>(scratch)});
  if (matrix.bias.empty()) return;
  const float* bias = matrix.bias.data() + tile * kTile;
  for (int column = 0; column < kTile; ++column) y[column] += bias[column];
}

void GroupedProduct::multiply(const Item& item, std::int64_t task, int worker, const PlacedRows& x,
                              const PlacedRows& out, const Places& at, std::byte* workspace) const {
  const CpuMatrix& matrix = experts_->matrix(item.expert);
  const std::int64_t tiles = matrix.span_tiles(), tile = task % tiles, packed_k = matrix.blocks * kBlock;
  auto* scratch = workspace + at.scratch + std::size_t(worker) * kThreadScratch;
  TileJob job{};
  job.blocks = job.end = matrix.blocks, job.segment = matrix.segment, job.terms = bf16_terms(element_);
  job.x = workspace + at.x + std::size_t(item.packed * packed_k) * element_bytes(element_);
  job.sums = reinterpret_cast<float*>(workspace + at.sums) + item.packed * packed_k / matrix.segment;
  job.x_rows = item.rows;
  job.row = task / tiles * item.part;
  job.rows = int(end_of_task(job.row, item.part, item.rows, rest_rows(kernels_, item.path)) - job.row);
  job.scratch = scratch;
  auto* const y = reinterpret_cast<float*>(scratch + kScratch);
  auto* const up = reinterpret_cast<float*>(scratch + kScratch + kSumsBytes);
  const int halves = activation_.gated() ? 2 : 1;
  for (int half = 0; half < halves; ++half) {
    job.weights = matrix.tile(half * tiles + tile);
    job.y = half ? up : y;
    kernels_of(kernels_, item.path).multiply(job);
  }
  StoreJob store{};
  store.y_stride = kTile, store.rows = 1, store.columns = matrix.columns_of(tile);
  store.out_stride = out.stride, store.element = out.element;
  const std::int64_t column = tile * kTile * (out.element == Element::kF32 ? 4 : 2);
  for (int r = 0; r < job.rows; ++r) {
    const std::int64_t position = item.begin + job.row + r;
    finish(matrix, tile, x.row(position), y + r * kTile, scratch);
    if (halves == 2) {
      finish(matrix, tiles + tile, x.row(position), up + r * kTile, scratch);
      activation_.multiply(y + r * kTile, up + r * kTile, kTile);
    }
    store.y = y + r * kTile, store.out = out.row(position) + column;
    kernels_.store(store);
  }
}

void GroupedProduct::run(const SortedRows& rows, const PlacedRows& x, const PlacedRows& out,
                         std::byte* workspace) const {
  const std::int64_t positions = rows.begin[experts_->shape().experts];
  if (positions == 0) return;
  const Places at = places(positions);
  auto* const items = reinterpret_cast<Item*>(workspace + at.items);
  const std::int64_t count = list_items(rows, items);
  const std::int64_t values = positions * experts_->matrix(0).blocks * kBlock;
  const std::int64_t pack_tasks = items[count - 1].pack_tasks_end;
  const auto pack_task = [&](std::int64_t task, int) {
    const Item& item = item_of(items, count, &Item::pack_tasks_end, task);
    pack(item, task - (&item == items ? 0 : (&item)[-1].pack_tasks_end), x, at, workspace);
  };
  if (rows.same_x && count == positions && !experts_->shape().mapped) {
    for (std::int64_t i = 0; i < count; ++i) items[i].packed = 0;
    pack_task(0, 0);
  } else if (values <= kAloneValues) {
    for (std::int64_t task = 0; task < pack_tasks; ++task) pack_task(task, 0);
  } else {
    pool_.run(pack_tasks, pack_task);
  }
  pool_.run(items[count - 1].tasks_end, [&](std::int64_t task, int worker) {
    const Item& item = item_of(items, count, &Item::tasks_end, task);
    multiply(item, task - (&item == items ? 0 : (&item)[-1].tasks_end), worker, x, out, at, workspace);
  });
}

}  // namespace q4::cpu
