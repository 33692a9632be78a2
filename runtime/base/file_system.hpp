// What kind of file system a file is on, and what kind of file it is.
#pragma once

#include <string>

namespace q4 {

struct FileSystem {
  std::string name;     ///< "ext4", "nfs"; of one that is not known "type 0x..."
  bool shared = false;  ///< other machines may change its files too
};
/// By the f_type of statfs(2).
FileSystem file_system(long type);

/// Whether this is a device whose end may never come, such as /dev/zero or a terminal; /dev/null has one.
bool endless(const std::string& path);

}  // namespace q4
