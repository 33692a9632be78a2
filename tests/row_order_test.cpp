// Packed order: every source row once, groups whole, padding marked, and never much larger than the source.
#include "runtime/choose/row_order.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "reference.hpp"

using namespace q4;

namespace {

void check_order(const RowOrder& order, std::int64_t k, const std::vector<std::int32_t>& group_of_row) {
  REQUIRE(order.k % 128 == 0);
  REQUIRE(static_cast<std::int64_t>(order.source.size()) == order.k);
  REQUIRE(static_cast<std::int64_t>(order.group.size()) == (order.k + order.unit - 1) / order.unit);
  std::vector<int> seen(static_cast<std::size_t>(k), 0);
  for (std::int64_t p = 0; p < order.k; ++p) {
    const auto row = order.source[static_cast<std::size_t>(p)];
    if (row < 0) continue;
    ++seen[static_cast<std::size_t>(row)];
    CHECK(order.group[static_cast<std::size_t>(p / order.unit)] == group_of_row[static_cast<std::size_t>(row)]);
  }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
}

}  // namespace

TEST_CASE("row order: group sizes that are units keep rows where they are") {
  for (const std::int64_t group : {16, 32, 64, 128, 256, 384}) {
    const auto order = make_row_order(group * 5, group, 5, {});
    CHECK(order.identity);
    CHECK(order.unit == group);
    CHECK(order.k == (group * 5 + 127) / 128 * 128);
    for (std::size_t u = 0; u < order.group.size(); ++u) CHECK(order.group[u] == (u < 5 ? static_cast<int>(u) : -1));
  }
  const auto one = make_row_order(264, 264, 1, {});
  CHECK(one.identity);
  CHECK(one.unit == 384);
  CHECK(one.group == std::vector<std::int32_t>{0});
}

TEST_CASE("row order: other group sizes, and a shorter last group, are padded to units") {
  for (const auto& [k, group] : {std::pair{240, 8}, {240, 24}, {400, 40}, {1000, 200}, {200, 104}}) {
    const std::int64_t groups = (k + group - 1) / group;
    const auto order = make_row_order(k, group, groups, {});
    CHECK_FALSE(order.identity);
    std::vector<std::int32_t> expected;
    for (int r = 0; r < k; ++r) expected.push_back(r / group);
    check_order(order, k, expected);
    CHECK(order.k <= 2 * k + 128);
  }
}

TEST_CASE("row order: act-order sorts by group, stably, with groups of any size") {
  test::Random random(3);
  std::vector<std::int32_t> g_idx;
  for (int r = 0; r < 1000; ++r) g_idx.push_back(static_cast<std::int32_t>(random.below(9)));
  std::replace(g_idx.begin(), g_idx.end(), 4, 5);  // group 4 is empty
  const auto order = make_row_order(1000, 128, 9, g_idx);
  check_order(order, 1000, g_idx);
  std::vector<std::int32_t> last(9, -1);
  for (const auto row : order.source)
    if (row >= 0) {
      auto& previous = last[static_cast<std::size_t>(g_idx[static_cast<std::size_t>(row)])];
      CHECK(row > previous);
      previous = row;
    }
}

TEST_CASE("row order: one crowded group does not blow the packed weights up") {
  std::vector<std::int32_t> g_idx(4096, 7);
  for (int g = 0; g < 32; ++g) g_idx[static_cast<std::size_t>(g * 11)] = g;
  const auto order = make_row_order(4096, 128, 32, g_idx);
  check_order(order, 4096, g_idx);
  CHECK(order.k <= 4096 + 32 * 32 + 128);
}
