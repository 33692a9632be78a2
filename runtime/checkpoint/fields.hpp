// Fields of a configuration's JSON object, read with their types checked.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/json.hpp"

namespace q4::checkpoint {

using FieldNames = std::initializer_list<const char*>;

/// Lower case, ASCII.
std::string lower(std::string text);

/// The fields of one object. Names of one list are synonyms: two of them with different values are a kCorrupt, and so
/// is a value of the wrong type. null is as good as absent.
struct Fields {
  const Json& json;
  const std::string& path;  ///< of the file, and where in it, for messages

  const Json* find(FieldNames names) const;  ///< null: absent
  std::optional<std::int64_t> integer(FieldNames names) const;
  std::optional<bool> boolean(FieldNames names) const;
  std::optional<std::string> text(FieldNames names) const;  ///< in lower case
  const Json* object(const char* name) const;               ///< null: absent, or false
  const Json* array(const char* name) const;                ///< null: absent

  template <class... Args>
  [[noreturn]] void corrupt(fmt::format_string<Args...> text, Args&&... args) const {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {}", path, fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  [[noreturn]] void unsupported(fmt::format_string<Args...> text, Args&&... args) const {
    fail(ErrorCode::kUnsupported, "Checkpoint::open: {}: {}", path, fmt::format(text, std::forward<Args>(args)...));
  }
};

}  // namespace q4::checkpoint
