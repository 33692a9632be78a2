// One command line: its options, its errors and its exit status.
#pragma once

#include <functional>
#include <memory>
#include <q4/runtime.hpp>
#include <string>

#include "tools/common/exit.hpp"

namespace CLI {  // who adds options includes it: it takes seconds to compile
class App;
class Validator;
}  // namespace CLI

namespace q4::tools {

/// Flushes what was written to stdout. False, and one line on stderr, if some of it could not be written; a pipe whose
/// reader has gone (`q4-info | head -1`) is nothing to report, but false too. `error`: errno of an earlier failure.
bool flush_output(const std::string& tool, int error = 0);

/// One tool: its options, --help with examples, --version, and how it ends (Exit).
class Tool {
 public:
  Tool(const std::string& name, const std::string& purpose, const std::string& examples);
  ~Tool();

  /// Its options may throw q4::Error from their own parsers (add_option_function): wrong usage.
  const std::unique_ptr<CLI::App> app;
  std::string device_name;  ///< of --device, empty: the best device
  bool json = false;        ///< of --json

  void add_device();
  void add_json(const std::string& what);
  /// Parses, then runs `body`, whose result is the exit status; kInvalidArgument, kNotFound and InputErrors are kUsage,
  /// other errors and output that cannot be written kFailed.
  int run(int argc, char** argv, const std::function<int()>& body);
  /// --device, else the best device of this runtime; says on stderr if that is the CPU unasked. Throws kNotFound with
  /// the list of devices that exist.
  Device device(const Runtime& runtime) const;

 private:
  std::string name_;
};

/// For CLI11's check(): a number of `what` ("seconds") of at least 0, or above 0. Its own validators print the whole
/// range of a double.
CLI::Validator number_check(const char* what, bool zero_too);

}  // namespace q4::tools
