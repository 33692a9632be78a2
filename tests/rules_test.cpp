// The house's rules (which folder may include which, who may ask for the compiler, sizes, first lines), read from the
// sources.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "paths.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;

struct SourceFile {
  std::string path;  ///< from the root of the repository
  std::vector<std::string> lines;
  std::string text() const {
    std::string all;
    for (const auto& line : lines) all += line + "\n";
    return all;
  }
};

/// Every text file of ours under `folders`, whose path matches `pattern`.
std::vector<SourceFile> sources(const std::vector<std::string>& folders, const std::string& pattern) {
  const fs::path root = q4::test::source_dir();
  const std::regex wanted(pattern);
  std::vector<SourceFile> found;
  for (const auto& folder : folders) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string path = fs::relative(entry.path(), root).generic_string();
      if (!entry.is_regular_file() || !std::regex_search(path, wanted)) continue;
      SourceFile file{path, {}};
      std::ifstream stream(entry.path());
      for (std::string line; std::getline(stream, line);) file.lines.push_back(line);
      found.push_back(std::move(file));
    }
  }
  return found;
}

const std::vector<std::string> kFolders = {"include", "kernels",  "runtime",  "autotune", "tools",
                                           "tests",   "bindings", "examples", "cmake"};
const std::string kCode = R"(\.(h|hpp|c|cpp)$)";

/// Checks every #include of a folder: `allowed(file, name, quoted)`.
void check_includes(const std::string& folder,
                    const std::function<bool(const SourceFile&, const std::string& name, bool quoted)>& allowed) {
  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
  const auto files = sources({folder}, kCode);
  REQUIRE(!files.empty());
  for (const auto& file : files)
    for (const auto& line : file.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      CHECK_MESSAGE(allowed(file, match[2], match[1] == "\""), file.path << " must not say: " << line);
    }
}

