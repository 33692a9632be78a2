// Maps, checks, searches and writes packs.
#include "runtime/cache/pack.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>

#include "runtime/cache/sha256.hpp"

namespace q4::cache {
namespace {

constexpr std::string_view kMagic = "q4pack\r\n";  // a transfer that changes line ends shows at once
constexpr std::uint32_t kSchema = 1;
constexpr std::size_t kFixed = 32, kHead = 64, kSum = 32, kRow = 80;

template <class T>
T number_at(std::string_view data, std::size_t at) {
  T value;
  std::memcpy(&value, data.data() + at, sizeof value);
  return value;
}

template <class T>
void append_number(std::string& data, T value) {
  data.append(reinterpret_cast<const char*>(&value), sizeof value);
}

int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

/// 64 hex digits as 32 bytes; empty for anything else.
std::string key_of(const std::string& digest) {
  std::string key;
  if (digest.size() != 2 * kSum) return key;
  for (std::size_t i = 0; i < digest.size(); i += 2) {
    if (digit(digest[i]) < 0 || digit(digest[i + 1]) < 0) return {};
    key += static_cast<char>(digit(digest[i]) << 4 | digit(digest[i + 1]));
  }
  return key;
}

std::string head_sum(std::string_view fixed, std::string_view manifest, std::string_view index) {
  Sha256 sha;
  sha.update(fixed.data(), fixed.size()).update(manifest.data(), manifest.size()).update(index.data(), index.size());
  const auto sum = sha.digest();
  return {reinterpret_cast<const char*>(sum.data()), sum.size()};
}

std::string make_manifest(const std::map<std::string, Entry>& entries) {
  nlohmann::ordered_json manifest{{"q4", Q4_VERSION}, {"kernels", entries.size()}};
  std::map<std::string, std::size_t> targets, compilers, headers;
  std::size_t bytes = 0;
  for (const auto& [key, entry] : entries) {
    ++targets[entry.target], ++compilers[entry.compiler], ++headers[entry.headers];
    bytes += entry.code.size();
  }
  manifest["code_bytes"] = bytes;
  manifest["targets"] = targets, manifest["compilers"] = compilers, manifest["kernel_headers"] = headers;
  return manifest.dump(2) + "\n";
}

}  // namespace

std::shared_ptr<const Pack> Pack::open(const std::string& path, std::string& problem) {
  problem.clear();
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return problem = std::generic_category().message(errno), nullptr;
  std::size_t size = 0;
  void* memory = MAP_FAILED;
  problem = trusted_file(fd, size);
  if (problem.empty() && size < kHead) problem = "not a q4 pack, or truncated";
  if (problem.empty()) {
    memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) problem = "cannot be mapped: " + std::generic_category().message(errno);
  }
  ::close(fd);
  if (!problem.empty()) return nullptr;
  const std::shared_ptr<Pack> pack(new Pack);
  pack->path_ = path, pack->data_ = {static_cast<const char*>(memory), size};
  const auto data = pack->data_;
  const std::uint64_t manifest = number_at<std::uint64_t>(data, 16), whole = number_at<std::uint64_t>(data, 24);
  pack->count_ = number_at<std::uint32_t>(data, 12);
  if (!data.starts_with(kMagic))
    problem = "not a q4 pack";
  else if (number_at<std::uint32_t>(data, 8) != kSchema)
    problem = fmt::format("schema {}, this library reads {}", number_at<std::uint32_t>(data, 8), kSchema);
  else if (whole != size)
    problem = fmt::format("{} bytes, it was written with {}: truncated", size, whole);
  else if (manifest > size - kHead || pack->count_ > (size - kHead - manifest) / kRow)
    problem = "its head overruns the file";
  if (!problem.empty()) return nullptr;
  pack->index_at_ = kHead + manifest;
  if (head_sum(data.substr(0, kFixed), pack->manifest(), data.substr(pack->index_at_, pack->count_ * kRow)) !=
      data.substr(kFixed, kSum))
    return problem = "checksum of its head does not match", nullptr;
  return pack;
}

