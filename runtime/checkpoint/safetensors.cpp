// One safetensors file: mapping, header checks.
#include "runtime/checkpoint/safetensors.hpp"

#include <algorithm>
#include <bit>
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

/// A field that must be a whole number in [0, 2^63).
std::uint64_t whole(const std::string& path, const std::string& tensor, const char* field, const Json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX) {
    corrupt(path, "tensor {}: {} has {}, not a whole number from 0 to 2^63 - 1", quote(tensor), field, shown(value));
  }
  return value.get<std::uint64_t>();
}

/// 0: a type of a later version of the format, whose tensors cannot be read but need not keep the others from being.
unsigned type_bits(const std::string& dtype) {
  for (const auto& [name, bits] : kTypeBits) {
    if (name == dtype) return bits;
  }
  return 0;
}

/// Bytes that the shape needs at `type_bits` an element.
std::uint64_t needed_bytes(const std::string& path, const std::string& tensor, const StoredTensor& stored,
                           unsigned type_bits) {
  std::uint64_t bits = 1;
  bool overflow = false;
  for (const std::int64_t extent : stored.shape) {
    overflow |= __builtin_mul_overflow(bits, static_cast<std::uint64_t>(extent), &bits);
  }
  overflow |= __builtin_mul_overflow(bits, std::uint64_t{type_bits}, &bits);
  if (overflow) corrupt(path, "tensor {}: shape [{}] overflows 64 bits", quote(tensor), fmt::join(stored.shape, ", "));
  if (bits % 8 != 0) {
    corrupt(path, "tensor {}: shape [{}] of {} is not a whole number of bytes", quote(tensor),
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
  if (!entry.is_object()) corrupt(path, "tensor {}: its entry is {}, not an object", quote(name), shown(entry));
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
  parsed.tensor.bytes = parsed.end - parsed.begin;
  const unsigned bits = type_bits(parsed.tensor.dtype);
  if (bits == 0) return parsed;
  const std::uint64_t needed = needed_bytes(path, name, parsed.tensor, bits);
  if (parsed.end - parsed.begin != needed) {
    corrupt(path, "tensor {}: data_offsets [{}, {}] hold {} bytes, but {} of shape [{}] needs {}", quote(name),
            parsed.begin, parsed.end, parsed.end - parsed.begin, parsed.tensor.dtype,
            fmt::join(parsed.tensor.shape, ", "), needed);
  }
  return parsed;
}

void check_metadata(const std::string& path, const Json& metadata) {
  if (!metadata.is_object()) corrupt(path, "__metadata__ is {}, not an object", shown(metadata));
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) corrupt(path, "__metadata__: {} is {}, not text", quote(key), shown(value));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::string path, FileBytes::Access access) : bytes_(std::move(path), access) {
  parse();
}

void SafetensorsFile::fetch(const StoredTensor& tensor) const {
  if (!bytes_.on_demand()) return bytes_.fetch(place(tensor), tensor.bytes);
  const std::lock_guard lock(mutex_);
  std::size_t& users = fetched_[&tensor];
  if (users == 0) bytes_.fetch(place(tensor), tensor.bytes);
  ++users;
}

void SafetensorsFile::release(const StoredTensor& tensor) const noexcept {
  if (!bytes_.on_demand()) return;
  const std::lock_guard lock(mutex_);
  const auto at = fetched_.find(&tensor);
  if (at != fetched_.end() && at->second > 0 && --at->second == 0) bytes_.release(place(tensor), tensor.bytes);
}

void SafetensorsFile::parse() {
  const std::size_t size = bytes_.size();
  bytes_.fetch(0, std::min<std::size_t>(size, 4096));
  if (size <= kLengthBytes || bytes_.text()[kLengthBytes] != '{') {
    if (const std::string foreign = foreign_content(bytes_.text()); !foreign.empty())
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {}", path(), foreign);
  }
  if (size < kLengthBytes) corrupt(path(), "{} bytes, at least 8 are needed for the header's length", size);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes_.data(), kLengthBytes);
  if (length > size - kLengthBytes || length > kMaxHeader) {
    corrupt(path(), "header length {}; at most {} is possible in a file of {} bytes", length,
            std::min<std::uint64_t>(size - kLengthBytes, kMaxHeader), size);
  }
  bytes_.fetch(kLengthBytes, length);
  const std::string_view text = bytes_.text().substr(kLengthBytes, length);
  if (text.empty() || text.front() != '{') corrupt(path(), "the header does not begin with '{{'");
  const Json header = parse_json(text, path());

  const std::byte* const data = bytes_.data() + kLengthBytes + length;
  const std::uint64_t limit = size - kLengthBytes - length;
  struct Extent {
    std::uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Extent> extents;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(path(), entry);
      continue;
    }
    Parsed parsed = parse_entry(path(), name, entry, limit);
    parsed.tensor.data = data + parsed.begin;
    const auto at = tensors_.emplace_hint(tensors_.end(), name, std::move(parsed.tensor));  // items() is sorted
    extents.push_back({parsed.begin, parsed.end, &at->first});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t covered = 0;
  for (const Extent& extent : extents) {
    if (extent.begin != covered) {
      corrupt(path(), "tensor {}: data begins at {}, but the data before it ends at {} ({})", quote(*extent.name),
              extent.begin, covered, extent.begin < covered ? "overlap" : "hole");
    }
    covered = extent.end;
  }
  if (covered != limit) corrupt(path(), "{} bytes of data, but the tensors end at {} (hole)", limit, covered);
}

}  // namespace q4::checkpoint
