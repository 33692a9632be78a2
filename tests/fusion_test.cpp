// Matrices of one input loaded as one: the weights bit for bit, and what is refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <q4/q4.hpp>

#include "checkpoint_maker.hpp"
#include "interpreted.hpp"
#include "on_device.hpp"
#include "reference.hpp"
#include "whole.hpp"

namespace q4::test {
namespace {

/// q, k and v of one input with their own zeros, biases and scales.
struct Attention {
  GptqMatrix q, k, v;
  explicit Attention(ActOrder order)
      : q(make_gptq({.k = 256, .n = 136, .group_size = 64, .act_order = order, .bias = true, .seed = 3})),
        k(make_gptq({.k = 256, .n = 48, .group_size = 64, .zeros = ZeroFormat::kV2, .seed = 4})),
        v(make_gptq({.k = 256, .n = 48, .group_size = 64, .bias = true, .seed = 5})) {
    k.g_idx = v.g_idx = q.g_idx;
  }
  std::vector<GptqTensors> tensors() const { return {q.tensors(), k.tensors(), v.tensors()}; }
  bool in(const PlainMatrix& fused) const {
    bool same = fused.n == 232;
    std::int64_t column = 0;
    for (const GptqTensors& part : tensors()) {
      const PlainMatrix plain = unpack(part);
      for (std::int64_t c = 0; c < plain.n; ++c, ++column) {
        for (std::int64_t r = 0; r < plain.k; ++r) same &= fused.weight(r, column) == plain.weight(r, c);
        const auto at = static_cast<std::size_t>(column);
        same &= fused.bias[at] == (plain.bias.empty() ? 0.0 : plain.bias[static_cast<std::size_t>(c)]);
      }
    }
    return same;
  }
};

TEST_CASE("fusion: matrices of one input stand side by side, on every device") {
  for (const ActOrder order : {ActOrder::kNone, ActOrder::kPermuted, ActOrder::kUneven}) {
    const Attention attention(order);
    for (const auto& info : ready_devices()) {
      const auto fused = QuantizedMatrix::fuse_gptq(shared_runtime(), info.device, attention.tensors());
      CHECK(attention.in(plain_of(fused)));
      CHECK(fused.act_order() == (order != ActOrder::kNone));
    }
    const HostRows x = random_rows(DType::kF32, 3, 256);
    const auto fused = QuantizedMatrix::fuse_gptq(quiet(), {}, attention.tensors());
    CHECK(distance(multiplied(quiet(), fused, x), product(x, plain_of(fused))) <= tolerance(DType::kF32));
  }
  const GptqMatrix a = make_gptq({.k = 128, .n = 40, .seed = 8}), b = make_gptq({.k = 128, .n = 64, .seed = 9});
  const AwqMatrix awq[] = {to_awq(a), to_awq(b)};
  const std::vector<AwqTensors> both = {awq[0].tensors(), awq[1].tensors()};
  const PlainMatrix fused = plain_of(QuantizedMatrix::fuse_awq(quiet(), {}, both));
  CHECK(fused.n == 104);
  CHECK(fused.weight(77, 39) == unpack(both[0]).weight(77, 39));
  CHECK(fused.weight(77, 40) == unpack(both[1]).weight(77, 0));
  CHECK(fused.weight(127, 103) == unpack(both[1]).weight(127, 63));
}

TEST_CASE("fusion: on an interpreted GPU") {
  const auto info = device("gfx90a");
  if (!info) return;
  const Attention attention(ActOrder::kPermuted);
  CHECK(attention.in(plain_of(QuantizedMatrix::fuse_gptq(interpreted(), info->device, attention.tensors()))));
}

TEST_CASE("fusion: gates and ups, whole and sliced, for an activation that multiplies them") {
  const GptqMatrix gate = make_gptq({.k = 256, .n = 64, .bias = true, .seed = 3}),
                   up = make_gptq({.k = 256, .n = 64, .seed = 4});
  const std::vector<GptqTensors> both = {gate.tensors(), up.tensors()};
  const PlainMatrix g = unpack(both[0]), u = unpack(both[1]);
  const HostRows x = random_rows(DType::kF32, 3, 256);
  const auto gates = product(x, g), ups = product(x, u);
  for (const int world : {1, 2}) {
    for (int rank = 0; rank < world; ++rank) {
      const auto fused =
          QuantizedMatrix::fuse_gptq(quiet(), {}, both, {.slice = Slice::columns(rank, world), .gate_up = true});
      CHECK(fused.gate_up());
      const std::int64_t n = 64 / world;
      CHECK(plain_of(fused).weight(9, n + 5) == u.weight(9, rank * n + 5));
      HostRows out(DType::kF32, 3, n);
      PlanOptions options{.max_m = 3, .activation = DType::kF32};
      options.epilogue.activation = Activation::kSiluMul;
      MatmulPlan(quiet(), fused, options).run({}, {x.data()}, {out.data()}, 3);
      std::vector<double> want;
      for (std::int64_t m = 0; m < 3; ++m)
        for (std::int64_t c = rank * n; c < (rank + 1) * n; ++c) {
          const auto at = static_cast<std::size_t>(m * 64 + c);
          want.push_back(gates[at] / (1 + std::exp(-gates[at])) * ups[at]);
        }
      CHECK(relative_error(out, want) <= tolerance(DType::kF32));
    }
  }
  const auto error = [&](const std::vector<GptqTensors>& tensors, const MatrixOptions& options) {
    return error_of([&] { QuantizedMatrix::fuse_gptq(quiet(), {}, tensors, options); });
  };
  CHECK(error({both[0], both[1], both[1]}, {.gate_up = true}).find("3 matrices are given") != std::string::npos);
  CHECK(error({both[0], make_gptq({.k = 256, .n = 128}).tensors()}, {.gate_up = true})
            .find("the gates have 64 columns") != std::string::npos);
  CHECK(error({both[0]}, {.slice = Slice::columns(0, 2), .gate_up = true}).find("slice.parts does not say") !=
        std::string::npos);
}

TEST_CASE("fusion: what does not fit is an error that says so, or separate matrices") {
  Attention attention(ActOrder::kPermuted);
  const auto fuse = [&](const std::vector<GptqTensors>& tensors) {
    return error_of([&] { QuantizedMatrix::fuse_gptq(quiet(), {}, tensors); });
  };
  const auto has = [](const std::string& error, const std::string& text) {
    CHECK_MESSAGE(error.find(text) != std::string::npos, error);
  };
  std::swap(attention.v.g_idx[3], attention.v.g_idx[200]);
  has(fuse(attention.tensors()), "unsupported: QuantizedMatrix::fuse_gptq: matrix 3 of 3: its g_idx differs");
  attention.v.g_idx.clear();
  has(fuse(attention.tensors()), "matrix 3 of 3: it has no act-order, the first has act-order");
  const GptqMatrix other = make_gptq({.k = 256, .n = 64, .group_size = 128});
  has(fuse({make_gptq({.k = 256, .n = 64, .group_size = 64}).tensors(), other.tensors()}),
      "unsupported: QuantizedMatrix::fuse_gptq: matrix 2 of 2: 2 groups of 128 rows, the first has 4 of 64");
  has(fuse({make_gptq({.k = 128, .n = 64}).tensors(), other.tensors()}), "k = 256, that of the first is 128");
  has(fuse({}), "no tensors are given");
  GptqTensors broken = other.tensors();
  broken.scales.cols = 32;
  has(fuse({other.tensors(), broken}), "matrix 2 of 2: scales has shape");
}

TEST_CASE("fusion: from a checkpoint, whole and sliced, with an error or separate matrices where g_idx differ") {
  const TempFolder folder;
  Attention attention(ActOrder::kPermuted);
  std::vector<FileTensor> tensors;
  const std::vector<std::pair<std::string, const GptqMatrix*>> parts = {
      {"l.q_proj", &attention.q}, {"l.k_proj", &attention.k}, {"l.v_proj", &attention.v}};
  GptqMatrix other = attention.v;
  std::reverse(other.g_idx.begin(), other.g_idx.end());
  for (const auto& [name, matrix] : parts)
    for (auto& tensor : file_tensors(name, *matrix)) tensors.push_back(std::move(tensor));
  for (auto& tensor : file_tensors("l.other", other)) tensors.push_back(std::move(tensor));
  write_safetensors(folder / "model.safetensors", tensors);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  // Nothing says v2 of k_proj, so it is read as v1, like the others.
  attention.k.spec.zeros = ZeroFormat::kV1;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> progress;
  LoadOptions options;
  options.progress = [&](std::uint64_t done, std::uint64_t total) { progress.emplace_back(done, total); };
  const auto fused = checkpoint.load(quiet(), {}, {"l.q_proj", "l.k_proj", "l.v_proj"}, options);
  CHECK(attention.in(plain_of(fused)));
  REQUIRE(progress.size() == 2);
  CHECK(progress[0].first == 0);
  CHECK(progress[1].first == progress[1].second);
  CHECK(progress[1].second ==
        checkpoint.find("l.q_proj").bytes + checkpoint.find("l.k_proj").bytes + checkpoint.find("l.v_proj").bytes);

  const auto half = checkpoint.load(quiet(), {}, {"l.k_proj", "l.v_proj"}, {.slice = Slice::columns(1, 2)});
  const PlainMatrix k = unpack(attention.k.tensors()), v = unpack(attention.v.tensors()), plain = plain_of(half);
  REQUIRE(plain.n == 48);
  CHECK(plain.weight(100, 5) == k.weight(100, 29));
  CHECK(plain.weight(100, 30) == v.weight(100, 30));

  const std::vector<std::string> names = {"l.q_proj", "l.other"};
  const std::string error = error_of([&] { checkpoint.load(quiet(), {}, names); });
  CHECK_MESSAGE(error.find("its g_idx differs from the first's") != std::string::npos, error);
  CHECK_MESSAGE(error.find("(l.q_proj, l.other of ") != std::string::npos, error);
  const auto separate = checkpoint.load_together(quiet(), {}, names);
  REQUIRE(separate.size() == 2);
  CHECK(separate[1].n() == 48);
  CHECK(checkpoint.load_together(quiet(), {}, {"l.k_proj", "l.v_proj"}).size() == 1);
  CHECK(error_of([&] { checkpoint.load(quiet(), {}, std::vector<std::string>()); }).find("names is empty") !=
        std::string::npos);
  CHECK(checkpoint.load_all(quiet(), {}).size() == 4);
}

}  // namespace
}  // namespace q4::test
