// JSON as checkpoints hold it; nlohmann-json does the work, what it lets pass is checked here.
#include "runtime/checkpoint/json.hpp"

#include <utility>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/file_bytes.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

constexpr std::size_t kMaxDepth = 64;

std::string read_text(const std::string& path, std::size_t limit) {
  const FileBytes file(path, FileBytes::Access::kOnDemand);
  if (file.size() > limit) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} bytes, at most {} are read; this is no checkpoint's JSON file",
         path, file.size(), limit);
  }
  file.fetch(0, file.size());
  if (const std::string foreign = foreign_content(file.text()); !foreign.empty())
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {}", path, foreign);
  return std::string(file.text());
}

namespace {

/// Builds the value while it is parsed. (A callback of Json::parse would do, but makes it quadratic: the library
/// searches every object for discarded members whenever one of them ends.)
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(const std::string& path, Json& root) : path_(path), root_(root) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // not in JSON's text form
  bool start_object(std::size_t) override { return open(Json::value_t::object); }
  bool start_array(std::size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    const auto [at, added] = open_.back()->emplace(std::move(name), nullptr);
    if (!added) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON has the key {} twice in one object; fetch the file again",
           path_, quote(at.key()));
    }
    member_ = &at.value();
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: not valid JSON: {}; fetch the file again", path_, error.what());
  }

 private:
  Json* place(Json&& value) {
    Json* const at = open_.empty() ? &root_ : open_.back()->is_array() ? &open_.back()->emplace_back() : member_;
    *at = std::move(value);
    return at;
  }
  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json::value_t kind) {
    open_.push_back(place(Json(kind)));
    if (open_.size() <= kMaxDepth) return true;
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON nests more than {} levels; fetch the file again", path_,
         kMaxDepth);
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& path_;
  Json& root_;
  std::vector<Json*> open_;  // the objects and arrays that the text is in; they do not move while they are open
  Json* member_ = nullptr;   // of the innermost object
};

}  // namespace

Json parse_json(std::string_view text, const std::string& path) {
  // nlohmann takes a NUL byte for the end of the text, so whatever follows it would go unseen.
  if (const std::size_t at = text.find('\0'); at != std::string_view::npos) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON has a NUL at byte {}; fetch the file again", path, at);
  }
  Json root;
  Builder builder(path, root);
  Json::sax_parse(text.begin(), text.end(), &builder);
  return root;
}

std::string without_nonfinite(std::string_view text) {
  return replace_nonfinite(text, [](std::string_view) { return std::string("null"); });
}

std::string shown(const Json& value) {
  constexpr std::size_t kMost = 60;
  const std::string text = value.dump();
  return text.size() <= kMost ? text : fmt::format("a long {}", value.type_name());
}

std::string replace_nonfinite(std::string_view text, const std::function<std::string(std::string_view)>& replacement) {
  std::string result;
  bool in_string = false;
  for (std::size_t at = 0; at < text.size();) {
    if (in_string && text[at] == '\\') {
      result += text.substr(at, 2);
      at += 2;
      continue;
    }
    if (text[at] == '"') in_string = !in_string;
    std::size_t skip = 0;
    if (!in_string) {
      for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
        if (text.substr(at, word.size()) == word) skip = word.size();
      }
    }
    if (skip != 0) {
      result += replacement(text.substr(at, skip));
      at += skip;
    } else {
      result += text[at++];
    }
  }
  return result;
}

}  // namespace q4::checkpoint
