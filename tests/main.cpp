// Runs the tests of one binary; the last line says what happened, for people and for CTest.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <cstdio>
#include <vector>

#include "report.hpp"

namespace q4::test {
namespace {
std::vector<std::string>& skips() {
  static std::vector<std::string> list;
  return list;
}
}  // namespace

void skip(const std::string& reason) { skips().push_back(reason); }

}  // namespace q4::test

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  if (context.shouldExit()) return result;
  const auto& skips = q4::test::skips();
  for (const auto& reason : skips) std::printf("not run here: %s\n", reason.c_str());
  // CTest marks the entry by this line, so a failure must not say "skipped".
  std::printf("q4-tests %s\n", result != 0 ? "failed" : skips.empty() ? "passed" : "skipped");
  return result;
}
