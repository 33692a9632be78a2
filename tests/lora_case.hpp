// Random adapters, which rows they belong to, and what they add in fp64.
#pragma once

#include <cstdint>
#include <vector>

#include "reference.hpp"

namespace q4::test {

struct LoraCase {
  std::int64_t k = 0, n = 0;
  DType type = DType::kF16;
  std::vector<HostRows> a, b;  ///< [rank, k] and [n, rank]
  std::vector<float> scales;

  LoraCase(std::int64_t k, std::int64_t n, DType type, const std::vector<int>& ranks, std::uint64_t seed = 3)
      : k(k), n(n), type(type) {
    for (std::size_t i = 0; i < ranks.size(); ++i) {
      a.push_back(random_rows(type, ranks[i], k, seed + 2 * i));
      b.push_back(random_rows(type, n, ranks[i], seed + 2 * i + 1));
      scales.push_back(0.02f * static_cast<float>(i + 1));
    }
  }
  int adapters() const { return static_cast<int>(a.size()); }

  /// Of each row: one for all where m is a multiple of 3, else any, none and numbers outside the table too; none in the
  /// first 130 where m is a multiple of 7.
  std::vector<std::int32_t> rows(std::int64_t m) const {
    std::vector<std::int32_t> all;
    for (std::int64_t r = 0; r < m; ++r)
      all.push_back(m % 3 == 0              ? adapters() - 1
                    : m % 7 == 0 && r < 130 ? -1
                                            : static_cast<std::int32_t>(r * 7 % (adapters() + 3)) - 1);
    return all;
  }

  /// sums [m, n] += scale (x A^T) B^T, each row by its adapter; `skip`: one that is not there.
  void add(std::vector<double>& sums, const HostRows& x, const std::vector<std::int32_t>& rows, int skip = -1) const {
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      const int i = rows[static_cast<std::size_t>(r)];
      if (i < 0 || i >= adapters() || i == skip) continue;
      const auto at = static_cast<std::size_t>(i);
      for (std::int64_t rank = 0; rank < a[at].rows(); ++rank) {
        double low = 0;
        for (std::int64_t j = 0; j < k; ++j) low += x.at(r, j) * a[at].at(rank, j);
        for (std::int64_t c = 0; c < n; ++c)
          sums[static_cast<std::size_t>(r * n + c)] += double{scales[at]} * low * b[at].at(c, rank);
      }
    }
  }
};

}  // namespace q4::test
