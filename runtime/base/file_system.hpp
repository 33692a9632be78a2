// What kind of file system a file is on.
#pragma once

#include <string>

namespace q4 {

struct FileSystem {
  std::string name;     ///< "ext4", "nfs"; of one that is not known "type 0x..."
  bool shared = false;  ///< other machines may change its files too
};
/// By the f_type of statfs(2).
FileSystem file_system(long type);

}  // namespace q4
