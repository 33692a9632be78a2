// The one exception type that the library throws.
#pragma once

#include <q4/export.hpp>
#include <stdexcept>
#include <string>

namespace q4 {

/// What kind of thing went wrong; the text of the Error says which call, argument, value, limit and remedy.
enum class ErrorCode : int {
  kInvalidArgument = 1,  ///< a value that the caller passed
  kUnsupported = 2,      ///< valid in principle, not available here (no such device, no such kernel)
  kOutOfMemory = 3,      ///< host or device memory
  kDevice = 4,           ///< the driver or a launch reported an error
  kCompile = 5,          ///< run-time compilation; the text carries the compiler's log
  kIo = 6,               ///< the file system refused
  kCorrupt = 7,          ///< a file's content contradicts itself or its format
  kNotFound = 8,         ///< a name (tensor, file, device, model) that does not exist
  kInternal = 9,         ///< a defect in q4
};

/// Stable lower-case name of a code, such as "invalid_argument".
Q4_API const char* to_string(ErrorCode code) noexcept;

/// Thrown by every function of the C++ API that can fail. Destructors never throw.
class Q4_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace q4
