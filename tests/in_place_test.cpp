// Weights over qweight's own memory, and other weights in the same place.
#include <doctest/doctest.h>

#include <cstring>

#include "interpreted.hpp"
#include "kernels/transpose.h"
#include "runtime/gpu/repack.hpp"
#include "tests/emulation/emulation.hpp"

namespace q4::test {
namespace {

/// A tensor of the host in device memory.
struct OnDevice {
  Buffer memory;
  TensorView view;
  OnDevice(const std::shared_ptr<DeviceBackend>& backend, Device device, const TensorView& host)
      : memory(backend, bytes_of(host)), view(host) {
    backend->copy(memory.get(), host.data, bytes_of(host), CopyKind::kToDevice);
    view.data = memory.get(), view.device = device;
  }
  static std::size_t bytes_of(const TensorView& view) {
    return static_cast<std::size_t>(view.rows * view.cols) * size_of(view.dtype);
  }
};

std::vector<std::uint32_t> words_at(DeviceBackend& backend, const void* memory, std::size_t count) {
  std::vector<std::uint32_t> words(count);
  backend.copy(words.data(), memory, count * 4, CopyKind::kToHost);
  return words;
}

HostRows times(const Runtime& runtime, Device device, const MatmulPlan& plan, std::int64_t k, std::int64_t n) {
  const HostRows x = random_rows(DType::kF16, 3, k);
  HostRows out(DType::kF16, 3, n);
  multiply(runtime, device, plan, x, out);
  return out;
}

bool same(const HostRows& a, const HostRows& b) { return std::memcmp(a.data(), b.data(), a.bytes()) == 0; }

const PlanOptions kPlan{.max_m = 3, .tactic = "tile half2=0 rows=32"};  // of interpreted devices: one kernel to compile

void check_reuse(const Runtime& runtime, const DeviceInfo& info, const MatrixSpec& spec, std::size_t scratch, bool fits,
                 bool scales_on_device = true) {
  const auto backend = runtime.impl().open(info.device);
  GptqMatrix source = make_gptq(spec);
  source.qzeros[0] |= 0xfu;  // zero 0 in format v1
  auto tensors = source.tensors();
  tensors.zeros = spec.zeros;
  const auto own = QuantizedMatrix::from_gptq(runtime, info.device, tensors);
  const OnDevice qweight(backend, info.device, tensors.qweight), qzeros(backend, info.device, tensors.qzeros),
      scales(backend, info.device, tensors.scales);
  tensors.qweight = qweight.view;
  if (scales_on_device) tensors.qzeros = qzeros.view, tensors.scales = scales.view;
  INFO("k=", spec.k, " n=", spec.n, " group=", spec.group_size, " scratch=", scratch);
  auto reused =
      QuantizedMatrix::from_gptq(runtime, info.device, tensors, {.storage = Storage::kReuse, .scratch_bytes = scratch});
  runtime.trim();
  CHECK(reused.in_place() == fits);
  CHECK_FALSE(own.in_place());
  const bool apart = fits && scales_on_device;
  CHECK(reused.scales_in_place() == apart);
  CHECK_FALSE(own.scales_in_place());
  const auto words = source.qweight.size() + (apart ? source.qzeros.size() : 0);
  if (fits) CHECK(reused.bytes() + words * 4 + (apart ? source.scales.size() * 2 : 0) == own.bytes());
  const PlanOptions options = info.device.kind == BackendKind::kHip ? kPlan : PlanOptions{.max_m = 3};
  const MatmulPlan plan(runtime, reused, options), other(runtime, own, options);
  const HostRows out = times(runtime, info.device, plan, spec.k, spec.n);
  CHECK(same(out, times(runtime, info.device, other, spec.k, spec.n)));
  const UnpackedMatrix again = reused.unpack();
  CHECK(again.qweight == source.qweight);
  CHECK(again.qzeros == source.qzeros);
  CHECK(again.scales == source.scales);
  if (!fits) {
    CHECK(words_at(*backend, qweight.memory.get(), source.qweight.size()) == source.qweight);
    return;
  }

  // Other codes, written where the first ones were given.
  MatrixSpec next = spec;
  next.seed = 77;
  GptqMatrix newer = make_gptq(next);
  newer.g_idx = source.g_idx;
  backend->copy(qweight.memory.get(), newer.qweight.data(), newer.qweight.size() * 4, CopyKind::kToDevice);
  auto update = newer.tensors();
  update.qweight = qweight.view, update.zeros = spec.zeros;
  for (const bool from_device : {false, true}) {  // scales from elsewhere, then from where they were given
    if (from_device && !apart) continue;
    if (from_device) {
      backend->copy(qweight.memory.get(), newer.qweight.data(), newer.qweight.size() * 4, CopyKind::kToDevice);
      backend->copy(scales.memory.get(), newer.scales.data(), newer.scales.size() * 2, CopyKind::kToDevice);
      backend->copy(qzeros.memory.get(), newer.qzeros.data(), newer.qzeros.size() * 4, CopyKind::kToDevice);
      update.scales = scales.view, update.qzeros = qzeros.view;
    }
    reused.update(update);
    const UnpackedMatrix now = reused.unpack();
    CHECK(now.qweight == newer.qweight);
    CHECK(now.scales == newer.scales);
    CHECK(now.qzeros == newer.qzeros);
    CHECK_FALSE(same(out, times(runtime, info.device, plan, spec.k, spec.n)));
  }

  reused.restore();
  runtime.trim();
  CHECK(words_at(*backend, qweight.memory.get(), newer.qweight.size()) == newer.qweight);
  const GptqMatrix& given = apart ? newer : source;
  CHECK(words_at(*backend, qzeros.memory.get(), given.qzeros.size()) == given.qzeros);
  std::vector<std::uint16_t> halves(given.scales.size());
  backend->copy(halves.data(), scales.memory.get(), halves.size() * 2, CopyKind::kToHost);
  CHECK(halves == given.scales);
  CHECK_THROWS_WITH_AS((void)reused.unpack(), doctest::Contains("restore() was called"), Error);
  CHECK_THROWS_WITH_AS(MatmulPlan(runtime, reused, kPlan), doctest::Contains("restore() was called"), Error);
  CHECK_THROWS_WITH_AS(reused.update(update), doctest::Contains("restore() was called"), Error);
}

void check_awq_reuse(const Runtime& runtime, const DeviceInfo& info, const MatrixSpec& spec, std::size_t scratch) {
  const auto backend = runtime.impl().open(info.device);
  const AwqMatrix source = to_awq(make_gptq(spec));
  auto tensors = source.tensors();
  const auto own = QuantizedMatrix::from_awq(runtime, info.device, tensors);
  const OnDevice qweight(backend, info.device, tensors.qweight), qzeros(backend, info.device, tensors.qzeros),
      scales(backend, info.device, tensors.scales);
  tensors.qweight = qweight.view, tensors.qzeros = qzeros.view, tensors.scales = scales.view;
  INFO("awq k=", spec.k, " n=", spec.n, " group=", spec.group_size, " scratch=", scratch);
  auto reused =
      QuantizedMatrix::from_awq(runtime, info.device, tensors, {.storage = Storage::kReuse, .scratch_bytes = scratch});
  CHECK(reused.in_place());
  CHECK(reused.scales_in_place());
  const PlanOptions options = info.device.kind == BackendKind::kHip ? kPlan : PlanOptions{.max_m = 3};
  const MatmulPlan plan(runtime, reused, options), other(runtime, own, options);
  CHECK(same(times(runtime, info.device, plan, spec.k, spec.n), times(runtime, info.device, other, spec.k, spec.n)));
  const UnpackedMatrix again = reused.unpack();
  CHECK(again.qweight == source.qweight);
  CHECK(again.qzeros == source.qzeros);
  CHECK(again.scales == source.scales);
  reused.restore();
  runtime.trim();
  CHECK(words_at(*backend, qweight.memory.get(), source.qweight.size()) == source.qweight);
  CHECK(words_at(*backend, qzeros.memory.get(), source.qzeros.size()) == source.qzeros);
  const auto scale_words = words_at(*backend, scales.memory.get(), source.scales.size() / 2);
  CHECK(std::memcmp(scale_words.data(), source.scales.data(), source.scales.size() * 2) == 0);
}

void check_reuses(const Runtime& runtime, const DeviceInfo& info) {
  const std::size_t much = 64 << 20, strip = 1;  // 1 byte: a strip at a time
  const auto check = [&](const MatrixSpec& spec, std::size_t scratch, bool fits) {
    check_reuse(runtime, info, spec, scratch, fits);
  };
  check({.k = 256, .n = 192, .group_size = 64}, much, true);
  check({.k = 256, .n = 192, .group_size = 64}, strip, true);
  check_reuse(runtime, info, {.k = 256, .n = 192, .group_size = 64}, much, true, false);
  check({.k = 384, .n = 128, .group_size = 128, .zeros = ZeroFormat::kV2}, strip, true);
  check({.k = 256, .n = 256, .group_size = 32, .act_order = ActOrder::kPermuted}, 20000, true);
  check({.k = 128, .n = 64, .group_size = -1}, strip, true);
  check({.k = 256, .n = 72, .group_size = 64}, much, false);  // columns are padded
  check({.k = 200, .n = 64, .group_size = 40}, much, false);  // so are rows
  check({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kUneven}, much, false);
  check_awq_reuse(runtime, info, {.k = 256, .n = 192, .group_size = 64}, much);
  check_awq_reuse(runtime, info, {.k = 384, .n = 128, .group_size = 128}, strip);
}

TEST_CASE("weights take their tensors' own memory on a GPU, with little scratch or much") {
  for (const auto& info : ready_devices()) {
    if (info.device.kind == BackendKind::kCpu) continue;
    check_reuses(shared_runtime(), info);
    check_reuse(shared_runtime(), info, {.k = 4096, .n = 6144, .group_size = 128}, 1 << 20, true);
  }
}

TEST_CASE("interpreted: weights take their tensors' own memory, with little scratch or much") {
  if (const auto info = device("gfx1030")) check_reuses(interpreted(), *info);
}

TEST_CASE("reuse on the CPU moves: its layout has scales between the codes") {
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64});
  auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), {}, source.tensors(), {.storage = Storage::kReuse});
  CHECK_FALSE(matrix.in_place());
  matrix.restore();  // nothing to do
  CHECK(matrix.unpack().qweight == source.qweight);
  CHECK_THROWS_AS(
      QuantizedMatrix::from_gptq(shared_runtime(), {}, source.tensors(), {.storage = static_cast<Storage>(7)}), Error);
}

