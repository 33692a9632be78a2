// A CSV whose first line names its columns; no quoting.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace q4::tools {

class Csv {
 public:
  /// `name` is for messages. Throws kCorrupt when one of `required` is no column.
  Csv(const std::string& text, const std::string& name, const std::vector<std::string>& required);
  static Csv read(const std::string& path, const std::vector<std::string>& required);  ///< throws kIo too

  const std::string& name() const { return name_; }
  std::size_t rows() const { return rows_.size(); }
  std::string where(std::size_t row) const;                            ///< "peers.csv line 12"
  std::string text(std::size_t row, const std::string& column) const;  ///< empty when there is none
  /// Throw kCorrupt when the cell is something else.
  std::int64_t whole(std::size_t row, const std::string& column) const;
  double real(std::size_t row, const std::string& column) const;

 private:
  struct Row {
    int line;
    std::vector<std::string> cells;
  };
  std::string name_;
  std::map<std::string, std::size_t> columns_;
  std::vector<Row> rows_;
};

std::int64_t parse_whole(const std::string& text, const std::string& where);

}  // namespace q4::tools
