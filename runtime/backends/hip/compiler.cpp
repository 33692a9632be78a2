// Chooses a compiler for a target and runs it.
#include "runtime/backends/hip/compiler.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "runtime/backends/hip/process.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"

namespace q4::hip {
namespace {

namespace fs = std::filesystem;

/// A file that is gone with its owner: clang's linker writes no pipes.
class TemporaryFile {
 public:
  TemporaryFile() {
    std::error_code ignored;
    path_ = (fs::temp_directory_path(ignored) / "q4-code-XXXXXX").string();
    const int descriptor = ::mkstemp(path_.data());
    if (descriptor < 0) fail(ErrorCode::kIo, "{}: cannot be made; set TMPDIR to a folder that can be written", path_);
    ::close(descriptor);
  }
  ~TemporaryFile() { ::unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }
  std::vector<char> read() const {
    std::ifstream stream(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

 private:
  std::string path_;
};

}  // namespace

std::vector<std::string> compile_options() { return {"-std=c++20", "-O3"}; }

std::string helper_program() {
  if (is_set("Q4_HIP_COMPILE")) return setting("Q4_HIP_COMPILE");
  std::error_code ignored;
  std::vector<fs::path> folders = {fs::read_symlink("/proc/self/exe", ignored).parent_path()};
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&helper_program), &info) && info.dli_fname)
    folders.push_back(fs::absolute(info.dli_fname, ignored).parent_path());
  for (const auto& folder : folders)
    for (const auto& path : {folder / "q4-hip-compile", folder / "../bin/q4-hip-compile",
                             folder / "../../bin/q4-hip-compile"})  // lib/x86_64-linux-gnu
      if (::access(path.c_str(), X_OK) == 0) return path.string();
  return "";
}

std::vector<char> compile_in_process(const std::string& text, const std::string& target, std::string* log) {
  const std::string helper = helper_program();
  if (helper.empty()) return Hiprtc().compile(text, target, compile_options(), log);
  std::vector<std::string> arguments = {helper, target};
  for (const auto& option : compile_options()) arguments.push_back(option);
  const auto outcome = run_program(arguments, text);
  if (!outcome.problem.empty())
    fail(ErrorCode::kCompile, "{}; it wrote: {}", outcome.problem, outcome.error.empty() ? "nothing" : outcome.error);
  if (outcome.status != 0 || outcome.out.empty()) fail(ErrorCode::kCompile, "{}", outcome.error);
  if (log) *log = outcome.error;
  return {outcome.out.begin(), outcome.out.end()};
}

int helper_main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: q4-hip-compile TARGET [OPTION...] <source >code (run by the q4 library)\n");
    return 2;
  }
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  try {
    const Hiprtc hiprtc;
    if (!hiprtc.available()) fail(ErrorCode::kUnsupported, "{}", hiprtc.problem());
    std::string log;
    const auto code = hiprtc.compile(text, argv[1], {argv + 2, argv + argc}, &log);
    std::fputs(log.c_str(), stderr);
    errno = 0;
    if (std::fwrite(code.data(), 1, code.size(), stdout) == code.size() && std::fflush(stdout) == 0) return 0;
    fail(ErrorCode::kIo, "q4-hip-compile: error: the code could not be written: {}", std::strerror(errno));
  } catch (const Error& error) {
    std::fputs(error.what(), stderr);
    return 1;
  }
}

const Hiprtc& Compiler::hiprtc() {
  std::call_once(hiprtc_once_, [&] { hiprtc_ = std::make_unique<Hiprtc>(); });
  return *hiprtc_;
}

