// The magic numbers of linux/magic.h.
#include "runtime/base/file_system.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <map>

#include "runtime/base/check.hpp"

namespace q4 {

FileSystem file_system(long type) {
  static const std::map<long, FileSystem> known = {
      {0xEF53, {"ext4", false}},        {0x58465342, {"xfs", false}},     {0x9123683E, {"btrfs", false}},
      {0x01021994, {"tmpfs", false}},   {0x794c7630, {"overlay", false}}, {0x6969, {"nfs", true}},
      {0xFF534D42, {"cifs", true}},     {0xFE534D42, {"smb", true}},      {0x65735546, {"fuse", true}},
      {0x2FC12FC1, {"zfs", false}},     {0x0BD00BD0, {"lustre", true}},   {0x47504653, {"gpfs", true}},
      {0x01021997, {"9p", true}},       {0x00C36400, {"ceph", true}},     {0x19830326, {"fhgfs", true}},
      {0x73717368, {"squashfs", false}}};
  const auto at = known.find(type);
  return at == known.end() ? FileSystem{fmt::format("type {:#x}", type), false} : at->second;
}

bool endless(const std::string& path) {
  constexpr unsigned kMemory = 1, kNull = 3;  // of Linux's list of devices
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !(S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode))) return false;
  return status.st_rdev != makedev(kMemory, kNull);
}

}  // namespace q4
