// Rows times dense matrices that pointers name: the kernel in emulation, and every device, against fp64.
#include <doctest/doctest.h>

#include "kernels/segments.h"
#include "on_device.hpp"
#include "reference.hpp"
#include "runtime/choose/sources.hpp"
#include "tests/emulation/emulation.hpp"

namespace q4::test {
namespace {

/// Rows, matrices of two layers, and which rows have which.
struct SegmentCase {
  static constexpr std::int64_t kLayers = 2, kLayer = 1;
  std::int64_t m, in, out;
  bool transposed, segments;
  DType type = DType::kF16;
  HostRows x = random_rows(type, m, in, 3), y = random_rows(type, m, out, 4);
  std::vector<HostRows> w;
  std::vector<std::int64_t> indices;
  std::vector<std::int32_t> begin, end;

  SegmentCase(std::int64_t m, std::int64_t in, std::int64_t out, bool transposed, bool segments, DType type)
      : m(m), in(in), out(out), transposed(transposed), segments(segments), type(type) {
    for (int i = 0; i < 3; ++i)
      w.push_back(random_rows(type, kLayers * (transposed ? out : in), transposed ? in : out, 5 + i));
    for (std::int64_t r = 0; r < m; ++r) indices.push_back(r % 5 - 1);  // -1, and 3 past the last
    begin = {0, static_cast<std::int32_t>(m / 3), static_cast<std::int32_t>(m / 2)};
    end = {static_cast<std::int32_t>(m / 3), static_cast<std::int32_t>(m / 3), static_cast<std::int32_t>(m - m / 6)};
  }
  std::int64_t matrix_of(std::int64_t row) const {
    if (!segments) return indices[static_cast<std::size_t>(row)];
    for (std::size_t s = 0; s < begin.size(); ++s)
      if (row >= begin[s] && row < end[s]) return static_cast<std::int64_t>(s);
    return -1;
  }
  std::vector<double> expected() const {
    std::vector<double> all;
    for (std::int64_t r = 0; r < m; ++r)
      for (std::int64_t o = 0; o < out; ++o) {
        const std::int64_t i = matrix_of(r);
        double sum = 0;
        for (std::int64_t j = 0; i >= 0 && i < 3 && j < in; ++j)
          sum += x.at(r, j) * (transposed ? w[static_cast<std::size_t>(i)].at(kLayer * out + o, j)
                                          : w[static_cast<std::size_t>(i)].at(kLayer * in + j, o));
        all.push_back(y.at(r, o) + 0.5 * sum);
      }
    return all;
  }
  SegmentCall call() const {
    SegmentCall c;
    c.type = type, c.transposed = transposed;
    c.m = m, c.in = in, c.out = out, c.layer = kLayer, c.count = 3, c.scale = 0.5f;
    return c;
  }
};

template <SegmentConfig C>
double emulated_error(std::int64_t m, std::int64_t in, std::int64_t out) {
  SegmentCase test(m, in, out, C.transposed != 0, C.rows > 1, C.bf16 ? DType::kBF16 : DType::kF16);
  std::vector<const u16*> w;
  for (const HostRows& rows : test.w) w.push_back(static_cast<const u16*>(rows.data()));
  const auto expected = test.expected();
  SegmentArgs args{static_cast<u16*>(test.y.data()),
                   static_cast<const u16*>(test.x.data()),
                   w.data(),
                   reinterpret_cast<const i64*>(test.indices.data()),
                   test.begin.data(),
                   test.end.data(),
                   m,
                   in,
                   out,
                   SegmentCase::kLayer,
                   3,
                   0.5f};
  emulation::emulate({.grid = grid(C, m, out), .threads = kSegmentThreads, .shared_bytes = 0},
                     [&] { segments<C>(args); });
  return relative_error(test.y, expected);
}

TEST_CASE("segments: rows and segments, either order of W, sizes that are no multiple of 8") {
  const double most = tolerance(DType::kF16);
  CHECK(emulated_error<SegmentConfig{.transposed = 1, .lanes = 32}>(6, 264, 16) <= most);
  CHECK(emulated_error<SegmentConfig{.transposed = 1, .lanes = 2}>(6, 16, 264) <= most);
  CHECK(emulated_error<SegmentConfig{.transposed = 1, .vec = 1, .lanes = 16, .rows = 8}>(20, 30, 7) <= most);
  CHECK(emulated_error<SegmentConfig{.vec = 8, .rows = 8}>(20, 16, 264) <= most);
  CHECK(emulated_error<SegmentConfig{.vec = 8, .lanes = 32, .rows = 8}>(9, 264, 8) <= most);
  CHECK(emulated_error<SegmentConfig{.bf16 = 1, .vec = 1, .rows = 8}>(17, 5, 33) <= tolerance(DType::kBF16));
}

TEST_CASE("segments: every device") {
  for (const auto& info : ready_devices()) {
    const auto backend = shared_runtime().impl().open(info.device);
    const auto upload = [&](const void* from, std::size_t bytes) {
      Buffer to(backend, bytes);
      backend->copy(to.get(), from, bytes, CopyKind::kToDevice);
      return to;
    };
    for (const bool transposed : {false, true})
      for (const bool segments : {false, true})
        for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{512, 16}, {16, 520}, {21, 13}, {300, 8}}) {
          SegmentCase test(37, in, out, transposed, segments, in == 16 ? DType::kBF16 : DType::kF16);
          std::vector<Buffer> w;
          std::vector<const void*> pointers;
          for (const HostRows& rows : test.w)
            pointers.push_back(w.emplace_back(upload(rows.data(), rows.bytes())).get());
          SegmentCall call = test.call();
          const Buffer x = upload(test.x.data(), test.x.bytes()), y = upload(test.y.data(), test.y.bytes()),
                       table = upload(pointers.data(), pointers.size() * sizeof(void*)),
                       indices = upload(test.indices.data(), test.indices.size() * 8),
                       begin = upload(test.begin.data(), 12), end = upload(test.end.data(), 12);
          call.x = x.get(), call.y = y.get(), call.w = table.get();
          if (segments)
            call.begin = begin.as<const std::int32_t>(), call.end = end.as<const std::int32_t>();
          else
            call.indices = indices.as<const std::int64_t>();
          const auto expected = test.expected();
          backend->multiply_segments(nullptr, call);
          backend->synchronize();
          backend->copy(test.y.data(), y.get(), test.y.bytes(), CopyKind::kToHost);
          CAPTURE(info.device.str());
          CAPTURE(in);
          CHECK(relative_error(test.y, expected) <= tolerance(test.type));
        }
  }
}

}  // namespace
}  // namespace q4::test
