// runtime/base: jobs side by side, results with reasons, settings and their lists.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string>

#include "runtime/base/jobs.hpp"
#include "runtime/base/result.hpp"
#include "runtime/base/settings.hpp"

namespace q4 {
namespace {

TEST_CASE("run_jobs: each index once, on at most as many threads, none of them the caller's") {
  for (const std::size_t count : {0, 1, 5, 200})
    for (const std::size_t threads : {1, 3}) {
      std::vector<std::atomic<int>> done(count);
      std::atomic<int> active{0}, most{0}, here{0};
      const auto caller = std::this_thread::get_id();
      run_jobs(count, threads, [&](std::size_t i) {
        const int now = ++active;
        for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {}
        here += std::this_thread::get_id() == caller;
        ++done[i];
        --active;
      });
      for (const auto& times : done) CHECK(times == 1);
      CHECK(most <= static_cast<int>(threads));
      CHECK(here == 0);
    }
}

TEST_CASE("run_jobs: after an exception nothing more begins, and the smallest index's is thrown") {
  std::atomic<int> begun{0}, waiting{0};
  const auto fails = [&](std::size_t i) {
    ++begun;
    ++waiting;
    while (waiting < 2) std::this_thread::yield();  // both fail, in whatever order
    throw std::runtime_error(std::to_string(i));
  };
  CHECK_THROWS_WITH(run_jobs(1000, 2, fails), "0");
  CHECK(begun == 2);
}

TEST_CASE("Result: a value, or a reason") {
  const auto half = [](int n) -> Result<int> {
    if (n % 2) return Failure{"odd"};
    return n / 2;
  };
  CHECK(*half(4) == 2);
  CHECK_FALSE(half(3));
  CHECK(half(3).reason() == "odd");
  Result<std::string> text(std::string("text"));
  CHECK(*std::move(text) == "text");
  const auto allowed = [](bool yes) -> Result<void> {
    if (!yes) return Failure{""};
    return {};
  };
  CHECK(allowed(true));
  CHECK_FALSE(allowed(false));  // an empty reason is a failure as well
  CHECK(allowed(false).reason().empty());
}

TEST_CASE("settings: set, empty and not set; lists without their empty parts") {
  constexpr const char* kName = "Q4_TEST_OF_SETTINGS";
  ::unsetenv(kName);
  CHECK_FALSE(is_set(kName));
  CHECK(setting(kName).empty());
  CHECK(setting_list(kName).empty());
  ::setenv(kName, "", 1);
  CHECK(is_set(kName));
  CHECK(setting_list(kName).empty());
  ::setenv(kName, "::a:b::c/d:", 1);
  CHECK(setting(kName) == "::a:b::c/d:");
  CHECK(setting_list(kName) == std::vector<std::string>{"a", "b", "c/d"});
  ::unsetenv(kName);
}

}  // namespace
}  // namespace q4
