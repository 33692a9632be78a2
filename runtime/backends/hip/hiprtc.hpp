// hipRTC in this process. It aborts on targets that it does not know and is not thread-safe in all releases:
// compiler.hpp keeps both away from the caller.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/library.hpp"

namespace q4::hip {

class Hiprtc {
 public:
  Hiprtc();  ///< libhiprtc.so.7, .6, or inside libamdhip64.so.5 ($Q4_HIPRTC); never throws

  bool available() const { return problem_.empty(); }
  const std::string& problem() const { return problem_; }
  const std::string& path() const { return library_.path(); }
  /// Of the ROCm that it came with, by its file's name: 502 for libamdhip64.so.5.2.21153.
  int release() const { return release_; }
  /// "hiprtc 5.2.21153"
  const std::string& identity() const { return identity_; }

  /// A code object for `target`. Throws kCompile with the log; `log` receives it otherwise.
  std::vector<char> compile(const std::string& text, const std::string& target, const std::vector<std::string>& options,
                            std::string* log = nullptr) const;

 private:
  Library library_;
  std::string problem_, identity_;
  int release_ = 0;
  using Program = struct _hiprtcProgram*;
  const char* (*error_)(int) = nullptr;
  int (*create_)(Program*, const char*, const char*, int, const char* const*, const char* const*) = nullptr;
  int (*destroy_)(Program*) = nullptr;
  int (*compile_)(Program, int, const char* const*) = nullptr;
  int (*log_size_)(Program, std::size_t*) = nullptr;
  int (*log_)(Program, char*) = nullptr;
  int (*code_size_)(Program, std::size_t*) = nullptr;
  int (*code_)(Program, char*) = nullptr;
};

}  // namespace q4::hip
