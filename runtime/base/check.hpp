// How the library says that something is wrong: one line with the call, the argument, its value, the limit and the
// remedy.
#pragma once

#include <fmt/format.h>
#include <q4/error.hpp>
#include <utility>

namespace q4 {

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(code, fmt::format(text, std::forward<Args>(args)...));
}

template <class... Args>
void check(bool ok, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]]
    throw Error(ErrorCode::kInvalidArgument, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace q4
