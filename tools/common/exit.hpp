// How the tools end: one meaning of each exit status, and which errors are of an input.
#pragma once

#include <q4/error.hpp>

namespace q4::tools {

/// Exit statuses of every tool. Signals, and Ctrl-C in a tool that keeps what is done (130), are apart. An error is one
/// line on stderr: "q4-x: error: ...".
enum Exit : int {
  kDone = 0,
  kFailed = 1,  ///< the work failed (or its output could not be written), or a comparison or a check found something
  kUsage = 2,   ///< wrong usage, an unknown name (model, device, matrix), or an input that cannot be read
};

/// An error of reading an input, whatever its code: kUsage.
class InputError : public Error {
  using Error::Error;
};
/// Runs what reads an input of the user; its errors become InputErrors.
template <class Body>
decltype(auto) read_input(Body&& body) {
  try {
    return body();
  } catch (const Error& error) { throw InputError(error.code(), error.what()); }
}

}  // namespace q4::tools
