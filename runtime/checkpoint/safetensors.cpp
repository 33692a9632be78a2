// One safetensors file: mapping, header checks.
#include "runtime/checkpoint/safetensors.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/json.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is used in place");

namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr std::uint64_t kLengthBytes = 8;

constexpr std::pair<std::string_view, unsigned> kTypeBits[] = {
    {"BOOL", 8},        {"U8", 8},      {"I8", 8},      {"I16", 16},    {"U16", 16},    {"F16", 16},
    {"BF16", 16},       {"I32", 32},    {"U32", 32},    {"F32", 32},    {"I64", 64},    {"U64", 64},
    {"F64", 64},        {"C64", 64},    {"F4", 4},      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

template <class... Args>
[[noreturn]] void corrupt(const std::string& path, fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {}; the file is damaged or not a safetensors file: fetch it again",
       path, fmt::format(text, std::forward<Args>(args)...));
}

[[noreturn]] void system_error(const std::string& path, const char* call, int error) {
  fail(error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo,
       "Checkpoint::open: {}: {}: {}; check the path and its permissions", path, call, std::strerror(error));
}

struct ::stat regular_stat(const std::string& path) {
  struct ::stat status {};
  if (::stat(path.c_str(), &status) != 0) system_error(path, "stat", errno);
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "Checkpoint::open: {}: not a regular file; name a file", path);
  return status;
}

std::int64_t modified_ns(const struct ::stat& status) {
  return static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

/// A field that must be a whole number in [0, 2^63).
std::uint64_t whole(const std::string& path, const std::string& tensor, const char* field, const Json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX) {
    corrupt(path, "tensor {}: {} has {}, not a whole number from 0 to 2^63 - 1", quote(tensor), field,
            value.type_name());
  }
  return value.get<std::uint64_t>();
}

unsigned type_bits(const std::string& path, const std::string& tensor, const std::string& dtype) {
  for (const auto& [name, bits] : kTypeBits) {
    if (name == dtype) return bits;
  }
  fail(ErrorCode::kUnsupported,
       "Checkpoint::open: {}: tensor {}: dtype {} is not known to this version of q4; update q4 or convert the tensor",
       path, quote(tensor), quote(dtype));
}

/// Bytes that dtype and shape ask for.
std::uint64_t needed_bytes(const std::string& path, const std::string& tensor, const StoredTensor& stored) {
  std::uint64_t bits = 1;
  bool overflow = false;
  for (const std::int64_t extent : stored.shape) {
    overflow |= __builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits);
  }
  overflow |= __builtin_mul_overflow(bits, std::uint64_t{type_bits(path, tensor, stored.dtype)}, &bits);
  if (overflow) corrupt(path, "tensor {}: shape [{}] overflows 64 bits", quote(tensor), fmt::join(stored.shape, ", "));
  if (bits % 8 != 0) {
    corrupt(path, "tensor {}: shape [{}] of {} is no whole number of bytes", quote(tensor),
            fmt::join(stored.shape, ", "), stored.dtype);
  }
  return bits / 8;
}

struct Parsed {
  StoredTensor tensor;
  std::uint64_t begin = 0, end = 0;
};

/// One entry of the header. `limit`: bytes behind the header.
Parsed parse_entry(const std::string& path, const std::string& name, const Json& entry, std::uint64_t limit) {
  if (!entry.is_object()) corrupt(path, "tensor {}: its entry is {}, not an object", quote(name), entry.type_name());
  for (const auto& [field, value] : entry.items()) {
    if (field != "dtype" && field != "shape" && field != "data_offsets") {
      corrupt(path, "tensor {}: unknown field {}", quote(name), quote(field));
    }
  }
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) corrupt(path, "tensor {}: dtype is missing or no text", quote(name));
  if (shape == entry.end() || !shape->is_array()) corrupt(path, "tensor {}: shape is missing or no array", quote(name));
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2) {
    corrupt(path, "tensor {}: data_offsets is missing or no array of two numbers", quote(name));
  }
  Parsed parsed;
  parsed.tensor.dtype = dtype->get<std::string>();
  for (const Json& extent : *shape) {
    parsed.tensor.shape.push_back(static_cast<std::int64_t>(whole(path, name, "shape", extent)));
  }
  parsed.begin = whole(path, name, "data_offsets", (*offsets)[0]);
  parsed.end = whole(path, name, "data_offsets", (*offsets)[1]);
  if (parsed.begin > parsed.end || parsed.end > limit) {
    corrupt(path, "tensor {}: data_offsets [{}, {}] are not within the {} bytes of data", quote(name), parsed.begin,
            parsed.end, limit);
  }
  const std::uint64_t needed = needed_bytes(path, name, parsed.tensor);
  if (parsed.end - parsed.begin != needed) {
    corrupt(path, "tensor {}: data_offsets [{}, {}] hold {} bytes, but {} of shape [{}] needs {}", quote(name),
            parsed.begin, parsed.end, parsed.end - parsed.begin, parsed.tensor.dtype,
            fmt::join(parsed.tensor.shape, ", "), needed);
  }
  parsed.tensor.bytes = needed;
  return parsed;
}