const Compiler::Clang& Compiler::clang() {
  std::call_once(clang_once_, [&] {
    std::vector<std::string> candidates = {"/opt/rocm/llvm/bin/clang++"};
    for (int major = kNewestClang; major >= kOldestClang; --major)
      candidates.push_back("clang++-" + std::to_string(major));
    candidates.emplace_back("clang++");
    if (is_set("Q4_HIP_CLANG")) candidates = {setting("Q4_HIP_CLANG")};
    for (const auto& path : candidates) {
      const auto said = run_program({path, "--version"}, "").out;
      const auto at = said.find("clang version ");
      if (at == said.npos) continue;
      const auto from = at + 14;
      const Clang found{path, said.substr(from, said.find_first_of(" \n(", from) - from),
                        std::atoi(said.c_str() + from)};
      if (found.major < kOldestClang) {
        passed_over_ += fmt::format("; {} is clang {}, which is too old", path, found.version);
      } else if (run_program({path, "-print-prog-name=lld"}, "").out.find('/') == std::string::npos) {
        passed_over_ += fmt::format("; {} has no lld, which it needs to link", path);
      } else {
        clang_ = found;
        return;
      }
    }
  });
  return clang_;
}

std::string Compiler::clang_text() {
  const auto& found = clang();
  if (found.major) return fmt::format("clang {} ({})", found.version, found.path);
  return fmt::format("no clang++ of {} or later with its lld on $PATH (set Q4_HIP_CLANG to a path to use another){}",
                     kOldestClang, passed_over_);
}

q4::Result<Compiler::With> Compiler::choose(const std::string& arch) {
  const Target* target = find_target(arch);
  if (!target) return Failure{fmt::format("q4 compiles nothing for {}; its AMD targets: {}", arch, target_names())};
  if (hiprtc().available() && hiprtc().release() >= target->hiprtc_since) return With::kHiprtc;
  if (clang().major >= target->clang_since) return With::kClang;
  return Failure{fmt::format("{} needs hipRTC of ROCm {}.{} or newer, or clang {}; here: {}, {}", target->name,
                             target->hiprtc_since / 100, target->hiprtc_since % 100, target->clang_since,
                             hiprtc().available() ? hiprtc().identity() : hiprtc().problem(), clang_text())};
}

q4::Result<void> Compiler::knows(const std::string& arch) {
  const auto with = choose(arch);
  return with ? q4::Result<void>() : Failure{with.reason()};
}

std::string Compiler::identity(const std::string& arch) {
  const auto with = choose(arch);
  if (!with) fail(ErrorCode::kUnsupported, "{}", with.reason());
  return *with == With::kHiprtc ? hiprtc().identity() : "clang " + clang().version;
}

std::vector<char> Compiler::compile(const jit::Source& source, const std::string& arch, std::string* log) {
  std::string messages;
  const auto with = choose(arch);
  if (!with) fail(ErrorCode::kUnsupported, "cannot compile {}: {}", source.name, with.reason());
  const std::string text = jit::flatten(source), target = find_target(arch)->name;
  try {
    auto code =
        *with == With::kHiprtc ? compile_in_process(text, target, &messages) : with_clang(text, target, messages);
    if (log) *log = messages;
    return code;
  } catch (const Error& error) {
    fail(error.code(), "{} for {}: {}\nsource:\n{}", source.name, target, error.what(), source.text);
  }
}

std::vector<char> Compiler::with_clang(const std::string& text, const std::string& target, std::string& log) {
  const TemporaryFile code;
  std::vector<std::string> arguments = {clang().path,
                                        "-x",
                                        "hip",
                                        "-",
                                        "--offload-arch=" + target,
                                        "-nogpuinc",
                                        "-nogpulib",
                                        "-o",
                                        code.path(),
                                        "--cuda-device-only",
                                        "--no-gpu-bundle-output"};
  for (const auto& option : compile_options()) arguments.push_back(option);
  auto outcome = run_program(arguments, text);
  if (outcome.status != 0)
    fail(ErrorCode::kCompile, "{}: {}{}", clang_text(), outcome.problem,
         outcome.error.empty() ? "no message" : outcome.error);
  log = std::move(outcome.error);
  return code.read();
}

}  // namespace q4::hip
