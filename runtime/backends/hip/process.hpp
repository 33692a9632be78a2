// Runs a program with bytes on its standard input and takes what it wrote.
#pragma once

#include <string>
#include <vector>

namespace q4::hip {

struct Outcome {
  int status = -1;      ///< exit status; -1: it could not be started or was killed
  std::string problem;  ///< empty when it ended by itself: why not
  std::string out, error;
};

/// `arguments[0]` is looked up in $PATH. Never throws; waits for the end.
Outcome run_program(const std::vector<std::string>& arguments, const std::string& input);

}  // namespace q4::hip
