// The commands of q4-cache that unite and compare tuning files.
#pragma once

#include <string>
#include <vector>

namespace q4::tools {

/// Unites `files` into `out` and prints the conflicts; the exit status.
int merge_tuning(const std::string& out, const std::vector<std::string>& files, bool json);

/// Prints what differs between two files: 1 when anything does, 2 when a file cannot be read.
int diff_tuning(const std::string& first, const std::string& second, bool json);

}  // namespace q4::tools
