// Reads tokenizer.json, cuts text into pieces, and merges bytes to tokens within each piece.
#include "tokenizer.hpp"

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "unicode.hpp"

namespace generate {
namespace {

using nlohmann::json;

/// The character at `at`, which moves behind it. A byte that is not part of valid UTF-8 counts as a character.
char32_t next_character(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const unsigned first = byte(at);
  const int more = first < 0xc0 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf8 ? 3 : 0;
  char32_t value = more == 0 ? first : first & (0x3f >> more);
  for (int i = 1; i <= more; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return ++at, 0xfffd;
    value = value << 6 | (byte(at + i) & 0x3f);
  }
  at += 1 + more;
  return value;
}

std::string utf8(char32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  return {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};  // no byte's stand-in is above 0x7ff
}

/// GPT-2 writes bytes that are no printable characters as characters from 256 up, so that a token is readable text.
std::unordered_map<char32_t, char> byte_stand_ins() {
  std::unordered_map<char32_t, char> bytes;
  char32_t next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    bytes[printable ? b : next++] = static_cast<char>(b);
  }
  return bytes;
}

/// Text as characters, and where each begins.
struct Characters {
  explicit Characters(std::string_view text) {
    for (std::size_t at = 0; at < text.size();) {
      offsets.push_back(at);
      values.push_back(next_character(text, at));
    }
    offsets.push_back(text.size());
  }
  std::size_t size() const { return values.size(); }
  char32_t operator[](std::size_t i) const { return i < values.size() ? values[i] : 0; }
  /// The end of the run of characters from `i` on that `is` holds for, at most `limit` of them.
  template <class Is>
  std::size_t run(std::size_t i, Is&& is, std::size_t limit = std::numeric_limits<std::size_t>::max()) const {
    while (i < values.size() && limit-- > 0 && is(values[i])) ++i;
    return i;
  }

