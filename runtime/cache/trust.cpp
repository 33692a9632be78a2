// Compares owner, group and mode of a file with this process.
#include "runtime/cache/trust.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"

namespace q4::cache {
namespace {

bool in_group(gid_t group) {
  if (group == ::getegid()) return true;
  std::vector<gid_t> groups(static_cast<std::size_t>(std::max(0, ::getgroups(0, nullptr))));
  const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
  return count > 0 && std::find(groups.begin(), groups.begin() + count, group) != groups.begin() + count;
}

}  // namespace

Trust trust_of_environment() {
  const std::string text = setting("Q4_CACHE_TRUST");
  if (text.empty() || text == "owner") return Trust::kOwner;
  if (text == "group") return Trust::kGroup;
  fail(ErrorCode::kInvalidArgument, "Q4_CACHE_TRUST = {}: it must be owner or group", text);
}

std::string untrusted(const struct stat& status, Trust trust) {
  const bool ours = status.st_uid == ::geteuid() || status.st_uid == 0, member = in_group(status.st_gid);
  if (status.st_mode & S_IWOTH) return "others may write it: chmod o-w it";
  if (trust == Trust::kGroup && member) return {};
  if (!ours)
    return fmt::format(
        "it belongs to another user ({}){}", status.st_uid,
        member ? fmt::format(": set Q4_CACHE_TRUST=group if everybody in group {} may be trusted", status.st_gid) : "");
  if (status.st_mode & S_IWGRP)
    return fmt::format("others may write it, group {}: chmod g-w it{}", status.st_gid,
                       member ? ", or set Q4_CACHE_TRUST=group if everybody in that group may be trusted" : "");
  return {};
}

unsigned file_mode(Trust trust) { return trust == Trust::kGroup ? 0660 : 0600; }
unsigned folder_mode(Trust trust) { return trust == Trust::kGroup ? 0770 : 0700; }

}  // namespace q4::cache
