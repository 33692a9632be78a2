// A byte-level BPE tokenizer, read from tokenizer.json: what GPT-2, Llama 3 and SmolLM2 use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace generate {

class Tokenizer {
 public:
  /// Reads folder/tokenizer.json. Throws std::runtime_error with the part that this reader does not know.
  explicit Tokenizer(const std::string& folder);

  /// The tokens of UTF-8 text, those that the model wants before every text (Llama 3: <|begin_of_text|>) included.
  /// Special tokens that are written out ("<|im_start|>") are recognized.
  std::vector<int> encode(std::string_view text) const;
  /// The bytes of a token, which need not be whole characters; empty for a special token or an unknown id.
  std::string_view decode(int token) const;
  /// The text as the user's turn of a chat, in the format whose special tokens there are; throws where there are none.
  std::string chat(const std::string& text) const;

 private:
  struct Added {
    std::string text;
    int id;
  };
  struct Merge {
    int rank, result;
  };
  /// One rule of cutting text into pieces before tokens are merged within each.
  enum class Cut { kDigits, kGpt2, kLlama3 };

  void encode_piece(std::string_view piece, std::vector<int>& tokens) const;
  int added(std::string_view text) const;  ///< the id of an added token, or -1

  std::vector<std::string> bytes_;  ///< of each token
  std::unordered_map<std::string, int> ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;  ///< of a pair of tokens, as left << 32 | right
  std::vector<Added> added_;
  std::vector<int> before_;  ///< tokens before every text
  std::vector<Cut> cuts_;
  bool whole_pieces_ = false;  ///< a piece that is a token is taken as it is
};

}  // namespace generate
