// The tools as processes, each test in a folder of its own.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "paths.hpp"
#include "temp_folder.hpp"

namespace q4::test {

struct Ended {
  int status = -1;
  std::string out;  ///< stdout, and stderr where asked for
};

/// A sanitizer's report in what a process said is a finding, also where the process was to fail.
inline void check_no_report(const std::string& said) {
  for (const char* report : {"Sanitizer: ", "runtime error: "}) CHECK_MESSAGE(said.find(report) == said.npos, said);
}

class Sandbox {
 public:
  std::string file(const std::string& name) const { return folder_ / name; }
  std::string read(const std::string& name) const {
    std::ifstream in(file(name));
    return {std::istreambuf_iterator<char>(in), {}};
  }

  /// `command` starts with a tool's name. Its cache is in this folder.
  Ended run(const std::string& command, bool with_stderr = false, const std::string& wrapper = "") const {
    const TempFolder aside;
    const std::string error = aside / "error";
    const std::string line = wrapper + "env -u Q4_TUNING Q4_CACHE_DIR=" + file("cache") + " " + q4::test::binary_dir() +
                             "/bin/" + command + " 2>" + (with_stderr ? "&1" : error) + " </dev/null";
    Ended ended;
    FILE* pipe = ::popen(line.c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::array<char, 4096> buffer;
    for (std::size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;)
      ended.out.append(buffer.data(), n);
    const int status = ::pclose(pipe);
    ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    std::ifstream in(error);
    check_no_report(with_stderr ? ended.out : std::string(std::istreambuf_iterator<char>(in), {}));
    return ended;
  }

 private:
  TempFolder folder_;
};

}  // namespace q4::test
