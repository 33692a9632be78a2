// Fused matrices and slices through the C ABI.
#include <doctest/doctest.h>

#include "capi_support.hpp"
#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

q4_slice slice_of(q4_along along, int rank, int world) {
  q4_slice slice = {};
  slice.size = sizeof slice, slice.along = along, slice.rank = rank, slice.world = world;
  return slice;
}

q4_matrix_info info_of(q4_runtime* runtime, q4_matrix matrix) {
  q4_matrix_info info = {};
  info.size = sizeof info;
  Q4_REQUIRE_OK(q4_matrix_get(runtime, matrix, &info));
  return info;
}

TEST_CASE_FIXTURE(Fixture, "capi: fused matrices and slices") {
  const q4_tensors* both[] = {&tensors.all, &tensors.all};
  q4_matrix made = 0;
  Q4_REQUIRE_OK(q4_matrix_fuse(runtime, kHere, both, 2, 0, nullptr, &made));
  CHECK(info_of(runtime, made).n == 2 * info_of(runtime, matrix).n);
  q4_slice slice = slice_of(Q4_ROWS, 1, 2);
  Q4_REQUIRE_OK(q4_matrix_fuse(runtime, kHere, both, 2, 0, &slice, &made));
  CHECK(info_of(runtime, made).k == info_of(runtime, matrix).k / 2);
  const std::int64_t parts[] = {32, 32};
  slice = slice_of(Q4_COLUMNS, 0, 2);
  slice.unit = 16, slice.parts = parts, slice.part_count = 2;
  Q4_REQUIRE_OK(q4_matrix_fuse(runtime, kHere, both, 1, 0, &slice, &made));
  CHECK(info_of(runtime, made).n == 32);
  rejects({"slice.parts is set, and 2 matrices are given"}, q4_matrix_fuse(runtime, kHere, both, 2, 0, &slice, &made));
  const AwqMatrix awq = to_awq(make_gptq({.k = 256, .n = 64}));
  CTensors plain;
  to_c(awq.tensors(), plain);
  const q4_tensors* two[] = {&plain.all, &plain.all};
  Q4_REQUIRE_OK(q4_matrix_fuse(runtime, kHere, two, 2, 1, nullptr, &made));
  CHECK(info_of(runtime, made).n == 128);

  rejects({"tensors is null"}, q4_matrix_fuse(runtime, kHere, nullptr, 2, 0, nullptr, &made));
  const q4_tensors* one_null[] = {&tensors.all, nullptr};
  rejects({"tensors is null"}, q4_matrix_fuse(runtime, kHere, one_null, 2, 0, nullptr, &made));
  slice = slice_of(Q4_COLUMNS, 2, 2);
  rejects({"slice.rank = 2"}, q4_matrix_fuse(runtime, kHere, both, 1, 0, &slice, &made));
  slice = slice_of(7, 0, 2);
  rejects({"slice.along", "7"}, q4_matrix_fuse(runtime, kHere, both, 1, 0, &slice, &made));
  slice = slice_of(Q4_COLUMNS, 0, 2);
  slice.part_count = 1;
  rejects({"slice.parts is null"}, q4_matrix_fuse(runtime, kHere, both, 1, 0, &slice, &made));
  slice.size = 3;
  rejects({"slice.size", "3"}, q4_matrix_fuse(runtime, kHere, both, 1, 0, &slice, &made));
}

TEST_CASE_FIXTURE(Fixture, "capi: fused matrices and slices of a checkpoint") {
  const TempFolder folder;
  make_checkpoint(folder.path(), {.matrix = {.k = 256, .n = 512}});
  q4_checkpoint checkpoint = 0;
  Q4_REQUIRE_OK(q4_checkpoint_open(runtime, folder.path().c_str(), &checkpoint));
  const std::string layer = "model.layers.0.", q = layer + "self_attn.q_proj", up = layer + "mlp.up_proj",
                    down = layer + "mlp.down_proj";
  const auto load = [&](std::vector<const char*> names, const q4_slice* slice, q4_matrix& made) {
    return q4_matrix_from_checkpoint_slice(runtime, kHere, checkpoint, names.data(), names.size(), Q4_ZEROS_AUTO, slice,
                                           &made);
  };
  q4_matrix made = 0;
  Q4_REQUIRE_OK(load({q.c_str(), up.c_str()}, nullptr, made));
  CHECK(info_of(runtime, made).n == 768);
  const q4_slice half = slice_of(Q4_COLUMNS, 1, 2);
  Q4_REQUIRE_OK(load({q.c_str(), up.c_str()}, &half, made));
  CHECK(info_of(runtime, made).n == 384);
  rejects({"k = 512", "256", up}, load({up.c_str(), down.c_str()}, nullptr, made));
  rejects({"names is null"}, load({}, nullptr, made));
  rejects({"names is null"}, load({nullptr}, nullptr, made));
}

TEST_CASE_FIXTURE(Fixture, "capi: numerics ids") {
  const auto id_of = [&](const q4_warmup_shape& shape, std::int64_t max_m) {
    q4_plan_options options = {};
    options.size = sizeof options, options.max_m = max_m;
    char text[32];
    size_t length = 0;
    Q4_REQUIRE_OK(q4_numerics_id(runtime, kHere, &shape, 1, &options, text, sizeof text, &length));
    CHECK(length == 16);
    return std::string(text);
  };
  q4_warmup_shape shape = {};
  shape.k = 256, shape.n = 64;
  const std::string id = id_of(shape, 4);
  CHECK(id == id_of(shape, 4));
  CHECK(id != id_of(shape, 8));
  shape.n = 128;
  CHECK(id != id_of(shape, 4));
  shape.k = 7;
  size_t length = 0;
  rejects({"k = 7"}, q4_numerics_id(runtime, kHere, &shape, 1, nullptr, nullptr, 0, &length));
  rejects({"shapes is null"}, q4_numerics_id(runtime, kHere, nullptr, 1, nullptr, nullptr, 0, &length));
}

}  // namespace
}  // namespace q4::test
