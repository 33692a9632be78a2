// Compiles kernels for AMD targets: hipRTC in a process of its own, or a clang of the system for targets that hipRTC is
// too old for.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/backends/hip/hiprtc.hpp"
#include "runtime/backends/hip/target.hpp"
#include "runtime/base/result.hpp"
#include "runtime/jit/source.hpp"

namespace q4::hip {

/// How every kernel is compiled, by either compiler.
std::vector<std::string> compile_options();

/// Thread-safe; opens what it needs at first need.
class Compiler {
 public:
  /// Whether compile() can serve `arch` ("gfx90a:xnack-"); else what to install.
  q4::Result<void> knows(const std::string& arch);
  /// What compiles for `arch`: "hiprtc 5.2.21153" or "clang 19.1.7"; throws kUnsupported if nothing does.
  std::string identity(const std::string& arch);
  /// A code object. Throws kUnsupported where knows() is false, kCompile with the compiler's log and the source. `log`
  /// receives warnings.
  std::vector<char> compile(const jit::Source& source, const std::string& arch, std::string* log = nullptr);

  const Hiprtc& hiprtc();
  /// "clang 19.1.7 (clang++-19)", or what was looked for.
  std::string clang_text();

 private:
  struct Clang {
    std::string path, version;
    int major = 0;  ///< 0: there is none
  };
  const Clang& clang();
  enum class With { kHiprtc, kClang };
  q4::Result<With> choose(const std::string& arch);
  std::vector<char> with_clang(const std::string& text, const std::string& target, std::string& log);

  std::once_flag hiprtc_once_, clang_once_;
  std::unique_ptr<Hiprtc> hiprtc_;
  Clang clang_;
  std::string passed_over_;  ///< clangs that are too old or lack their linker, each with the reason
};

/// The program that runs hipRTC for others: q4-hip-compile TARGET OPTION... <text >code object. Its path is
/// $Q4_HIP_COMPILE, or beside the program or the library, or in their ../bin; empty: there is none, and hipRTC runs in
/// this process.
std::string helper_program();
/// Runs it (or hipRTC here, where there is none), whatever the table says of `target`. Throws kCompile.
std::vector<char> compile_in_process(const std::string& text, const std::string& target, std::string* log = nullptr);
/// The body of that program.
int helper_main(int argc, char** argv);

}  // namespace q4::hip
