// Whose files are trusted: compiled code that is loaded must not be for strangers to write.
#pragma once

#include <sys/stat.h>

#include <string>

namespace q4::cache {

enum class Trust {
  kOwner,  ///< ours or root's, and for nobody else to write
  kGroup,  ///< also what belongs to a group that this process is in, and what that group may write
};

/// $Q4_CACHE_TRUST: unset, empty or "owner", else "group". Throws kInvalidArgument for anything else.
Trust trust_of_environment();

/// Empty text if `status` is that of a file or folder which only those may write whom `trust` names; else what is wrong
/// with it and what helps.
std::string untrusted(const struct stat& status, Trust trust);

/// Modes of what is written: 0600 and 0700, or 0660 and 0770 where the group is trusted.
unsigned file_mode(Trust trust);
unsigned folder_mode(Trust trust);

}  // namespace q4::cache