void check_update(const Runtime& runtime, Device device, const MatrixSpec& spec, const PlanOptions& options) {
  const GptqMatrix first = make_gptq(spec);
  MatrixSpec other = spec;
  other.seed = 5;
  const GptqMatrix second = make_gptq(other);
  auto matrix = QuantizedMatrix::from_gptq(runtime, device, first.tensors());
  const MatmulPlan plan(runtime, matrix, options);
  for (const GptqMatrix* now : {&second, &first, &second}) {
    matrix.update(now->tensors());
    const HostRows x = random_rows(DType::kF16, 3, spec.k);
    HostRows out(DType::kF16, 3, spec.n);
    multiply(runtime, device, plan, x, out);
    INFO(device.str(), " k=", spec.k, " order=", static_cast<int>(spec.act_order));
    CHECK(relative_error(out, product(x, unpack(now->tensors()))) <= tolerance(DType::kF16));
    CHECK(matrix.unpack().scales == now->scales);
  }
  for (const MatrixSpec& wrong : {MatrixSpec{.k = spec.k + 128, .n = spec.n, .group_size = spec.group_size},
                                  MatrixSpec{.k = spec.k, .n = spec.n + 8, .group_size = spec.group_size},
                                  MatrixSpec{.k = spec.k, .n = spec.n, .group_size = spec.group_size * 2},
                                  MatrixSpec{.k = spec.k,
                                  .n = spec.n,
                                  .group_size = spec.group_size,
                                  .act_order = spec.act_order,
                                  .bias = !spec.bias}}) {
    const GptqMatrix tensors = make_gptq(wrong);
    CHECK_THROWS_WITH_AS(matrix.update(tensors.tensors()), doctest::Contains("load it as another matrix"), Error);
  }
  const AwqMatrix awq = to_awq(make_gptq({.k = spec.k, .n = spec.n, .group_size = spec.group_size}));
  CHECK_THROWS_WITH_AS(matrix.update(awq.tensors()), doctest::Contains("AWQ's layout"), Error);
  CHECK(matrix.unpack().qweight == second.qweight);  // nothing was changed
}

