// How a test says that it could not run here: shown as skipped, never as passed.
#pragma once

#include <string>

namespace q4::test {

/// Records a reason; the binary prints it at the end, and CTest marks the file's entry as skipped if nothing failed.
/// The caller returns right after.
void skip(const std::string& reason);

}  // namespace q4::test
