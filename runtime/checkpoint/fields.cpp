// Reads typed fields of a JSON object, synonyms included.
#include "runtime/checkpoint/fields.hpp"

#include <algorithm>

namespace q4::checkpoint {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return text;
}

const Json* Fields::find(FieldNames names) const {
  const Json* found = nullptr;
  const char* found_name = nullptr;
  for (const char* name : names) {
    const auto at = json.find(name);
    if (at == json.end() || at->is_null()) continue;
    const bool same =
        found == nullptr || *found == *at ||
        (found->is_string() && at->is_string() && lower(found->get<std::string>()) == lower(at->get<std::string>()));
    if (!same) corrupt("{} and {} mean the same and differ; correct one of them", found_name, name);
    found = &*at;
    found_name = name;
  }
  return found;
}

std::optional<std::int64_t> Fields::integer(FieldNames names) const {
  const Json* const value = find(names);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX)) {
    corrupt("{} is {}, not a whole number; correct it", *names.begin(), shown(*value));
  }
  return value->get<std::int64_t>();
}

std::optional<bool> Fields::boolean(FieldNames names) const {
  const Json* const value = find(names);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) corrupt("{} is {}, not true or false; correct it", *names.begin(), shown(*value));
  return value->get<bool>();
}

std::optional<std::string> Fields::text(FieldNames names) const {
  const Json* const value = find(names);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) corrupt("{} is {}, not text; correct it", *names.begin(), shown(*value));
  return lower(value->get<std::string>());
}

const Json* Fields::object(const char* name) const {
  const Json* const value = find({name});
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return nullptr;
  if (!value->is_object()) corrupt("{} is {}, not an object; correct it", name, shown(*value));
  return value;
}

const Json* Fields::array(const char* name) const {
  const Json* const value = find({name});
  if (value != nullptr && !value->is_array()) corrupt("{} is {}, not an array; correct it", name, shown(*value));
  return value;
}

}  // namespace q4::checkpoint
