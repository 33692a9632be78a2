// Memory through the C ABI: an allocator, what is held, unpack, update, sealing.
#include <q4/q4.h>

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "reference.hpp"

namespace q4::test {
namespace {

struct Pool {
  std::size_t bytes = 0;
  bool empty = false;
};

void* take(void* user, size_t bytes, size_t alignment, q4_device, void*) {
  auto& pool = *static_cast<Pool*>(user);
  if (pool.empty) return nullptr;
  pool.bytes += bytes;
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void give(void* user, void* memory, size_t bytes, q4_device, void*) {
  static_cast<Pool*>(user)->bytes -= bytes;
  std::free(memory);
}

q4_tensor tensor(const TensorView& view) {
  return {view.data, static_cast<q4_dtype>(view.dtype), view.rows, view.cols, 0, {}};
}

q4_tensors tensors_of(const GptqMatrix& matrix, q4_tensor& g_idx, q4_tensor& bias) {
  const auto given = matrix.tensors();
  q4_tensors t{};
  t.size = sizeof t;
  t.qweight = tensor(given.qweight), t.qzeros = tensor(given.qzeros), t.scales = tensor(given.scales);
  if (given.g_idx) g_idx = tensor(*given.g_idx), t.g_idx = &g_idx;
  if (given.bias) bias = tensor(*given.bias), t.bias = &bias;
  t.zeros = Q4_ZEROS_V1;
  return t;
}

TEST_CASE("the C ABI: allocator, memory, unpack, update and seal") {
  Pool pool;
  q4_runtime_options options = {};
  options.size = sizeof options;
  options.allocate = take, options.allocator_user = &pool;
  q4_runtime* runtime = nullptr;
  CHECK(q4_runtime_create(&options, &runtime) == Q4_INVALID_ARGUMENT);
  CHECK(std::string(q4_last_error()).find("options.release is null") != std::string::npos);
  options.release = give;
  REQUIRE(q4_runtime_create(&options, &runtime) == Q4_OK);

  const MatrixSpec spec{.k = 256, .n = 72, .group_size = 64, .act_order = ActOrder::kPermuted, .bias = true};
  MatrixSpec other = spec;
  other.seed = 9;
  const GptqMatrix first = make_gptq(spec), second = make_gptq(other);
  q4_tensor g_idx, bias;
  q4_tensors t = tensors_of(first, g_idx, bias);
  q4_matrix matrix = 0;
  const q4_device cpu = {Q4_CPU, 0};
  t.storage = 5;
  CHECK(q4_matrix_from_gptq(runtime, cpu, &t, &matrix) == Q4_INVALID_ARGUMENT);
  t.storage = Q4_STORAGE_REUSE;  // on the CPU it moves
  REQUIRE(q4_matrix_from_gptq(runtime, cpu, &t, &matrix) == Q4_OK);
  q4_matrix_info info = {};
  info.size = sizeof info;
  REQUIRE(q4_matrix_get(runtime, matrix, &info) == Q4_OK);
  CHECK(info.in_place == 0);
  q4_memory_use use = {};
  use.size = sizeof use;
  REQUIRE(q4_memory_get(runtime, cpu, &use) == Q4_OK);
  CHECK(use.weights == pool.bytes);
  CHECK(use.allocations == 1);

  std::vector<std::uint32_t> qweight(first.qweight.size()), qzeros(first.qzeros.size());
  std::vector<std::uint16_t> scales(first.scales.size());
  std::vector<std::int32_t> groups(256);
  std::vector<float> added(72);
  const q4_unpacked to = {sizeof to, qweight.data(), qzeros.data(), scales.data(), groups.data(), added.data()};
  REQUIRE(q4_matrix_unpack(runtime, matrix, &to) == Q4_OK);
  CHECK(qweight == first.qweight);
  CHECK(qzeros == first.qzeros);
  CHECK(scales == first.scales);
  CHECK(groups == first.g_idx);
  CHECK(added[3] == half_value(first.bias[3]));

  t = tensors_of(second, g_idx, bias);
  REQUIRE(q4_matrix_update(runtime, matrix, &t, nullptr) == Q4_OK);
  REQUIRE(q4_matrix_unpack(runtime, matrix, &to) == Q4_OK);
  CHECK(qweight == second.qweight);
  t.bias = nullptr;
  CHECK(q4_matrix_update(runtime, matrix, &t, nullptr) == Q4_INVALID_ARGUMENT);
  CHECK(std::string(q4_last_error()).find("having a bias") != std::string::npos);

  CHECK(q4_runtime_seal(runtime, 9) == Q4_INVALID_ARGUMENT);
  REQUIRE(q4_runtime_seal(runtime, Q4_SEAL_ERROR) == Q4_OK);
  q4_matrix more = 0;
  t = tensors_of(first, g_idx, bias);
  CHECK(q4_matrix_from_gptq(runtime, cpu, &t, &more) == Q4_UNSUPPORTED);
  REQUIRE(q4_runtime_seal(runtime, Q4_SEAL_OFF) == Q4_OK);
  pool.empty = true;
  CHECK(q4_matrix_from_gptq(runtime, cpu, &t, &more) == Q4_OUT_OF_MEMORY);
  CHECK(q4_runtime_trim(runtime) == Q4_OK);
  CHECK(q4_matrix_restore(runtime, matrix) == Q4_OK);  // not in place: nothing happens
  CHECK(q4_matrix_unpack(runtime, matrix, &to) == Q4_OK);
  REQUIRE(q4_matrix_destroy(runtime, matrix) == Q4_OK);
  q4_runtime_destroy(runtime);
  CHECK(pool.bytes == 0);
}

}  // namespace
}  // namespace q4::test
