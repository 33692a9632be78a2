// What the q4 tools share: tables, numbers as text, progress, lists of m, tuning files, interrupts.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <q4/runtime.hpp>
#include <string>
#include <vector>

namespace q4::tools {

using Json = nlohmann::ordered_json;

/// With '?' for line ends and other control characters: a name of a stranger's file must not steer the terminal.
std::string without_controls(std::string text);

/// A table with a header line, columns as wide as their longest cell; numbers to the right, text to the left.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void add(std::vector<std::string> row);
  bool empty() const { return rows_.empty(); }
  std::string str() const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

/// Four significant digits, never an exponent: "4.213", "1060", "-" for 0 or less (not measured).
std::string number(double value);
std::string percent(double share);  ///< 0.034 is "+3.4%"
std::string megabytes(std::size_t bytes);

/// A bar with the time left on a terminal; elsewhere a line every three seconds. Writes to stderr alone.
class Progress {
 public:
  explicit Progress(bool quiet = false);
  ~Progress();  ///< ends the bar's line
  Progress(const Progress&) = delete;
  /// `fraction` in [0, 1]; `limit_s` bounds the time left (a budget), 0: unbounded.
  void update(double fraction, const std::string& text, double limit_s = 0);
  /// A line that stays, above the bar.
  void line(const std::string& text);
  void clear();  ///< removes the bar, until the next update

 private:
  bool terminal_, quiet_, drawn_ = false;
  std::chrono::steady_clock::time_point start_, last_ = {};
};

/// The text of a bar, apart from the terminal: "[####......]  40%  text  12 s left".
std::string progress_bar(double fraction, double elapsed_s, double limit_s, const std::string& text, int columns);

/// The parts of `text` between any of `separators`; empty ones are left out.
std::vector<std::string> split(const std::string& text, const char* separators);
/// Without the spaces at both ends.
std::string trimmed(const std::string& text);

/// "1,8,64" or "1 8 64", and ranges of powers of two: "1-16" is 1, 2, 4, 8, 16. Ascending, unique, at least 1. Throws
/// kInvalidArgument.
std::vector<std::int64_t> parse_m_list(const std::string& text);
/// "5GB", "500 MB", "1000000", "2 GiB": bytes; throws kInvalidArgument, which says of which `option`.
std::uint64_t parse_bytes(const std::string& text, const std::string& option);
/// 1, 2, 4, ... up to `largest`, which is always a member.
std::vector<std::int64_t> powers_of_two(std::int64_t largest);

/// fp16, bf16, fp32; throws kInvalidArgument, which says `where`.
DType parse_activation(const std::string& text, const std::string& where = "--activation");

/// Where q4-autotune writes unless told: <cache folder>/tuning.jsonl; empty when there is no cache folder.
std::string default_tuning_file(const Runtime& runtime);

/// After this, Ctrl-C and SIGTERM end the process at once with exit status 130, as catch_interrupt() makes a tool do.
void end_at_interrupt();
/// After this, Ctrl-C and SIGTERM set a flag instead of ending the process; a second one ends it.
void catch_interrupt();
bool interrupted();

}  // namespace q4::tools