bool begins(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

TEST_CASE("kernels/ includes kernels/ alone: run-time compilers get it from memory") {
  const fs::path folder = fs::path(q4::test::source_dir()) / "kernels";
  check_includes("kernels", [&](const SourceFile&, const std::string& name, bool quoted) {
    return quoted && name.find('/') == std::string::npos && fs::exists(folder / name);
  });
}

TEST_CASE("include/q4 includes the standard library and q4/ alone") {
  check_includes("include", [](const SourceFile&, const std::string& name, bool quoted) {
    const bool standard = name.find('/') == std::string::npos &&
                          (name.find('.') == std::string::npos || name == "stddef.h" || name == "stdint.h");
    return !quoted && (standard || begins(name, "q4/"));
  });
}

TEST_CASE("dependencies point one way: kernels, include, runtime, autotune, tools") {
  const auto none_of = [](const std::vector<std::string>& forbidden) {
    return [forbidden](const SourceFile&, const std::string& name, bool) {
      for (const auto& folder : forbidden)
        if (begins(name, folder) || name.find("../") != std::string::npos) return false;
      return true;
    };
  };
  check_includes("runtime", none_of({"autotune/", "tools/", "tests/", "bindings/", "examples/"}));
  check_includes("autotune", none_of({"tools/", "tests/", "bindings/", "examples/"}));
  check_includes("tools", none_of({"tests/", "bindings/", "examples/"}));
  check_includes("examples", none_of({"runtime/", "kernels/", "autotune/", "tools/", "tests/"}));
}

TEST_CASE("runtime/choose is pure: kernels' Configs and generated text, no driver, no cache, no backend") {
  check_includes("runtime/choose", [](const SourceFile&, const std::string& name, bool quoted) {
    if (!quoted) return name.find('/') == std::string::npos || begins(name, "q4/") || begins(name, "fmt/");
    return begins(name, "kernels/") || begins(name, "runtime/base/") || begins(name, "runtime/jit/") ||
           begins(name, "runtime/choose/");
  });
}

TEST_CASE("policy of the host stays out of kernels/: no defaults, no estimates") {
  const std::regex policy(R"(\w+_(default|estimate|gathers|together|pieces)\s*\()");
  for (const auto& file : sources({"kernels"}, kCode)) {
    std::smatch match;
    const std::string text = file.text();
    CHECK_MESSAGE(!std::regex_search(text, match, policy), file.path << " has " << match.str());
  }
}

TEST_CASE("no cycle between the folders of runtime/") {
  static const std::regex include(R"rx(^\s*#\s*include\s*"(runtime/[^"]+)")rx");
  // A subfolder belongs to its folder, except that each backend stands on gpu/, which stands on backends/backend.hpp.
  const auto folder_of = [](const std::string& path) {
    const std::string folder = fs::path(path).parent_path().generic_string();
    return begins(folder, "runtime/backends/") ? folder : folder.substr(0, folder.find('/', sizeof "runtime"));
  };
  std::map<std::string, std::set<std::string>> includes;
  for (const auto& file : sources({"runtime"}, kCode))
    for (const auto& line : file.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string from = folder_of(file.path);
      const std::string to = folder_of(match[1].str());
      if (from != to) includes[from].insert(to);
    }
  REQUIRE(includes.size() > 5);
  std::set<std::string> done;
  std::vector<std::string> way;
  const std::function<void(const std::string&)> visit = [&](const std::string& folder) {
    const bool cycle = std::find(way.begin(), way.end(), folder) != way.end();
    way.push_back(folder);
    std::string text;
    for (const auto& step : way) text += step + " > ";
    CHECK_MESSAGE(!cycle, text);
    if (!cycle && done.insert(folder).second)
      for (const auto& next : includes[folder]) visit(next);
    way.pop_back();
  };
  for (const auto& [folder, unused] : std::map(includes)) visit(folder);
}

TEST_CASE("devices are told by their traits, not by which backend is the CPU's") {
  for (const auto& file : sources({"runtime", "autotune", "tools", "bindings"}, R"(\.(hpp|cpp)$)"))
    if (!begins(file.path, "runtime/backends") && file.path != "runtime/names.cpp")
      CHECK_MESSAGE(file.text().find("BackendKind::kCpu") == std::string::npos,
                    file.path << " names the CPU: ask traits_of() (runtime/backends/traits.hpp)");
}

TEST_CASE("runtime/base/settings.hpp alone reads the environment") {
  for (const auto& file : sources({"runtime", "autotune", "tools", "bindings"}, R"(\.(hpp|cpp)$)"))
    if (file.path != "runtime/base/settings.hpp")
      CHECK_MESSAGE(file.text().find("getenv(") == std::string::npos, file.path << " reads the environment");
}

TEST_CASE("kernels/device.h alone asks which compiler this is") {
  const std::regex asks(R"(__CUDACC|__HIPCC|__HIP__|__HIP_|__NVCC|__clang__|__GNUC__|_MSC_VER)");
  const std::regex answer(R"(\bQ4_CUDA\b|\bQ4_HIP\b)");  // in q4.h these are names of backends
  bool device_asks = false;
  for (const auto& file : sources({"kernels", "runtime", "autotune", "include"}, kCode)) {
    const std::string text = file.text();
    const bool match =
        std::regex_search(text, asks) || (begins(file.path, "kernels/") && std::regex_search(text, answer));
    if (file.path == "kernels/device.h")
      device_asks = match;
    else
      CHECK_MESSAGE(!match, file.path << " asks which compiler this is");
  }
  CHECK(device_asks);
}

TEST_CASE("kernels/device.h and kernels/mma_tile.h alone ask which AMD processor this is") {
  const std::regex asks(R"(__gfx|__GFX|__AMDGCN|amdgcn|__amdgpu)");
  std::set<std::string> who;
  for (const auto& file : sources({"kernels"}, kCode))
    if (std::regex_search(file.text(), asks)) who.insert(file.path);
  CHECK(who == std::set<std::string>{"kernels/device.h", "kernels/mma_tile.h"});
}

TEST_CASE("macros Q4_* are under ten") {
  const std::regex define(R"(#\s*define\s+(Q4_\w+))"), undefine(R"(#\s*undef\s+(Q4_\w+))");
  std::set<std::string> macros;
  for (const auto& file : sources({"include", "kernels", "runtime", "autotune"}, kCode)) {
    std::set<std::string> mine;
    std::smatch match;
    for (const auto& line : file.lines) {
      if (std::regex_search(line, match, define)) mine.insert(match[1]);
      if (std::regex_search(line, match, undefine)) mine.erase(match[1]);
    }
    macros.insert(mine.begin(), mine.end());
  }
  for (const char* guard : {"Q4_Q4_H", "Q4_VERSION_H"}) macros.erase(guard);
  std::erase_if(macros, [](const std::string& name) { return begins(name, "Q4_VERSION"); });  // C has no constants
  std::string names;
  for (const auto& name : macros) names += name + " ";
  CHECK_MESSAGE(macros.size() < 10, macros.size() << ": " << names);
}

TEST_CASE("no file over 400 lines, and each opens with its purpose") {
  const auto files = sources(kFolders, R"(\.(h|hpp|c|cpp|cmake|py|sh)$|CMakeLists\.txt$)");
  REQUIRE(files.size() > 50);
  for (const auto& file : files) {
    CHECK_MESSAGE(file.lines.size() <= 400, file.path << " has " << file.lines.size() << " lines");
    REQUIRE_MESSAGE(!file.lines.empty(), file.path);
    const std::string& first = file.lines[0];
    const bool comment = begins(first, "//") || begins(first, "/*") || begins(first, "# ") || begins(first, "#!") ||
                         begins(first, "\"\"\"");
    CHECK_MESSAGE(comment, file.path << " does not open with a comment: " << first);
  }
}

TEST_CASE("no paths of one machine") {
  // In pieces, so that this file is not its own offender.
  const std::regex paths(std::string("[^A-Za-z0-9_.$}]/") + "(home|root|work|mnt|Users|scratch)/[A-Za-z0-9_.-]+");
  for (const auto& file : sources(kFolders, R"(\.(h|hpp|c|cpp|cmake|py|sh|md|txt|json|in)$)")) {
    std::smatch match;
    const std::string text = file.text();
    CHECK_MESSAGE(!std::regex_search(text, match, paths), file.path << " names " << match.str());
  }
}

TEST_CASE("no backend's header leaks into the public API") {
  const std::regex leak(R"(\b(CUstream|CUdevice|cudaStream|hipStream|nvrtc|fmt::|nlohmann)\w*)");
  const std::regex comment(R"(//[^\n]*|/\*([^*]|\*[^/])*\*/)");
  for (const auto& file : sources({"include"}, kCode)) {
    std::smatch match;
    const std::string code = std::regex_replace(file.text(), comment, "");
    CHECK_MESSAGE(!std::regex_search(code, match, leak), file.path << " names " << match.str());
  }
}

}  // namespace
}  // namespace q4::test
