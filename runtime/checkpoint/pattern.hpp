// Module names and patterns of them, as configurations write them.
#pragma once

#include <memory>
#include <regex>
#include <string>

namespace q4::checkpoint {

/// A name, or a regular expression of Python's (the part that std::regex has too; lookbehind is not in it). Matching
/// takes time proportional to the name's length times the pattern's.
class Pattern {
 public:
  enum class Kind {
    kName,   ///< the whole name
    kMatch,  ///< an expression that matches from the name's beginning: re.match
    kSearch  ///< an expression that matches anywhere: re.search
  };
  /// `path` and `field` for the kCorrupt of an expression that does not compile.
  Pattern(std::string text, Kind kind, const std::string& path, const std::string& field);

  bool matches(const std::string& name) const;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  Kind kind_;
  std::shared_ptr<const std::regex> regex_;
};

}  // namespace q4::checkpoint
