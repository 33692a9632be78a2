// Slices and fused matrices against the whole ones: the weights bit for bit, and the sums and concatenations over ranks.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <q4/q4.hpp>
#include <set>

#include "checkpoint_maker.hpp"
#include "format_maker.hpp"
#include "interpreted.hpp"
#include "reference.hpp"
#include "whole.hpp"

namespace q4::test {
namespace {

/// First row and column of a slice in the whole, and how much of it is padding; without Slice's own arithmetic.
struct Window {
  std::int64_t first = 0, count = 0, padding = 0;
};
Window window(std::int64_t extent, std::int64_t unit, int rank, int world) {
  std::vector<std::int64_t> owned;  // units of this rank, dealt out in order
  const std::int64_t units = extent / unit;
  std::int64_t each = 0;
  while (each * world < units) ++each;
  for (std::int64_t u = 0; u < units; ++u)
    if (u / each == rank) owned.push_back(u);
  const auto have = static_cast<std::int64_t>(owned.size());
  return {owned.empty() ? 0 : owned[0] * unit, have * unit, (each - have) * unit};
}

bool same_weights(const PlainMatrix& part, const PlainMatrix& whole, const Window& rows, const Window& columns) {
  if (part.k != rows.count + rows.padding || part.n != columns.count + columns.padding) return false;
  bool same = true;
  for (std::int64_t r = 0; r < part.k; ++r) {
    for (std::int64_t c = 0; c < part.n; ++c) {
      const bool inside = r < rows.count && c < columns.count;
      same &= part.weight(r, c) == (inside ? whole.weight(rows.first + r, columns.first + c) : 0.0);
    }
  }
  return same;
}

HostRows columns_of(const HostRows& x, const Window& rows) {
  HostRows part(x.dtype(), x.rows(), rows.count + rows.padding);
  for (std::int64_t r = 0; r < x.rows(); ++r)
    for (std::int64_t c = 0; c < part.cols(); ++c)
      part.set(r, c, c < rows.count ? x.at(r, rows.first + c) : 3.5);  // what padding multiplies does not matter
  return part;
}

struct Loads {
  std::int64_t k, n;
  PlainMatrix whole;
  std::function<QuantizedMatrix(const Slice&)> load;
};

/// All ranks: the weights, and the result from the parts. `multiply`: on a device that computes in fp32.
void check_ranks(const Loads& of, Slice slice, bool multiply = true) {
  const bool by_rows = slice.along == Slice::Along::kRows;
  const HostRows x = random_rows(DType::kF32, 2, of.k);
  std::vector<double> sum(static_cast<std::size_t>(2 * of.n));
  for (slice.rank = 0; slice.rank < slice.world; ++slice.rank) {
    INFO((by_rows ? "rows " : "columns "), slice.rank, " of ", slice.world, " in units of ", slice.unit);
    const Window part = window(by_rows ? of.k : of.n, slice.unit, slice.rank, slice.world);
    const Window rows = by_rows ? part : Window{0, of.k, 0}, columns = by_rows ? Window{0, of.n, 0} : part;
    const QuantizedMatrix matrix = of.load(slice);
    const PlainMatrix plain = plain_of(matrix);
    REQUIRE(same_weights(plain, of.whole, rows, columns));
    const bool bias_here = !of.whole.bias.empty() && (!by_rows || slice.rank == 0);
    REQUIRE(matrix.has_bias() == bias_here);
    for (std::int64_t c = 0; bias_here && c < columns.count; ++c)
      REQUIRE(plain.bias[static_cast<std::size_t>(c)] == of.whole.bias[static_cast<std::size_t>(columns.first + c)]);
    if (!multiply) continue;
    const std::vector<double> out = multiplied(quiet(), matrix, columns_of(x, rows));
    for (std::int64_t m = 0; m < 2; ++m)
      for (std::int64_t c = 0; c < columns.count; ++c)
        sum[static_cast<std::size_t>(m * of.n + columns.first + c)] +=
            out[static_cast<std::size_t>(m * (columns.count + columns.padding) + c)];
  }
  if (multiply) CHECK(distance(sum, product(x, of.whole)) <= tolerance(DType::kF32));
}

MatrixSpec random_spec(Random& random) {
  constexpr std::int64_t kGroups[] = {-1, 8, 16, 24, 32, 48, 64, 128};
  MatrixSpec spec;
  spec.k = 8 * (1 + random.below(48)), spec.n = 8 * (1 + random.below(24));
  spec.group_size = kGroups[random.below(8)];
  if (spec.group_size > spec.k) spec.group_size = -1;
  spec.act_order = static_cast<ActOrder>(random.below(4));
  spec.zeros = random.below(2) ? ZeroFormat::kV1 : ZeroFormat::kV2;
  spec.stored_zeros = random.below(3) ? StoredZeros::kRandom : StoredZeros::kSymmetric;
  spec.bias = random.below(2);
  spec.seed = random.bits();
  return spec;
}

TEST_CASE("slices: ranks together are the whole, whatever the shape") {
  Random random(20);
  int cases[3] = {};
  for (int i = 0; i < 120; ++i) {
    const MatrixSpec spec = random_spec(random);
    CAPTURE(i);
    CAPTURE(spec.k);
    CAPTURE(spec.n);
    CAPTURE(spec.group_size);
    CAPTURE(static_cast<int>(spec.act_order));
    const GptqMatrix gptq = make_gptq(spec);
    Slice slice = random.below(2) ? Slice::rows(0, 0) : Slice::columns(0, 0);
    slice.world = static_cast<int>(1 + random.below(5));
    const std::int64_t extent = slice.along == Slice::Along::kRows ? spec.k : spec.n;
    slice.unit = extent % 16 == 0 && random.below(2) ? 16 : 8;
    slice.pad = extent / slice.unit % slice.world != 0;
    const auto load_gptq = [&](const Slice& s) {
      return QuantizedMatrix::from_gptq(quiet(), {}, gptq.tensors(), {.slice = s});
    };
    check_ranks({spec.k, spec.n, unpack(gptq.tensors()), load_gptq}, slice);
    ++cases[slice.pad];
    if (spec.act_order != ActOrder::kNone) continue;
    const AwqMatrix awq = to_awq(gptq);
    const auto load_awq = [&](const Slice& s) {
      return QuantizedMatrix::from_awq(quiet(), {}, awq.tensors(), {.slice = s});
    };
    check_ranks({spec.k, spec.n, unpack(awq.tensors()), load_awq}, slice);
    ++cases[2];
  }
  CHECK(cases[0] > 20);
  CHECK(cases[1] > 20);
  CHECK(cases[2] > 20);
}

TEST_CASE("slices: of every format of checkpoints") {
  const std::string name = "model.layers.0.self_attn.o_proj";
  for (const MadeFormat& made : made_formats(name)) {
    INFO(made.name);
    const TempFolder folder;
    write_safetensors(folder / "model.safetensors", made.tensors);
    write_file(folder / "config.json", R"({"quantization_config":)" + made.config + "}");
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    const auto load = [&](const Slice& s) { return checkpoint.load(quiet(), {}, name, {.slice = s}); };
    const Loads of{made.want.k, made.want.n, made.want, load};
    for (const int world : {2, 4}) {
      check_ranks(of, Slice::columns(0, world));
      check_ranks(of, Slice::rows(0, world));
    }
    Slice uneven = Slice::rows(0, 3);
    uneven.pad = true;
    check_ranks(of, uneven);
    check_ranks(of, Slice::heads(0, 3, 64));
    const QuantizedMatrix shared = load(Slice::heads(4, 6, 64));  // 3 heads, 6 ranks
    CHECK(same_weights(plain_of(shared), made.want, {0, 128, 0}, {128, 64, 0}));
    // q of 2 heads, k and v of one half each, in one matrix.
    const QuantizedMatrix qkv = load(Slice::heads(1, 2, 32, {2, 2, 2}));
    const PlainMatrix parts = plain_of(qkv);
    REQUIRE(parts.n == 96);
    bool same = true;
    for (std::int64_t r = 0; r < parts.k; ++r)
      for (std::int64_t c = 0; c < 96; ++c)
        same &= parts.weight(r, c) == made.want.weight(r, c / 32 * 64 + 32 + c % 32);
    CHECK(same);
  }
}

TEST_CASE("slices: rows of act-order keep only the groups that they belong to") {
  const GptqMatrix source = make_gptq({.k = 512, .n = 64, .group_size = 32, .act_order = ActOrder::kUneven});
  const auto half = QuantizedMatrix::from_gptq(quiet(), {}, source.tensors(), {.slice = Slice::rows(1, 2)});
  const PlainMatrix whole = unpack(source.tensors());
  std::set<std::int32_t> used(whole.group.begin() + 256, whole.group.end());
  CHECK(half.act_order());
  CHECK(half.groups() == static_cast<std::int64_t>(used.size()));
  // Rows that cut a group of 128 in two become groups of 64, in order: nothing is gathered.
  const GptqMatrix plain = make_gptq({.k = 384, .n = 64});
  const auto middle = QuantizedMatrix::from_gptq(quiet(), {}, plain.tensors(), {.slice = Slice::rows(1, 2)});
  CHECK(middle.group_size() == 64);
  CHECK(!middle.act_order());
}

TEST_CASE("slices: a v1 matrix is told by all of its zeros, also where a slice has nothing but 8") {
  GptqMatrix source = make_gptq({.k = 128, .n = 64, .stored_zeros = StoredZeros::kSymmetric});
  for (auto& word : source.qzeros) word = 0x88888888u;
  source.qzeros.back() = 0x98888888u;
  GptqTensors tensors = source.tensors();
  tensors.zeros = ZeroFormat::kAuto;
  for (const int rank : {0, 1}) {
    const auto matrix = QuantizedMatrix::from_gptq(quiet(), {}, tensors, {.slice = Slice::columns(rank, 2)});
    CHECK(matrix.zeros() == ZeroFormat::kV1);
  }
}

TEST_CASE("slices: bad ones are errors that name the value and the remedy") {
  const GptqMatrix source = make_gptq({.k = 256, .n = 64});
  const auto error = [&](const Slice& slice) {
    return error_of([&] { QuantizedMatrix::from_gptq(quiet(), {}, source.tensors(), {.slice = slice}); });
  };
  const auto says = [&](const Slice& slice, const std::string& text) {
    CHECK_MESSAGE(error(slice).find(text) != std::string::npos, error(slice));
  };
  says(Slice::columns(2, 2), "slice.rank = 2 is outside [0, slice.world = 2)");
  says(Slice::rows(-1, 2), "slice.rank = -1");
  says(Slice::rows(0, 0), "slice.world = 0");
  says(Slice::rows(0, 3), "k = 256 in units of 8 makes 32 units, which 3 ranks cannot share evenly: set slice.pad");
  says(Slice::columns(0, 16), "n = 64 in units of 8 makes 8 units, which 16 ranks");
  says(Slice::heads(0, 2, 48), "slice.unit = 48 does not divide n = 64");
  says(Slice::heads(0, 3, 32), "slice.world = 3 ranks cannot share 2 units of 32 columns evenly");
  says(Slice::heads(0, 2, 16, {2, 1}), "slice.parts add up to 48, but n = 64");
  says(Slice::heads(0, 2, 12), "slice.unit = 12 must be a positive multiple of 8");
  Slice rows = Slice::rows(0, 64);
  rows.share = true;
  says(rows, "shared rows would be summed twice");
  rows = Slice::rows(0, 2);
  rows.parts = {128, 128};
  says(rows, "matrices are fused by columns");
}

TEST_CASE("slices: on an interpreted GPU") {
  const auto info = device("gfx90a");
  if (!info) return;
  const GptqMatrix source = make_gptq({.k = 256, .n = 192, .group_size = 32, .bias = true});
  const auto load = [&](const Slice& s) {
    return QuantizedMatrix::from_gptq(interpreted(), info->device, source.tensors(), {.slice = s});
  };
  check_ranks({256, 192, unpack(source.tensors()), load}, Slice::columns(0, 3), false);
  check_ranks({256, 192, unpack(source.tensors()), load}, Slice::rows(0, 4), false);
}

TEST_CASE("slices: two processes each load and multiply their half, and the halves add up") {
  const TempFolder folder;
  const auto made = make_checkpoint(folder.path(), {.matrix = {.k = 256, .n = 512, .act_order = ActOrder::kPermuted}});
  const MadeMatrix& down =
      *std::find_if(made.begin(), made.end(), [](const MadeMatrix& m) { return m.name.ends_with("down_proj"); });
  const HostRows x = random_rows(DType::kF32, 3, 512);
  std::vector<double> sum(3 * 256);
  std::array<std::array<int, 2>, 2> pipes{};
  std::array<::pid_t, 2> children{};
  for (int rank = 0; rank < 2; ++rank) {
    auto& ends = pipes[static_cast<std::size_t>(rank)];
    REQUIRE(::pipe(ends.data()) == 0);
    children[static_cast<std::size_t>(rank)] = ::fork();
    if (children[static_cast<std::size_t>(rank)] != 0) continue;
    int status = 1;
    try {
      const Runtime runtime;
      const auto half = Checkpoint::open(folder.path()).load(runtime, {}, down.name, {.slice = Slice::rows(rank, 2)});
      const auto out = multiplied(runtime, half, columns_of(x, {rank * 256, 256, 0}));
      const auto bytes = static_cast<::ssize_t>(out.size() * sizeof out[0]);
      if (::write(ends[1], out.data(), static_cast<std::size_t>(bytes)) == bytes) status = 0;
    } catch (const std::exception& error) { std::fprintf(stderr, "rank %d: %s\n", rank, error.what()); }
    ::_exit(status);
  }
  for (std::size_t rank = 0; rank < 2; ++rank) {
    ::close(pipes[rank][1]);
    std::vector<double> part(sum.size());
    std::size_t got = 0;
    while (got < part.size() * 8) {
      const auto count = ::read(pipes[rank][0], reinterpret_cast<char*>(part.data()) + got, part.size() * 8 - got);
      if (count <= 0) break;
      got += static_cast<std::size_t>(count);
    }
    ::close(pipes[rank][0]);
    int status = 0;
    ::waitpid(children[rank], &status, 0);
    REQUIRE(status == 0);
    REQUIRE(got == part.size() * 8);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  }
  CHECK(distance(sum, product(x, unpack(down.gptq.tensors()))) <= tolerance(DType::kF32));
}

}  // namespace
}  // namespace q4::test
