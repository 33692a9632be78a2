// Encodes, checks, reads and writes entry files.
#include "runtime/cache/entry.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "runtime/base/sha256.hpp"
#include "runtime/cache/trust.hpp"

namespace q4::cache {
namespace {

constexpr char kMagic[] = "q4kernel";
constexpr std::uint32_t kSchema = 3;
constexpr std::size_t kMostBytes = 256u << 20;  // no kernel is that large: a bound on what a broken length can ask for

std::string error_text() { return std::generic_category().message(errno); }

/// Closes on scope exit.
struct File {
  int fd;
  ~File() {
    if (fd >= 0) ::close(fd);
  }
};

void append(std::string& out, const void* data, std::size_t size) {
  const auto length = static_cast<std::uint32_t>(size);
  out.append(reinterpret_cast<const char*>(&length), sizeof length);
  out.append(static_cast<const char*>(data), size);
}

/// Takes one length-prefixed field off `rest`.
bool take(std::string_view& rest, std::string_view& field) {
  std::uint32_t length;
  if (rest.size() < sizeof length) return false;
  std::memcpy(&length, rest.data(), sizeof length);
  rest.remove_prefix(sizeof length);
  if (length > rest.size()) return false;
  field = rest.substr(0, length);
  rest.remove_prefix(length);
  return true;
}

bool read_all(int fd, std::string& out, std::size_t size) {
  out.resize(size);
  for (std::size_t at = 0; at < size;) {
    const ssize_t got = ::read(fd, out.data() + at, size - at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += static_cast<std::size_t>(got);
  }
  return true;
}

bool write_all(int fd, std::string_view data) {
  for (std::size_t at = 0; at < data.size();) {
    const ssize_t put = ::write(fd, data.data() + at, data.size() - at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    at += static_cast<std::size_t>(put);
  }
  return true;
}

}  // namespace

std::string KernelKey::text() const {
  std::string all;
  all.reserve(source.size() + headers.size() + target.size() + 256);  // a hit in memory compares it: one allocation
  all += "q4 kernel key 3";
  for (const auto* part : {&source, &headers, &target}) append(all, part->data(), part->size());
  for (const auto& option : options) append(all, option.data(), option.size());
  return all;
}

std::string KernelKey::digest() const {
  const std::string all = text();
  return Sha256().update(all.data(), all.size()).hex();
}

Entry make_entry(const KernelKey& key, const std::string& compiler, std::uint64_t created, std::vector<char> code) {
  return {key, key.digest(), compiler, created, std::move(code)};
}

std::string file_name(const Entry& entry) {
  return entry.digest + "-" + Sha256().field(entry.compiler).hex().substr(0, 16) + kExtension;
}

std::string encode(const Entry& entry) {
  std::string data(kMagic, sizeof kMagic - 1), options;
  data.append(reinterpret_cast<const char*>(&kSchema), sizeof kSchema);
  for (const auto& option : entry.key.options) options += option + "\n";
  const KernelKey& key = entry.key;
  for (const std::string* field :
       {&key.name, &key.source, &key.headers, &key.target, &std::as_const(options), &entry.compiler})
    append(data, field->data(), field->size());
  append(data, &entry.created, sizeof entry.created);
  append(data, entry.code.data(), entry.code.size());
  const auto sum = Sha256().update(data.data(), data.size()).digest();
  return data.append(reinterpret_cast<const char*>(sum.data()), sum.size());
}

Result<Entry> decode(std::string_view data) {
  constexpr std::size_t kHead = sizeof kMagic - 1 + sizeof kSchema, kTail = 32;
  std::uint32_t schema;
  if (data.size() < kHead + kTail || data.compare(0, sizeof kMagic - 1, kMagic) != 0)
    return Failure{"not a q4 kernel, or truncated"};
  std::memcpy(&schema, data.data() + sizeof kMagic - 1, sizeof schema);
  if (schema != kSchema) return Failure{fmt::format("schema {}, this library writes {}", schema, kSchema)};
  const auto sum = Sha256().update(data.data(), data.size() - kTail).digest();
  if (std::memcmp(sum.data(), data.data() + data.size() - kTail, kTail) != 0) return Failure{"checksum does not match"};
  std::string_view rest = data.substr(kHead, data.size() - kHead - kTail), fields[8];
  bool whole = true;
  for (auto& field : fields) whole = whole && take(rest, field);
  Entry entry;
  if (!whole || !rest.empty() || fields[6].size() != sizeof entry.created) return Failure{"fields do not fit the file"};
  if (!fields[4].empty() && fields[4].back() != '\n') return Failure{"its last option has no end"};
  entry.key.name = fields[0], entry.key.source = fields[1], entry.key.headers = fields[2], entry.key.target = fields[3];
  for (std::string_view options = fields[4]; !options.empty();) {
    const auto end = options.find('\n');
    entry.key.options.emplace_back(options.substr(0, end));
    options.remove_prefix(end + 1);
  }
  entry.digest = entry.key.digest(), entry.compiler = fields[5];
  std::memcpy(&entry.created, fields[6].data(), sizeof entry.created);
  entry.code.assign(fields[7].begin(), fields[7].end());
  if (entry.compiler.empty()) return Failure{"does not say which compiler made it"};
  return entry;
}

std::string trusted_file(int fd, std::size_t& size) {
  struct stat status;
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) return "not a regular file";
  size = static_cast<std::size_t>(status.st_size);
  return untrusted(status, trust_of_environment());
}

Found read_entry(const std::string& path) {
  const auto unsound = [](std::string problem) { return Found{{}, std::move(problem)}; };
  const File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
  if (file.fd < 0) return errno == ENOENT ? Found() : unsound(error_text());
  std::size_t size = 0;
  if (auto problem = trusted_file(file.fd, size); !problem.empty()) return unsound(std::move(problem));
  if (size > kMostBytes) return unsound("too large");
  std::string data;
  if (!read_all(file.fd, data, size)) return unsound("cannot be read");
  auto entry = decode(data);
  if (!entry) return unsound(entry.reason());
  if (std::filesystem::path(path).filename() != file_name(*entry))
    return unsound("holds another kernel than its name says");
  return {*std::move(entry), {}};
}

std::string write_file(const std::string& folder, const std::string& file, std::string_view data, unsigned mode) {
  struct stat there;
  if (::stat((folder + "/" + file).c_str(), &there) == 0 &&
      !S_ISREG(there.st_mode))  // renaming would replace /dev/null
    return fmt::format("{}/{} is no regular file", folder, file);
  std::string temporary = folder + "/" + kTemporary + "XXXXXX";
  const File out{::mkostemp(temporary.data(), O_CLOEXEC)};  // 0600, a name of its own
  if (out.fd < 0) return fmt::format("cannot create a file in {}: {}", folder, error_text());
  std::string problem;
  if (!write_all(out.fd, data) || ::fchmod(out.fd, static_cast<mode_t>(mode)) != 0 || ::fsync(out.fd) != 0)
    problem = error_text();
  else if (::rename(temporary.c_str(), (folder + "/" + file).c_str()) != 0)
    problem = error_text();
  if (!problem.empty()) {
    ::unlink(temporary.c_str());
    return fmt::format("cannot write {}/{}: {}", folder, file, problem);
  }
  const File directory{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (directory.fd >= 0) ::fsync(directory.fd);
  return {};
}

std::string prepare_folder(const std::string& folder) {
  const Trust trust = trust_of_environment();
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(folder).parent_path(), error);
  if (::mkdir(folder.c_str(), folder_mode(trust)) == 0) {
    if (trust == Trust::kGroup) ::chmod(folder.c_str(), folder_mode(trust));  // whatever the umask takes away
  } else if (errno != EEXIST) {
    return fmt::format("cannot create {}: {}", folder, error ? error.message() : error_text());  // of a parent, perhaps
  }
  struct stat status;
  if (::lstat(folder.c_str(), &status) != 0) return fmt::format("cannot look at {}: {}", folder, error_text());
  if (!S_ISDIR(status.st_mode)) return fmt::format("{} is not a folder (symbolic links are refused)", folder);
  if (trust == Trust::kOwner && status.st_uid == 0 && ::geteuid() != 0)
    return fmt::format("{} belongs to another user", folder);  // trusted to read, but not ours to write
  const std::string problem = untrusted(status, trust);
  return problem.empty() ? std::string() : fmt::format("{}: {}", folder, problem);
}

}  // namespace q4::cache
