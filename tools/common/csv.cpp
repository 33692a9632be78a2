// Splits lines and finds columns.
#include "tools/common/csv.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "runtime/base/check.hpp"
#include "runtime/base/file_system.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> cells;
  std::stringstream in(line);
  for (std::string cell; std::getline(in, cell, ',');) cells.push_back(trimmed(cell));
  return cells;
}

/// The beginning of what may be binary.
std::string printable(std::string text) {
  constexpr std::size_t kMost = 60;
  for (char& c : text)
    if (c < ' ' || c > '~') c = '?';
  return text.size() > kMost ? text.substr(0, kMost) + "..." : text;
}

}  // namespace

Csv::Csv(const std::string& text, const std::string& name, const std::vector<std::string>& required) : name_(name) {
  std::stringstream in(text);
  std::string line;
  std::getline(in, line);
  if (line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);  // spreadsheets mark UTF-8 so
  for (const std::string& title : split(line)) columns_.emplace(title, columns_.size());
  for (const std::string& column : required)
    if (!columns_.count(column))
      fail(ErrorCode::kCorrupt, "{} line 1: \"{}\" does not name the column {}; needed are {}", name, printable(line),
           column, fmt::join(required, ","));
  for (int number = 2; std::getline(in, line); ++number)
    if (!trimmed(line).empty()) rows_.push_back({number, split(line)});
}

Csv Csv::read(const std::string& path, const std::vector<std::string>& required) {
  std::ifstream in(path);
  if (!in || std::filesystem::is_directory(path) || endless(path))
    fail(ErrorCode::kIo, "{}: no file that can be read; name a CSV file with a header line: {}", path,
         fmt::join(required, ","));
  return {{std::istreambuf_iterator<char>(in), {}}, path, required};
}

std::string Csv::where(std::size_t row) const { return fmt::format("{} line {}", name_, rows_[row].line); }

std::string Csv::text(std::size_t row, const std::string& column) const {
  const auto at = columns_.find(column);
  const auto& cells = rows_[row].cells;
  return at != columns_.end() && at->second < cells.size() ? cells[at->second] : std::string();
}

std::int64_t Csv::whole(std::size_t row, const std::string& column) const {
  return parse_whole(text(row, column), where(row) + ", column " + column);
}

double Csv::real(std::size_t row, const std::string& column) const {
  const std::string cell = text(row, column);
  std::size_t used = 0;
  double value = 0;
  try {
    value = std::stod(cell, &used);
  } catch (const std::exception&) {}
  if (cell.empty() || used != cell.size())
    fail(ErrorCode::kCorrupt, "{}, column {}: \"{}\" is no number", where(row), column, printable(cell));
  return value;
}

std::int64_t parse_whole(const std::string& text, const std::string& where) {
  const std::size_t digits = text.starts_with('-') ? 1 : 0;
  if (text.size() == digits || text.size() > 11 || text.find_first_not_of("0123456789", digits) != std::string::npos)
    fail(ErrorCode::kCorrupt, "{}: \"{}\" is no whole number of at most 10 digits", where, printable(text));
  return std::stoll(text);
}

}  // namespace q4::tools
