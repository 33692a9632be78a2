// The C ABI called as bytes say.
#pragma once

#include <string>
#include <string_view>

namespace q4::test {

/// Calls q4_* functions in the order and with the arguments that `bytes` stand for: right and wrong ones, and handles that
/// are live, destroyed, of another kind, of another runtime or none. `folder` holds "m.safetensors" or nothing, and receives
/// caches. Aborts with a text where a call reports a defect, reports nothing, or writes to a result and fails. Gives how many
/// calls were made.
unsigned call_c_abi(std::string_view bytes, const std::string& folder, unsigned* succeeded = nullptr);

}  // namespace q4::test
