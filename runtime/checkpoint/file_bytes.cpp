// Maps or reads a file and closes it, again and again where it is read on demand; knows the limits that can be in the way, and what strangers' files look like.
#include "runtime/checkpoint/file_bytes.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>

#include "runtime/base/check.hpp"
#include "runtime/base/file_system.hpp"
#include "runtime/base/settings.hpp"

namespace q4::checkpoint {
namespace {

std::string limit_text(int resource) {
  struct ::rlimit limit {};
  if (::getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur);
}

std::string remedy(int error) {
  switch (error) {
    case EMFILE:
      return fmt::format("the process has its limit of {} files open (ulimit -n): raise it or close some",
                         limit_text(RLIMIT_NOFILE));
    case ENFILE:
      return "the system has its limit of files open (/proc/sys/fs/file-max): raise it or close some";
    case ELOOP:
      return "a symbolic link leads back to itself: fetch the file again";
    case ENOENT:
    case ENOTDIR:
      return "check the path";
    case EACCES:
    case EPERM:
      return "check the permissions of the file and its folders";
    case ESTALE:
      return "another machine replaced or removed the file: open the checkpoint again";
    default:
      return "check the file and its disk";
  }
}

constexpr const char* kOpen = "Checkpoint::open";

[[noreturn]] void system_error(const char* caller, const std::string& path, const char* call, int error) {
  std::error_code ignored;
  if (error == ENOENT && std::filesystem::is_symlink(std::filesystem::symlink_status(path, ignored)))
    fail(ErrorCode::kNotFound, "{}: {}: a symbolic link to {}, which does not exist; fetch the file again", caller,
         path, std::filesystem::read_symlink(path, ignored).string());
  fail(error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo, "{}: {}: {}: {}; {}", caller, path,
       call, std::strerror(error), remedy(error));
}

/// Whether a file that could be mapped is read on demand instead.
bool wants_reading(int file) {
  const std::string said = setting("Q4_CHECKPOINT_READ");
  check(said.empty() || said == "map" || said == "read",
        "{}: Q4_CHECKPOINT_READ = {}: it must be map or read, or unset: files of network file systems are then read",
        kOpen, said);
  struct ::statfs system {};
  return said.empty() ? ::fstatfs(file, &system) == 0 && file_system(static_cast<long>(system.f_type)).shared
                      : said == "read";
}

std::int64_t modified_ns(const struct ::stat& status) {
  return static_cast<std::int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

/// Closes the file at the end of the scope.
struct Descriptor {
  int file;
  ~Descriptor() {
    if (file >= 0) ::close(file);
  }
};

bool begins(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

}  // namespace

FileBytes::FileBytes(std::string path, Access access) : path_(std::move(path)) {
  std::error_code ignored;
  absolute_ = std::filesystem::absolute(path_, ignored).string();  // the working folder may change
  struct ::stat status {};
  if (::stat(path_.c_str(), &status) != 0) system_error(kOpen, path_, "stat", errno);
  // Before open(), because opening a device or a pipe can have effects.
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "Checkpoint::open: {}: not a regular file; name a file", path_);
  const Descriptor opened{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (opened.file < 0) system_error(kOpen, path_, "open", errno);
  if (::fstat(opened.file, &status) != 0) system_error(kOpen, path_, "fstat", errno);
  size_ = static_cast<std::size_t>(status.st_size);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  modified_ns_ = modified_ns(status);
  if (size_ == 0) return;
  on_demand_ = access == Access::kOnDemand || (access == Access::kMap && wants_reading(opened.file));
  if (access != Access::kRead) {
    void* const mapped =
        on_demand_ ? ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                   : ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, opened.file, 0);
    if (mapped != MAP_FAILED) {
      data_ = static_cast<const std::byte*>(mapped);
      mapped_ = true;
      return;
    }
    on_demand_ = false;
  }
  read_all(opened.file);
}

void FileBytes::read_all(int file) {
  auto* const memory = static_cast<std::byte*>(::operator new(size_, std::nothrow));
  if (memory == nullptr) {
    fail(ErrorCode::kOutOfMemory,
         "Checkpoint::open: {}: its {} bytes can be neither mapped nor read into memory; the address space is limited "
         "to {} bytes (ulimit -v), the memory to what the system has: raise the limit or use smaller shards",
         path_, size_, limit_text(RLIMIT_AS));
  }
  data_ = memory;
  try {
    read(file, kOpen, 0, size_);
  } catch (...) {  // no destructor runs for what was not constructed
    ::operator delete(memory);
    throw;
  }
}

void FileBytes::read(int file, const char* caller, std::size_t begin, std::size_t size) const {
  auto* const to = const_cast<std::byte*>(data_);
  for (std::size_t at = begin; at < begin + size;) {
    const ::ssize_t count = ::pread(file, to + at, begin + size - at, static_cast<::off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    // Early end: somebody truncates it.
    if (count <= 0) system_error(caller, path_, "read", count < 0 ? errno : EIO);
    at += static_cast<std::size_t>(count);
  }
}

FileBytes::~FileBytes() {
  if (data_ == nullptr) return;
  auto* const memory = const_cast<std::byte*>(data_);
  if (mapped_) {
    ::munmap(memory, size_);
  } else {
    ::operator delete(memory);
  }
}

void FileBytes::fetch(std::size_t begin, std::size_t size) const {
  if (!on_demand_) return check_unchanged();
  constexpr const char* kCaller = "Checkpoint";
  const Descriptor opened{::open(absolute_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (opened.file < 0) system_error(kCaller, path_, "open", errno);
  const auto check = [&] {
    struct ::stat status {};
    if (::fstat(opened.file, &status) != 0) system_error(kCaller, path_, "fstat", errno);
    if (status.st_dev != device_ || status.st_ino != inode_ || static_cast<std::size_t>(status.st_size) != size_ ||
        modified_ns(status) != modified_ns_)
      modified(static_cast<std::uint64_t>(status.st_size));
  };
  check();
  read(opened.file, kCaller, begin, size);
  check();  // or it was written to meanwhile
}

void FileBytes::release(std::size_t begin, std::size_t size) const noexcept {
  if (!on_demand_) return;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t first = (begin + page - 1) / page * page, last = (begin + size) / page * page;
  if (first < last) ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

void FileBytes::check_unchanged() const {
  struct ::stat status {};
  if (::stat(absolute_.c_str(), &status) != 0) return;              // removed or moved away
  if (status.st_dev != device_ || status.st_ino != inode_) return;  // replaced
  if (static_cast<std::size_t>(status.st_size) != size_ || modified_ns(status) != modified_ns_)
    modified(static_cast<std::uint64_t>(status.st_size));
}

void FileBytes::modified(std::uint64_t now) const {
  fail(ErrorCode::kCorrupt,
       "Checkpoint: {}: the file was modified after it was opened ({} bytes then, {} now); open the checkpoint "
       "again, and replace its files by renaming, not by writing into them",
       path_, size_, now);
}

std::string how_read(const std::string& path) {
  const Descriptor opened{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct ::statfs system {};
  if (opened.file < 0 || ::fstatfs(opened.file, &system) != 0) system_error(kOpen, path, "open", errno);
  return (wants_reading(opened.file) ? "read from " : "mapped from ") +
         file_system(static_cast<long>(system.f_type)).name;
}

std::string conversion_command(const std::string& from) {
  return fmt::format(
      "python3 -c \"import sys, torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in "
      "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}}, sys.argv[2])\" {} model.safetensors",
      from);
}

std::string foreign_content(std::string_view start) {
  if (begins(start, "version https://git-lfs.github.com/"))
    return "the file is a git-lfs pointer, not the content that it names; run `git lfs pull` in its folder";
  if (begins(start, "<!DOCTYPE") || begins(start, "<!doctype") || begins(start, "<html"))
    return "the file is a web page, which a download got in the place of the file; fetch it again, logged in if it "
           "needs that";
  if (begins(start, std::string_view("PK\x03\x04", 4)) || begins(start, "\x80\x02\x8a\x0a"))
    return "the file is PyTorch's (.bin, .pt); convert it with " + conversion_command("FILE");
  if (begins(start, "GGUF")) return "the file is GGUF; name a GPTQ or AWQ checkpoint in safetensors";
  return {};
}

}  // namespace q4::checkpoint
