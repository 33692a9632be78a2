// The handle table of the C ABI, from many threads.
#include "runtime/base/handles.hpp"

#include <doctest/doctest.h>
#include <memory>
#include <set>
#include <thread>

namespace q4::test {
namespace {

TEST_CASE("handles from many threads are distinct, found, and dead once removed") {
  HandleTable<std::shared_ptr<int>> table(0xfffffff0u);  // the generations wrap on the way
  std::vector<std::vector<std::uint64_t>> kept(4);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 3000; ++i) {
        const auto id = table.add(std::make_shared<int>(t * 10000 + i));
        const auto* found = table.find(id);
        if (!found || **found != t * 10000 + i) ++wrong;
        std::shared_ptr<int> last;
        if (i % 3 == 0)
          kept[t].push_back(id);
        else if (!table.remove(id, last) || *last != t * 10000 + i || table.find(id) || table.remove(id, last))
          ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  std::set<std::uint64_t> all;
  for (const auto& ids : kept)
    for (const auto id : ids) {
      all.insert(id);
      CHECK(table.find(id) != nullptr);
      CHECK((id >> 32) != 0);
      CHECK(table.issued(id));
    }
  CHECK(all.size() == 4000);
  CHECK_FALSE(table.issued(std::uint64_t{0xffffffefu} << 32));
}

}  // namespace
}  // namespace q4::test