TEST_CASE("update: other weights under plans that exist") {
  for (const auto& info : ready_devices())
    for (const auto order : {ActOrder::kNone, ActOrder::kPermuted})
      for (const bool bias : {false, true})
        check_update(shared_runtime(), info.device,
                     {.k = 256, .n = 72, .group_size = 64, .act_order = order, .bias = bias}, {.max_m = 3});
}

TEST_CASE("interpreted: other weights under plans that exist") {
  const auto info = device("gfx1030");
  if (!info) return;
  check_update(interpreted(), info->device, {.k = 256, .n = 72, .group_size = 64, .bias = true}, kPlan);
  check_update(interpreted(), info->device, {.k = 256, .n = 64, .group_size = 32, .act_order = ActOrder::kPermuted},
               kPlan);
}

TEST_CASE("update: a thousand times, and nothing grows") {
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kPermuted});
  const Runtime runtime;
  auto matrix = QuantizedMatrix::from_gptq(runtime, {}, source.tensors());
  const auto before = runtime.memory().at(0);
  for (int i = 0; i < 1000; ++i) matrix.update(source.tensors());
  const auto after = runtime.memory().at(0);
  CHECK(after.total() == before.total());
  CHECK(after.allocations == before.allocations);
}

template <int kLanes>
void check_transpose(int rows, int columns) {
  const auto numbers = gpu::transpose_chains(rows, columns);
  const auto chains = static_cast<int>(numbers.size() / 3);
  std::vector<std::uint64_t> pieces(static_cast<std::size_t>(rows * columns * kLanes)), before;
  for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i] = i * 0x9e3779b97f4a7c15u;
  before = pieces;
  std::vector<std::uint64_t> saved(static_cast<std::size_t>(chains) * kLanes);
  TransposeArgs args{reinterpret_cast<u8*>(pieces.data()),
                     reinterpret_cast<u8*>(saved.data()),
                     numbers.data(),
                     numbers.data() + chains,
                     numbers.data() + 2 * chains,
                     chains,
                     rows,
                     columns};
  const emulation::Launch launch{.grid = transpose_blocks(chains, kLanes), .threads = transpose_threads()};
  if (chains > 0) {
    emulation::emulate(launch, [&] { transpose<TransposeConfig{.save = 1, .lanes = kLanes}>(args); });
    emulation::emulate(launch, [&] { transpose<TransposeConfig{.save = 0, .lanes = kLanes}>(args); });
  }
  INFO(rows, " x ", columns, " pieces of ", 8 * kLanes, " bytes");
  bool right = true;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c)
      right &= std::memcmp(&pieces[static_cast<std::size_t>(c * rows + r) * kLanes],
                           &before[static_cast<std::size_t>(r * columns + c) * kLanes], 8 * kLanes) == 0;
  CHECK(right);
}

TEST_CASE("pieces are transposed where they are") {
  for (const auto& [rows, columns] :
       std::vector<std::array<int, 2>>{{1, 1}, {1, 7}, {2, 3}, {16, 1}, {16, 5}, {48, 16}, {64, 64}, {96, 36}}) {
    check_transpose<32>(rows, columns);
    check_transpose<4>(rows, columns);
  }
}

}  // namespace
}  // namespace q4::test
