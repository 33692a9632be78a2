// Compiles a configuration's expressions within bounds: they come from strangers.
#include "runtime/checkpoint/pattern.hpp"

#include <string_view>
#include <utility>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {
namespace {

constexpr std::size_t kLongest = 2000;  // std::regex recurses while it compiles

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

/// Python's spellings of what ECMAScript writes otherwise.
std::string to_ecmascript(std::string text) {
  replace_all(text, "\\A", "^");
  replace_all(text, "\\Z", "$");
  for (std::size_t at = 0; (at = text.find("(?P<", at)) != std::string::npos; ++at) {
    const std::size_t end = text.find('>', at);
    if (end != std::string::npos) text.erase(at + 1, end - at);
  }
  return text;
}

}  // namespace

Pattern::Pattern(std::string text, Kind kind, const std::string& path, const std::string& field)
    : text_(std::move(text)), kind_(kind) {
  if (kind_ == Kind::kName) return;
  const auto refuse = [&](const std::string& why) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint::open: {}: {}: the expression {} does not compile: {}; correct it, or write it as ECMAScript has "
         "it (without look-behind)",
         path, field, quote(text_), why);
  };
  if (text_.size() > kLongest) refuse(fmt::format("it has {} characters, at most {} are read", text_.size(), kLongest));
  auto flags = std::regex::ECMAScript;
#ifdef __GLIBCXX__
  // No backtracking: an expression such as (a+)+$ would take for ever, and a long name would overflow the stack.
  flags |= std::regex_constants::__polynomial;
#endif
  std::string expression = to_ecmascript(text_);
  if (expression.rfind("(?i)", 0) == 0) {
    expression.erase(0, 4);
    flags |= std::regex::icase;
  }
  try {
    regex_ = std::make_shared<const std::regex>(expression, flags);
  } catch (const std::regex_error& error) { refuse(error.what()); }
}

bool Pattern::matches(const std::string& name) const {
  if (kind_ == Kind::kName) return name == text_;
  if (name.size() > kLongest) return false;
  const auto flags =
      kind_ == Kind::kMatch ? std::regex_constants::match_continuous : std::regex_constants::match_default;
  return std::regex_search(name, *regex_, flags);
}

}  // namespace q4::checkpoint
