// NumPy's .npy files: "\x93NUMPY", version, header length, a Python dict as text, the data.
#include "tools/common/npy.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string_view>

#include "runtime/base/check.hpp"

namespace q4::tools {

static_assert(std::endian::native == std::endian::little);

namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
constexpr std::size_t kMaxHeader = 1u << 20;

template <class... Args>
[[noreturn]] void corrupt(const std::string& path, fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorCode::kCorrupt, "{}: {}; write it again with numpy.save", path,
       fmt::format(text, std::forward<Args>(args)...));
}

/// Reads the header's dict: {'descr': '<f2', 'fortran_order': False, 'shape': (3, 4), }
class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::string_view text) : path_(path), text_(text) { parse(); }

  std::string descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;

 private:
  void parse() {
    bool seen[3] = {};
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      const std::string_view keys[] = {"descr", "fortran_order", "shape"};
      const auto which = static_cast<std::size_t>(std::find(std::begin(keys), std::end(keys), key) - std::begin(keys));
      if (which == 3 || seen[which]) corrupt(path_, "header field '{}' is unknown or there twice", key);
      seen[which] = true;
      if (which == 0) descr = string();
      if (which == 1) fortran_order = boolean();
      if (which == 2) tuple();
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    space();
    if (!text_.empty()) corrupt(path_, "text behind the header's dict");
    if (!seen[0] || !seen[1] || !seen[2]) corrupt(path_, "the header lacks descr, fortran_order or shape");
  }

  void space() { text_.remove_prefix(std::min(text_.find_first_not_of(" \n"), text_.size())); }
  bool accept(char c) {
    space();
    if (text_.empty() || text_[0] != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    if (!accept(c))
      corrupt(path_, "the header is no dict of descr, fortran_order and shape: no '{}' where one is due", c);
  }
  std::string string() {
    const char quote = accept('\'') ? '\'' : '"';
    if (quote == '"') expect('"');
    const std::size_t end = text_.find(quote);
    if (end == std::string_view::npos) corrupt(path_, "text without an end in the header");
    std::string result(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return result;
  }
  bool boolean() {
    space();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(0, word.size()) != word) continue;
      text_.remove_prefix(word.size());
      return word == "True";
    }
    corrupt(path_, "fortran_order is neither True nor False");
  }
  void tuple() {
    expect('(');
    while (!accept(')')) {
      space();
      std::int64_t extent = 0;
      std::size_t digits = 0;
      for (; digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9'; ++digits) {
        if (__builtin_mul_overflow(extent, 10, &extent) ||
            __builtin_add_overflow(extent, text_[digits] - '0', &extent)) {
          corrupt(path_, "an extent of the shape overflows 64 bits");
        }
      }
      if (digits == 0) corrupt(path_, "the shape is no tuple of whole numbers");
      text_.remove_prefix(digits);
      shape.push_back(extent);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }

  const std::string& path_;
  std::string_view text_;
};

DType type_of(const std::string& path, const std::string& descr) {
  if (descr == "<f2") return DType::kF16;
  if (descr == "<f4") return DType::kF32;
  if (descr == "<V2" || descr == "|V2" || descr == "<u2") return DType::kBF16;
  fail(ErrorCode::kUnsupported,
       "{}: element type '{}'; fp16 ('<f2'), fp32 ('<f4') and bf16 ('<V2' or its bits as '<u2') are read, convert it "
       "with "
       "astype(numpy.float32)",
       path, descr.substr(0, 40));
}

/// Bytes of the data; a shape that overflows is corrupt.
std::size_t data_bytes(const std::string& path, const std::vector<std::int64_t>& shape, DType dtype) {
  std::int64_t bytes = static_cast<std::int64_t>(size_of(dtype));
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes))
      corrupt(path, "shape ({}) overflows 64 bits", fmt::join(shape, ", "));
  }
  return static_cast<std::size_t>(bytes);
}

void read_exactly(const std::string& path, std::ifstream& file, void* to, std::size_t bytes) {
  file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  if (!file) corrupt(path, "the file ends within its header or data");
}

}  // namespace

std::int64_t NpyArray::rows() const {
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

std::int64_t NpyArray::cols() const { return shape.empty() ? 1 : shape.back(); }

NpyArray read_npy(const std::string& path) {
  struct ::stat status {};
  if (::stat(path.c_str(), &status) != 0)
    fail(ErrorCode::kNotFound, "{}: {}; name an .npy file", path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "{}: not a regular file; name an .npy file", path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorCode::kIo, "{}: cannot be opened: {}", path, std::strerror(errno));

  char start[8];
  read_exactly(path, file, start, sizeof start);
  if (std::string_view(start, kMagic.size()) != kMagic)
    corrupt(path, "no .npy file: it does not begin with \\x93NUMPY");
  const int major = start[6];
  if (major < 1 || major > 3) fail(ErrorCode::kUnsupported, "{}: .npy version {}; 1 to 3 are read", path, major);
  std::uint32_t length = 0;  // 16 bits in version 1
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  read_exactly(path, file, &length, length_bytes);
  if (length > kMaxHeader) corrupt(path, "a header of {} bytes, at most {} are read", length, kMaxHeader);
  std::string text(length, '\0');
  read_exactly(path, file, text.data(), text.size());

  const HeaderParser header(path, text);
  NpyArray array;
  array.dtype = type_of(path, header.descr);
  array.shape = header.shape;
  const std::size_t bytes = data_bytes(path, array.shape, array.dtype);
  const auto behind =
      static_cast<std::size_t>(status.st_size) -
      std::min<std::size_t>(sizeof start + length_bytes + length, static_cast<std::size_t>(status.st_size));
  if (bytes != behind) {
    corrupt(path, "shape ({}) of '{}' needs {} bytes of data, there are {}", fmt::join(array.shape, ", "), header.descr,
            bytes, behind);
  }
  if (header.fortran_order &&
      std::count_if(array.shape.begin(), array.shape.end(), [](std::int64_t extent) { return extent != 1; }) > 1) {
    fail(ErrorCode::kUnsupported, "{}: Fortran order; save numpy.ascontiguousarray of it", path);
  }
  array.data.resize(bytes);
  read_exactly(path, file, array.data.data(), bytes);
  return array;
}

void write_npy(const std::string& path, const NpyArray& array) {
  const char* const descr = array.dtype == DType::kF32 ? "<f4" : array.dtype == DType::kF16 ? "<f2" : "<V2";
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr,
                                   fmt::join(array.shape, ", "), array.shape.size() == 1 ? "," : "");
  constexpr std::size_t kStart = 10;  // the data begins at a multiple of 64
  header.append((64 - (kStart + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  const auto length = static_cast<std::uint16_t>(header.size());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(kMagic.data(), static_cast<std::streamsize>(kMagic.size())).write("\x01\x00", 2);
  file.write(reinterpret_cast<const char*>(&length), 2);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  file.write(reinterpret_cast<const char*>(array.data.data()), static_cast<std::streamsize>(array.data.size()));
  if (!file.flush()) {
    const int error = errno;
    std::remove(path.c_str());
    fail(ErrorCode::kIo, "{}: writing failed: {}; check the folder and its space", path, std::strerror(error));
  }
}

}  // namespace q4::tools