void check_metadata(const std::string& path, const Json& metadata) {
  if (!metadata.is_object()) corrupt(path, "__metadata__ is {}, not an object", metadata.type_name());
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) corrupt(path, "__metadata__: {} is {}, not text", quote(key), value.type_name());
  }
}

}  // namespace

std::size_t regular_file_size(const std::string& path) { return static_cast<std::size_t>(regular_stat(path).st_size); }

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)) {
  try {
    map();
    parse();
  } catch (...) {
    unmap();
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() { unmap(); }

void SafetensorsFile::unmap() noexcept {
  if (mapped_ != nullptr) ::munmap(const_cast<std::byte*>(mapped_), size_);
  if (file_ >= 0) ::close(file_);
}

void SafetensorsFile::map() {
  regular_stat(path_);  // before open(): opening a device or a pipe can have effects
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) system_error(path_, "open", errno);
  struct ::stat status {};
  if (::fstat(file_, &status) != 0) system_error(path_, "fstat", errno);
  size_ = static_cast<std::size_t>(status.st_size);
  modified_ns_ = modified_ns(status);
  if (size_ < kLengthBytes) corrupt(path_, "{} bytes, at least 8 are needed for the header's length", size_);
  void* const mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file_, 0);
  if (mapped == MAP_FAILED) system_error(path_, "mmap", errno);
  mapped_ = static_cast<const std::byte*>(mapped);
}

void SafetensorsFile::parse() {
  std::uint64_t length = 0;
  std::memcpy(&length, mapped_, kLengthBytes);
  if (length > size_ - kLengthBytes || length > kMaxHeader) {
    corrupt(path_, "header length {}; at most {} is possible in a file of {} bytes", length,
            std::min<std::uint64_t>(size_ - kLengthBytes, kMaxHeader), size_);
  }
  const std::string_view text(reinterpret_cast<const char*>(mapped_ + kLengthBytes), length);
  if (text.empty() || text.front() != '{') corrupt(path_, "the header does not begin with '{{'");
  const Json header = parse_json(text, path_);

  const std::byte* const data = mapped_ + kLengthBytes + length;
  const std::uint64_t limit = size_ - kLengthBytes - length;
  struct Extent {
    std::uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(path_, entry);
      continue;
    }
    Parsed parsed = parse_entry(path_, name, entry, limit);
    parsed.tensor.data = data + parsed.begin;
    const auto at = tensors_.emplace(name, std::move(parsed.tensor)).first;
    extents.push_back({parsed.begin, parsed.end, &at->first});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != covered) {
      corrupt(path_, "tensor {}: data begins at {}, but the data before it ends at {} ({})", quote(*extent.name),
              extent.begin, covered, extent.begin < covered ? "overlap" : "hole");
    }
    covered = extent.end;
  }
  if (covered != limit) corrupt(path_, "{} bytes of data, but the tensors end at {} (hole)", limit, covered);
}

void SafetensorsFile::check_unchanged() const {
  struct ::stat status {};
  if (::fstat(file_, &status) != 0) system_error(path_, "fstat", errno);
  if (static_cast<std::size_t>(status.st_size) != size_ || modified_ns(status) != modified_ns_) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint: {}: the file was modified after it was opened ({} bytes then, {} now); open the checkpoint "
         "again, and "
         "replace its files by renaming, not by writing into them",
         path_, size_, status.st_size);
  }
}

}  // namespace q4::checkpoint
