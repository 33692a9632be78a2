// The run-time compiler, opened at first need.
#pragma once

#include <string>
#include <vector>

#include "runtime/base/library.hpp"
#include "runtime/base/result.hpp"
#include "runtime/jit/source.hpp"

namespace q4::cuda {

class Nvrtc {
 public:
  Nvrtc();  ///< libnvrtc.so.13, then .12 ($Q4_NVRTC); never throws

  bool available() const { return problem_.empty(); }
  const std::string& problem() const { return problem_; }
  /// "nvrtc 13.0 CL-36424714": the build, as the compiler itself states it in the PTX that it writes.
  const std::string& identity() const { return identity_; }
  const std::string& path() const { return library_.path(); }
  /// "13.0"
  std::string version() const;

  /// Whether compile() can serve `arch`, exactly or through PTX; else `problem` says what to do.
  q4::Result<void> knows(const std::string& arch) const;

  /// A cubin for exactly `arch` ("sm_90a"), or PTX for the newest architecture below it that this compiler knows. `log`
  /// receives the compiler's messages, warnings included. Throws kCompile with the log and the source.
  std::vector<char> compile(const jit::Source& source, const std::string& arch, const std::vector<std::string>& options,
                            std::string* log = nullptr) const;

 private:
  std::string architecture(const std::string& arch, bool& exact) const;

  Library library_;
  std::string problem_, identity_;
  int major_ = 0, minor_ = 0;
  using Program = struct _nvrtcProgram*;
  int (*version_)(int*, int*) = nullptr;
  const char* (*error_)(int) = nullptr;
  int (*create_)(Program*, const char*, const char*, int, const char* const*, const char* const*) = nullptr;
  int (*destroy_)(Program*) = nullptr;
  int (*compile_)(Program, int, const char* const*) = nullptr;
  int (*log_size_)(Program, std::size_t*) = nullptr;
  int (*log_)(Program, char*) = nullptr;
  int (*cubin_size_)(Program, std::size_t*) = nullptr;
  int (*cubin_)(Program, char*) = nullptr;
  int (*ptx_size_)(Program, std::size_t*) = nullptr;
  int (*ptx_)(Program, char*) = nullptr;
  int (*arch_count_)(int*) = nullptr;
  int (*archs_)(int*) = nullptr;
};

}  // namespace q4::cuda
