// Maps or reads a file and closes it; knows the limits that can be in the way, and what strangers' files look like.
#include "runtime/checkpoint/file_bytes.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>

#include "runtime/base/check.hpp"

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
    default:
      return "check the file and its disk";
  }
}

[[noreturn]] void system_error(const std::string& path, const char* call, int error) {
  std::error_code ignored;
  if (error == ENOENT && std::filesystem::is_symlink(std::filesystem::symlink_status(path, ignored)))
    fail(ErrorCode::kNotFound,
         "Checkpoint::open: {}: a symbolic link to {}, which does not exist; fetch the file again", path,
         std::filesystem::read_symlink(path, ignored).string());
  fail(error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo, "Checkpoint::open: {}: {}: {}; {}",
       path, call, std::strerror(error), remedy(error));
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
  if (::stat(path_.c_str(), &status) != 0) system_error(path_, "stat", errno);
  // Before open(), because opening a device or a pipe can have effects.
  if (!S_ISREG(status.st_mode)) fail(ErrorCode::kIo, "Checkpoint::open: {}: not a regular file; name a file", path_);
  const Descriptor opened{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (opened.file < 0) system_error(path_, "open", errno);
  if (::fstat(opened.file, &status) != 0) system_error(path_, "fstat", errno);
  size_ = static_cast<std::size_t>(status.st_size);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  modified_ns_ = modified_ns(status);
  if (size_ == 0) return;
  if (access == Access::kMap) {
    void* const mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, opened.file, 0);
    if (mapped != MAP_FAILED) {
      data_ = static_cast<const std::byte*>(mapped);
      mapped_ = true;
      return;
    }
  }
  read(opened.file);
}

void FileBytes::read(int file) {
  auto* const memory = static_cast<std::byte*>(::operator new(size_, std::nothrow));
  if (memory == nullptr) {
    fail(ErrorCode::kOutOfMemory,
         "Checkpoint::open: {}: its {} bytes can be neither mapped nor read into memory; the address space is limited "
         "to {} bytes (ulimit -v), the memory to what the system has: raise the limit or use smaller shards",
         path_, size_, limit_text(RLIMIT_AS));
  }
  for (std::size_t done = 0; done < size_;) {
    const ::ssize_t count = ::pread(file, memory + done, size_ - done, static_cast<::off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int error = count < 0 ? errno : EIO;  // it ended early: somebody truncates it
      ::operator delete(memory);
      system_error(path_, "read", error);
    }
    done += static_cast<std::size_t>(count);
  }
  data_ = memory;
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

void FileBytes::check_unchanged() const {
  struct ::stat status {};
  if (::stat(absolute_.c_str(), &status) != 0) return;              // removed or moved away
  if (status.st_dev != device_ || status.st_ino != inode_) return;  // replaced
  if (static_cast<std::size_t>(status.st_size) != size_ || modified_ns(status) != modified_ns_) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint: {}: the file was modified after it was opened ({} bytes then, {} now); open the checkpoint "
         "again, and replace its files by renaming, not by writing into them",
         path_, size_, status.st_size);
  }
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