  std::vector<char32_t> values;
  std::vector<std::size_t> offsets;
};

bool is_newline(char32_t c) { return c == '\r' || c == '\n'; }
bool is_other(char32_t c) { return !is_space(c) && !is_letter(c) && !is_number(c); }

/// The end of 's, 't, 're, 've, 'm, 'll or 'd at `i`, or `i`.
std::size_t contraction(const Characters& text, std::size_t i, bool any_case) {
  if (text[i] != '\'') return i;
  const auto letter = [&](std::size_t at) {
    const char32_t c = text[at];
    return any_case && c >= 'A' && c <= 'Z' ? c + 32 : c == 0x17f && any_case ? U's' : c;  // long s folds to s
  };
  const char32_t a = letter(i + 1), b = letter(i + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
  return i;
}

/// \s+(?!\S)|\s+ : white space up to the text's end, or all but the last, which begins the next piece.
std::size_t spaces(const Characters& text, std::size_t i) {
  const std::size_t end = text.run(i, is_space);
  return end == text.size() || end == i + 1 ? end : end - 1;
}

/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t gpt2_piece(const Characters& text, std::size_t i) {
  if (const std::size_t end = contraction(text, i, false); end != i) return end;
  const std::size_t first = text[i] == ' ' ? i + 1 : i;
  if (is_letter(text[first])) return text.run(first, is_letter);
  if (is_number(text[first])) return text.run(first, is_number);
  if (first < text.size() && is_other(text[first])) return text.run(first, is_other);
  return spaces(text, i);
}

/// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
std::size_t llama3_piece(const Characters& text, std::size_t i) {
  if (const std::size_t end = contraction(text, i, true); end != i) return end;
  if (is_letter(text[i])) return text.run(i, is_letter);
  if (!is_newline(text[i]) && !is_number(text[i]) && is_letter(text[i + 1])) return text.run(i + 1, is_letter);
  if (is_number(text[i])) return text.run(i, is_number, 3);
  const std::size_t first = text[i] == ' ' ? i + 1 : i;
  if (first < text.size() && is_other(text[first])) return text.run(text.run(first, is_other), is_newline);
  const std::size_t end = text.run(i, is_space);
  for (std::size_t last = end; last > i; --last)
    if (is_newline(text[last - 1])) return last;
  return spaces(text, i);
}

const char* const kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

[[noreturn]] void unknown(const std::string& part, const json& value) {
  throw std::runtime_error("tokenizer.json: this reader does not know the " + part + " " + value.dump().substr(0, 200) +
                           "; pass --prompt-ids instead of --prompt");
}

/// A part of tokenizer.json and, if it is a sequence, the parts of it.
std::vector<json> parts(const json& file, const char* name, const char* list) {
  if (!file.contains(name) || file[name].is_null()) return {};
  if (file[name].value("type", "") != "Sequence") return {file[name]};
  return file[name].at(list).get<std::vector<json>>();
}

}  // namespace

Tokenizer::Tokenizer(const std::string& folder) try {
  std::ifstream stream(folder + "/tokenizer.json");
  if (!stream) throw std::runtime_error("cannot read " + folder + "/tokenizer.json");
  const json file = json::parse(stream);
  const json& model = file.at("model");
  if (model.value("type", "BPE") != "BPE" || model.value("byte_fallback", false))
    unknown("model", model.value("type", ""));
  if (file.contains("normalizer") && !file["normalizer"].is_null()) unknown("normalizer", file["normalizer"]);
  whole_pieces_ = model.value("ignore_merges", false);

  const auto stand_ins = byte_stand_ins();
  const auto put = [&](int id, std::string bytes) {
    if (id < 0 || id > 1 << 24) unknown("token id", id);
    if (bytes_.size() <= static_cast<std::size_t>(id)) bytes_.resize(id + 1);
    bytes_[id] = std::move(bytes);
  };
  for (const auto& [name, id] : model.at("vocab").items()) {
    std::string bytes;
    for (std::size_t at = 0; at < name.size();) {
      const auto byte = stand_ins.find(next_character(name, at));
      if (byte != stand_ins.end()) bytes += byte->second;
    }
    ids_[name] = id;
    put(id, std::move(bytes));
  }
  int rank = 0;
  for (const json& merge : model.at("merges")) {  // "a b", or ["a", "b"]
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const std::size_t space = text.find(' ');
    const std::string left = merge.is_string() ? text.substr(0, space) : merge.at(0).get<std::string>();
    const std::string right = merge.is_string() ? text.substr(space + 1) : merge.at(1).get<std::string>();
    const std::uint64_t pair = static_cast<std::uint64_t>(ids_.at(left)) << 32 | static_cast<unsigned>(ids_.at(right));
    merges_[pair] = {rank++, ids_.at(left + right)};
  }
  for (const json& token : file.value("added_tokens", json::array())) {
    if (token.at("content") == "") unknown("added token", token);
    added_.push_back({token.at("content"), token.at("id")});
    put(added_.back().id, token.value("special", false) ? "" : added_.back().text);
  }

  for (const json& rule : parts(file, "pre_tokenizer", "pretokenizers")) {
    const std::string type = rule.value("type", "");
    if (type == "Digits" && rule.value("individual_digits", false))
      cuts_.push_back(Cut::kDigits);
    else if (type == "Split" && rule.at("pattern").value("Regex", "") == kLlama3)
      cuts_.push_back(Cut::kLlama3);
    else if (type != "ByteLevel" || rule.value("add_prefix_space", false))
      unknown("pre_tokenizer", rule);
    else if (rule.value("use_regex", true))
      cuts_.push_back(Cut::kGpt2);
  }
  for (const json& rule : parts(file, "post_processor", "processors"))
    if (rule.value("type", "") == "TemplateProcessing")
      for (const json& part : rule.at("single")) {
        if (part.contains("Sequence")) break;
        before_.push_back(added(part.at("SpecialToken").at("id").get<std::string>()));
      }
} catch (const json::exception& error) {
  throw std::runtime_error(folder + "/tokenizer.json: " + error.what());
} catch (const std::out_of_range&) {
  throw std::runtime_error(folder + "/tokenizer.json: a merge is of tokens that the vocabulary has not");
}

int Tokenizer::added(std::string_view text) const {
  for (const Added& token : added_)
    if (token.text == text) return token.id;
  return -1;
}

std::string_view Tokenizer::decode(int token) const {
  return token >= 0 && static_cast<std::size_t>(token) < bytes_.size() ? std::string_view(bytes_[token]) : "";
}

std::string Tokenizer::chat(const std::string& text) const {
  if (added("<|im_start|>") >= 0) return "<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n";
  if (added("<|start_header_id|>") >= 0)
    return "<|start_header_id|>user<|end_header_id|>\n\n" + text +
           "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
  throw std::runtime_error("--chat: the tokenizer has neither <|im_start|> nor <|start_header_id|>");
}

std::vector<int> Tokenizer::encode(std::string_view text) const {
  std::vector<int> tokens = before_;
  while (!text.empty()) {
    // Up to the next added token, the longest one where two begin at the same place.
    std::size_t end = text.size();
    const Added* found = nullptr;
    for (const Added& token : added_) {
      const std::size_t at = text.find(token.text);
      if (at < end || (at == end && found && token.text.size() > found->text.size())) end = at, found = &token;
    }
    std::vector<std::string_view> pieces = {text.substr(0, end)};
    for (const Cut cut : cuts_) {
      std::vector<std::string_view> cut_pieces;
      for (const std::string_view piece : pieces) {
        const Characters characters(piece);
        for (std::size_t i = 0; i < characters.size();) {
          std::size_t next = i + 1;
          if (cut == Cut::kGpt2)
            next = gpt2_piece(characters, i);
          else if (cut == Cut::kLlama3)
            next = llama3_piece(characters, i);
          else if (!is_number(characters[i]))
            next = characters.run(i, [](char32_t c) { return !is_number(c); });
          cut_pieces.push_back(piece.substr(characters.offsets[i], characters.offsets[next] - characters.offsets[i]));
          i = next;
        }
      }
      pieces = std::move(cut_pieces);
    }
    for (const std::string_view piece : pieces) encode_piece(piece, tokens);
    if (found) tokens.push_back(found->id);
    text.remove_prefix(end + (found ? found->text.size() : 0));
  }
  return tokens;
}

void Tokenizer::encode_piece(std::string_view piece, std::vector<int>& tokens) const {
  static const auto characters = [] {
    std::vector<std::string> result(256);
    for (const auto& [character, byte] : byte_stand_ins()) result[static_cast<unsigned char>(byte)] = utf8(character);
    return result;
  }();
  std::vector<int> parts;
  std::string name;
  for (const char byte : piece) {
    const std::string& character = characters[static_cast<unsigned char>(byte)];
    const auto id = ids_.find(character);
    if (id == ids_.end()) unknown("byte", character);
    parts.push_back(id->second);
    name += character;
  }
  if (const auto whole = ids_.find(name); whole_pieces_ && whole != ids_.end()) parts = {whole->second};
  while (true) {
    // The pair that was merged first when the tokenizer was made; the leftmost of equals.
    const Merge* best = nullptr;
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const std::uint64_t pair = static_cast<std::uint64_t>(parts[i]) << 32 | static_cast<unsigned>(parts[i + 1]);
      const auto merge = merges_.find(pair);
      if (merge != merges_.end() && (!best || merge->second.rank < best->rank)) best = &merge->second, at = i;
    }
    if (!best) break;
    parts[at] = best->result;
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  tokens.insert(tokens.end(), parts.begin(), parts.end());
}

}  // namespace generate
