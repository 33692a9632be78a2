// What the tests of the cache share: folders that go away, keys and entries, processes of their own, the tools.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "paths.hpp"
#include "report.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "sandbox.hpp"
#include "temp_folder.hpp"

namespace q4::cache {

using test::TempFolder;

inline KernelKey numbered_key(int i) {
  return {fmt::format("kernel {}", i), fmt::format("source {}", i), "headers", "sm_90a", {}};
}
inline std::vector<char> numbered_code(int i, std::size_t bytes) {
  return std::vector<char>(bytes, static_cast<char>('a' + i % 26));
}
inline Compiled compiled(int i, std::size_t bytes) { return {numbered_code(i, bytes), "nvrtc 1", ""}; }

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Runs `body` in a process of its own, which exits with its result; 99: it threw.
template <class F>
pid_t start(const F& body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  int result = 99;
  try {
    result = body();
  } catch (const std::exception& error) { std::fprintf(stderr, "%s\n", error.what()); } catch (...) {
  }
  ::_exit(result);
}
inline int finish(pid_t child) {
  int status = -1;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct Ran {
  int status = 0;
  std::string out;  ///< with what it wrote to stderr
  /// The object that a tool with --json printed, after the progress on stderr.
  std::string json() const { return out.substr(std::min(out.find("{\n"), out.size())); }
};
/// One of the built tools: `q4-cache verify x`; `environment` is "A=b C=d".
inline Ran run_tool(const std::string& line, const std::string& environment = "") {
  const std::string command = "env " + environment + " " + q4::test::binary_dir() + "/bin/" + line + " 2>&1";
  Ran result;
  std::FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  char buffer[4096];
  for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) result.out.append(buffer, got);
  const int status = ::pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  test::check_no_report(result.out);
  return result;
}

}  // namespace q4::cache
