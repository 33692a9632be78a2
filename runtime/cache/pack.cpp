// Reads, checks, searches and writes packs.
#include "runtime/cache/pack.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <q4/version.hpp>
#include <system_error>

#include "runtime/base/sha256.hpp"
#include "runtime/cache/signature.hpp"
#include "runtime/cache/trust.hpp"

namespace q4::cache {
namespace {

constexpr std::string_view kMagic = "q4pack\r\n";  // a transfer that changes line ends shows at once
constexpr std::uint32_t kSchema = 2;
constexpr std::size_t kSum = 32, kFixed = 40, kSigned = kFixed + kSum, kRow = 80;
constexpr std::size_t kHead = kSigned + kSignatureBytes + kPublicBytes;

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

/// `rest`: manifest, tuning records and index.
std::string head_sum(std::string_view fixed, std::string_view rest) {
  const auto sum = Sha256().update(fixed.data(), fixed.size()).update(rest.data(), rest.size()).digest();
  return {reinterpret_cast<const char*>(sum.data()), sum.size()};
}

std::string make_manifest(const std::map<std::string, const Entry*>& entries, std::string_view tuning) {
  nlohmann::ordered_json manifest{{"q4", Q4_VERSION}, {"kernels", entries.size()}};
  std::map<std::string, std::size_t> targets, compilers, headers;
  std::size_t bytes = 0;
  for (const auto& [key, entry] : entries) {
    ++targets[entry->key.target], ++compilers[entry->compiler], ++headers[entry->key.headers];
    bytes += entry->code.size();
  }
  manifest["code_bytes"] = bytes;
  manifest["tuning_records"] = std::count(tuning.begin(), tuning.end(), '\n');
  manifest["targets"] = targets, manifest["compilers"] = compilers, manifest["kernel_headers"] = headers;
  return manifest.dump(2) + "\n";
}

}  // namespace

Result<std::shared_ptr<const Pack>> Pack::open(const std::string& path, const std::string& public_key) {
  const std::shared_ptr<Pack> pack(new Pack);
  pack->path_ = path;
  pack->fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (pack->fd_ < 0) return Failure{std::generic_category().message(errno)};
  struct stat status;
  if (::fstat(pack->fd_, &status) != 0 || !S_ISREG(status.st_mode)) return Failure{"not a regular file"};
  if (public_key.empty())
    if (auto problem = untrusted(status, trust_of_environment()); !problem.empty()) return Failure{std::move(problem)};
  const std::size_t size = pack->file_bytes_ = static_cast<std::size_t>(status.st_size);
  if (size < kHead) return Failure{"not a q4 pack, or truncated"};
  auto fixed = pack->read(0, kHead);
  if (!fixed) return Failure{fixed.reason()};
  pack->head_ = *std::move(fixed);
  const auto manifest = number_at<std::uint64_t>(pack->head_, 16), tuning = number_at<std::uint64_t>(pack->head_, 24),
             whole = number_at<std::uint64_t>(pack->head_, 32);
  const auto schema = number_at<std::uint32_t>(pack->head_, 8);
  const std::uint64_t room = size - kHead;
  pack->count_ = number_at<std::uint32_t>(pack->head_, 12);
  if (!pack->head_.starts_with(kMagic)) return Failure{"not a q4 pack"};
  if (schema != kSchema) return Failure{fmt::format("schema {}, this library reads {}", schema, kSchema)};
  if (whole != size) return Failure{fmt::format("{} bytes, it was written with {}: truncated", size, whole)};
  if (manifest > room || tuning > room - manifest || pack->count_ > (room - manifest - tuning) / kRow)
    return Failure{"its head overruns the file"};
  pack->tuning_at_ = kHead + manifest, pack->index_at_ = pack->tuning_at_ + tuning;
  const auto rest = pack->read(kHead, pack->index_at_ + pack->count_ * kRow - kHead);
  if (!rest) return Failure{rest.reason()};
  pack->head_ += *rest;
  const std::string_view head = pack->head_;
  if (head_sum(head.substr(0, kFixed), head.substr(kHead)) != head.substr(kFixed, kSum))
    return Failure{"checksum of its head does not match"};
  if (public_key.empty()) return std::shared_ptr<const Pack>(pack);
  auto problem = signature_problem(head.substr(0, kSigned), head.substr(kSigned, kHead - kSigned), public_key);
  if (!problem.empty()) return Failure{std::move(problem)};
  return std::shared_ptr<const Pack>(pack);
}

Pack::~Pack() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::string> Pack::read(std::size_t at, std::size_t size) const {
  std::string data(size, '\0');
  for (std::size_t done = 0; done < size;) {
    const ssize_t got = ::pread(fd_, data.data() + done, size - done, static_cast<off_t>(at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) return Failure{"it was truncated after it was opened: replace a pack by renaming"};
    if (got < 0 && errno == ESTALE)
      return Failure{"another machine replaced it after it was opened (stale file handle): restart to use the new one"};
    if (got < 0) return Failure{"cannot be read: " + std::generic_category().message(errno)};
    done += static_cast<std::size_t>(got);
  }
  return data;
}

std::string_view Pack::manifest() const { return std::string_view(head_).substr(kHead, tuning_at_ - kHead); }
std::string_view Pack::tuning() const { return std::string_view(head_).substr(tuning_at_, index_at_ - tuning_at_); }

bool Pack::holds(const std::string& target, const std::vector<std::string>& headers) const {
  const auto said = nlohmann::json::parse(manifest(), nullptr, false);
  if (!said.is_object() || !said.contains("targets") || !said["targets"].contains(target)) return false;
  return said.contains("kernel_headers") && std::any_of(headers.begin(), headers.end(), [&](const auto& digest) {
           return said["kernel_headers"].contains(digest);
         });
}

std::string Pack::signer() const {
  const auto key = std::string_view(head_).substr(kSigned + kSignatureBytes, kPublicBytes);
  return key.find_first_not_of('\0') == key.npos ? std::string() : hex_of_bytes(key);
}

std::string_view Pack::index(std::size_t i) const { return std::string_view(head_).substr(index_at_ + i * kRow, kRow); }

Result<Entry> Pack::entry(std::size_t i) const {
  const auto row = index(i);
  const auto offset = number_at<std::uint64_t>(row, 2 * kSum), bytes = number_at<std::uint64_t>(row, 2 * kSum + 8);
  if (offset > file_bytes_ || bytes > file_bytes_ - offset || bytes < kSum)
    return Failure{fmt::format("entry {} lies outside the file", i)};
  const auto data = read(offset, bytes);
  auto entry = data ? decode(*data) : Failure{data.reason()};
  if (!entry) return Failure{fmt::format("entry {}: {}", i, entry.reason())};
  if (data->substr(bytes - kSum) != row.substr(kSum, kSum) || bytes_of_hex(entry->digest) != row.substr(0, kSum))
    return Failure{fmt::format("entry {}: not the one that the index names", i)};
  return entry;
}

Found Pack::find(const std::string& digest, const std::string& target) const {
  const std::string key = bytes_of_hex(digest);
  if (key.size() != kSum) return {};
  std::size_t low = 0, high = count_;
  while (low < high) {
    const std::size_t middle = low + (high - low) / 2;
    if (index(middle).substr(0, kSum) < key)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == count_ || index(low).substr(0, kSum) != key) return {};
  auto found = entry(low);
  if (!found) return {{}, found.reason()};
  if (found->key.target != target) return {{}, fmt::format("entry {} is for {}", low, found->key.target)};
  return {*std::move(found), {}};
}

std::vector<std::string> Pack::verify() const {
  std::vector<std::string> problems;
  std::size_t end = index_at_ + count_ * kRow;
  for (std::size_t i = 0; i < count_; ++i) {
    if (const auto checked = entry(i); !checked) problems.push_back(checked.reason());
    if (i > 0 && !(index(i - 1).substr(0, kSum) < index(i).substr(0, kSum)))
      problems.push_back(fmt::format("entry {}: the index is not sorted", i));
    if (number_at<std::uint64_t>(index(i), 2 * kSum) != end)
      problems.push_back(fmt::format("entry {}: bytes before it that belong to none", i));
    end = number_at<std::uint64_t>(index(i), 2 * kSum) + number_at<std::uint64_t>(index(i), 2 * kSum + 8);
  }
  const auto signature = std::string_view(head_).substr(kSigned, kHead - kSigned);
  if (signature.find_first_not_of('\0') != signature.npos)  // whoever's it is
    if (const auto problem = signature_problem(std::string_view(head_).substr(0, kSigned), signature,
                                               hex_of_bytes(signature.substr(kSignatureBytes)));
        !problem.empty())
      problems.push_back(problem);
  if (problems.empty() && end != file_bytes_) problems.push_back("bytes at its end that belong to no entry");
  return problems;
}

namespace {

std::string put(const std::string& path, std::string_view file) {
  const std::filesystem::path to(path);
  return write_file(to.has_parent_path() ? to.parent_path().string() : ".", to.filename().string(), file, 0644);
}

}  // namespace

std::string write_pack(const std::string& path, const std::vector<Entry>& entries, std::string_view tuning,
                       const std::string& secret) {
  std::map<std::string, const Entry*> sorted;  // by the key's bytes, as the index is
  for (const auto& entry : entries) {
    const auto [it, added] = sorted.try_emplace(bytes_of_hex(entry.digest), &entry);
    if (!added && entry.created > it->second->created) it->second = &entry;
  }
  const std::string manifest = make_manifest(sorted, tuning);
  std::string index, payload;
  const std::size_t payload_at = kHead + manifest.size() + tuning.size() + sorted.size() * kRow;
  for (const auto& [key, entry] : sorted) {
    const std::string data = encode(*entry);
    index += key + data.substr(data.size() - kSum);
    append_number<std::uint64_t>(index, payload_at + payload.size());
    append_number<std::uint64_t>(index, data.size());
    payload += data;
  }
  std::string file(kMagic);
  append_number(file, kSchema);
  append_number(file, static_cast<std::uint32_t>(sorted.size()));
  append_number<std::uint64_t>(file, manifest.size());
  append_number<std::uint64_t>(file, tuning.size());
  append_number<std::uint64_t>(file, payload_at + payload.size());
  const std::string rest = manifest + std::string(tuning) + index;
  file += head_sum(file, rest);
  file += secret.empty() ? std::string(kHead - kSigned, '\0') : sign(file, secret);
  return put(path, file + rest + payload);
}

std::string sign_pack(const std::string& path, const std::string& secret) {
  const auto pack = Pack::open(path);
  if (!pack) return pack.reason();
  // What is signed is what everybody may trust.
  if (const auto problems = (*pack)->verify(); !problems.empty())
    return problems.front() + "; make the pack again with q4-cache pack";
  const auto bytes = (*pack)->bytes();
  if (!bytes) return bytes.reason();
  std::string file = *bytes;
  file.replace(kSigned, kHead - kSigned, sign(std::string_view(file).substr(0, kSigned), secret));
  return put(path, file);
}

}  // namespace q4::cache