Pack::~Pack() { ::munmap(const_cast<char*>(data_.data()), data_.size()); }

std::string_view Pack::manifest() const { return data_.substr(kHead, index_at_ - kHead); }

std::string_view Pack::index(std::size_t i) const { return data_.substr(index_at_ + i * kRow, kRow); }

std::optional<Entry> Pack::entry(std::size_t i, std::string& problem) const {
  problem.clear();
  const auto row = index(i);
  const auto offset = number_at<std::uint64_t>(row, 2 * kSum), bytes = number_at<std::uint64_t>(row, 2 * kSum + 8);
  if (offset > data_.size() || bytes > data_.size() - offset || bytes < kSum)
    return problem = fmt::format("entry {} lies outside the file", i), std::nullopt;
  const auto data = data_.substr(offset, bytes);
  auto entry = decode(data, problem);
  if (!entry) return problem = fmt::format("entry {}: {}", i, problem), std::nullopt;
  if (data.substr(bytes - kSum) != row.substr(kSum, kSum) || key_of(entry->digest) != row.substr(0, kSum))
    return problem = fmt::format("entry {}: not the one that the index names", i), std::nullopt;
  return entry;
}

std::optional<Entry> Pack::find(const std::string& digest, const std::string& target, std::string& problem) const {
  problem.clear();
  const std::string key = key_of(digest);
  std::size_t low = 0, high = count_;
  while (low < high) {
    const std::size_t middle = low + (high - low) / 2;
    if (index(middle).substr(0, kSum) < key)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == count_ || index(low).substr(0, kSum) != key) return std::nullopt;
  auto found = entry(low, problem);
  if (found && found->target != target)
    return problem = fmt::format("entry {} is for {}", low, found->target), std::nullopt;
  return found;
}

std::vector<std::string> Pack::verify() const {
  std::vector<std::string> problems;
  std::string problem;
  std::size_t end = index_at_ + count_ * kRow;
  for (std::size_t i = 0; i < count_; ++i) {
    if (!entry(i, problem)) problems.push_back(problem);
    if (i > 0 && !(index(i - 1).substr(0, kSum) < index(i).substr(0, kSum)))
      problems.push_back(fmt::format("entry {}: the index is not sorted", i));
    if (number_at<std::uint64_t>(index(i), 2 * kSum) != end)
      problems.push_back(fmt::format("entry {}: bytes before it that belong to none", i));
    end = number_at<std::uint64_t>(index(i), 2 * kSum) + number_at<std::uint64_t>(index(i), 2 * kSum + 8);
  }
  if (problems.empty() && end != data_.size()) problems.push_back("bytes at its end that belong to no entry");
  return problems;
}

std::string write_pack(const std::string& path, std::vector<Entry> entries) {
  std::map<std::string, Entry> sorted;  // by the key's bytes, as the index is
  for (auto& entry : entries) {
    const std::string key = key_of(entry.digest);
    if (key.empty()) return fmt::format("kernel '{}': its key '{}' is no SHA-256", entry.name, entry.digest);
    const auto [it, added] = sorted.try_emplace(key, entry);
    if (!added && entry.created > it->second.created) it->second = std::move(entry);
  }
  const std::string manifest = make_manifest(sorted);
  std::string index, payload;
  const std::size_t payload_at = kHead + manifest.size() + sorted.size() * kRow;
  for (const auto& [key, entry] : sorted) {
    const std::string data = encode(entry);
    index += key + data.substr(data.size() - kSum);
    append_number<std::uint64_t>(index, payload_at + payload.size());
    append_number<std::uint64_t>(index, data.size());
    payload += data;
  }
  std::string file(kMagic);
  append_number(file, kSchema);
  append_number(file, static_cast<std::uint32_t>(sorted.size()));
  append_number<std::uint64_t>(file, manifest.size());
  append_number<std::uint64_t>(file, payload_at + payload.size());
  file += head_sum(file, manifest, index) + manifest + index + payload;
  const std::filesystem::path to(path);
  return write_file(to.has_parent_path() ? to.parent_path().string() : ".", to.filename().string(), file, 0644);
}

}  // namespace q4::cache
