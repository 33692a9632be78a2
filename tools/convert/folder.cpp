// Writing beside, renaming into place.
#include "tools/convert/folder.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/file_bytes.hpp"
#include "tools/common/exit.hpp"

namespace q4::tools::convert {

namespace {

namespace fs = std::filesystem;

constexpr const char* kWeights[] = {".safetensors", ".bin", ".pt",      ".pth", ".ckpt",
                                    ".gguf",        ".h5",  ".msgpack", ".onnx"};
constexpr const char *kTensors = ".safetensors", *kIndex = ".safetensors.index.json";
constexpr const char* kConfigs[] = {"config.json", "quantize_config.json", "quantization_config.json",
                                    "quant_config.json"};

bool is_weights(const std::string& name) {
  return std::any_of(std::begin(kWeights), std::end(kWeights), [&](const char* end) { return name.ends_with(end); });
}

bool is_config(const std::string& name) {
  return std::find(std::begin(kConfigs), std::end(kConfigs), name) != std::end(kConfigs);
}

[[noreturn]] void io(const std::string& path, const char* what, int error) {
  const char* const remedy = error == ENOSPC || error == EDQUOT ? "; free space there, or choose another place for OUT"
                             : error == EFBIG ? "; files may not be that large here (ulimit -f, or the file system)"
                                              : "";
  fail(ErrorCode::kIo, "{}: {}: {}{}", path, what, std::strerror(error), remedy);
}

/// A file in `folder` that the new one would not have again, as a path below it: neither one that q4-convert writes itself
/// nor one of `copied`, which is copied into it (empty: nothing is). Empty: there is none.
std::string foreign_file(const fs::path& folder, const std::string& copied) {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const fs::path below = entry.path().lexically_relative(folder);
    const std::string name = below.string();
    const bool weights = name.starts_with("model") && (name.ends_with(kTensors) || name.ends_with(kIndex));
    const bool written = !below.has_parent_path() && (weights || is_config(name));
    if (written || (entry.is_directory() && !entry.is_symlink())) continue;
    if (copied.empty() || is_weights(name) || !fs::exists(fs::path(copied) / below)) return name;
  }
  return "";
}

void sync_folder(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return;  // not every file system opens folders; the rename is as atomic without
  ::fsync(file);
  ::close(file);
}

void copy_bytes(const fs::path& from, const fs::path& to) {
  const auto bytes = read_input(
      [&] { return std::make_unique<checkpoint::FileBytes>(from.string(), checkpoint::FileBytes::Access::kRead); });
  OutFile out(to.string());
  out.write(bytes->data(), bytes->size());
  out.close();
}

void copy_folder(const fs::path& from, const fs::path& to, bool top, std::vector<std::string>& left_out) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (name[0] == '.' || name.ends_with(".index.json") || (top && is_config(name))) continue;
    if (is_weights(name)) {
      left_out.push_back(name);
    } else if (entry.is_symlink() && entry.is_directory()) {
      left_out.push_back(name);  // it may lead anywhere, also up
    } else if (entry.is_directory()) {
      fs::create_directory(to / name);
      copy_folder(entry.path(), to / name, false, left_out);
      if (fs::is_empty(to / name)) fs::remove(to / name);  // it held weights alone
    } else {
      copy_bytes(entry.path(), to / name);
    }
  }
}

}  // namespace

OutFile::OutFile(const std::string& path) : path_(path) {
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) failed("cannot be created");
}

OutFile::~OutFile() {
  if (file_ >= 0) ::close(file_);
}

void OutFile::failed(const char* what) const { io(path_, what, errno); }

void OutFile::write(const void* data, std::size_t bytes) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file_, from, std::min<std::size_t>(bytes, std::size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) failed("cannot be written");
    from += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void OutFile::close() {
  if (::fsync(file_) != 0 && errno != EINVAL && errno != EROFS) failed("cannot be written to the disk");
  const int file = file_;
  file_ = -1;
  if (::close(file) != 0) failed("cannot be written to the disk");
}

NewFolder::NewFolder(const std::string& out, const std::string& in, const std::string& copied, bool force)
    : force_(force) {
  check(!out.empty(), "OUT is empty; name a new folder");
  fs::path place = fs::absolute(out).lexically_normal();
  if (place.filename().empty()) place = place.parent_path();  // "out/"
  const fs::path parent = place.parent_path();
  check(!place.filename().empty() && place.filename() != "..", "OUT = \"{}\": name a new folder", out);
  check(fs::is_directory(parent), "OUT = {}: {} is not a folder; make it first", out, parent.string());
  const fs::file_status status = fs::symlink_status(place);
  if (fs::exists(status)) {
    check(fs::is_directory(status), "OUT = {}: it exists and is not a folder; name a new folder", out);
    const bool empty = fs::is_empty(place);
    check(empty || force, "OUT = {}: it exists and is not empty; name a new folder, or replace it with --force", out);
    const std::string foreign = empty ? "" : foreign_file(place, copied);
    check(
        foreign.empty(),
        "OUT = {}: --force replaces a checkpoint, and there is a file that is not of this one: {}; remove it, or name "
        "another folder",
        out, foreign);
  }
  // Resolved, so that no link hides that one is in the other.
  const fs::path real_in = fs::canonical(fs::is_directory(in) ? fs::path(in) : fs::absolute(in).parent_path());
  const fs::path real_out = fs::canonical(parent) / place.filename();
  const auto within = [](const fs::path& inner, const fs::path& outer) {
    return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
  };
  check(!within(real_in, real_out) && !within(real_out, real_in),
        "OUT = {}: it is the folder of IN ({}), within it or around it; name a folder apart from it", out,
        real_in.string());
  out_ = real_out.string();
  std::string name =
      (real_out.parent_path() / fmt::format(".{}.q4-convert-XXXXXX", real_out.filename().string())).string();
  if (::mkdtemp(name.data()) == nullptr) io(parent.string(), "no folder can be made in it", errno);
  temporary_ = name;
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::chmod(temporary_.c_str(), 0777 & ~mask);
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void NewFolder::need(std::uint64_t bytes) const {
  struct statvfs space {};
  if (::statvfs(temporary_.c_str(), &space) != 0) return;
  const std::uint64_t left = std::uint64_t{space.f_bavail} * space.f_frsize;
  if (bytes > left) {
    fail(ErrorCode::kIo,
         "OUT = {}: {:.1f} MB are needed and {:.1f} MB are free; free space there, or choose another place", out_,
         static_cast<double>(bytes) / 1e6, static_cast<double>(left) / 1e6);
  }
}

void NewFolder::commit() {
  sync_folder(temporary_);
  const bool replaces = force_ && fs::exists(fs::symlink_status(out_)) && !fs::is_empty(out_);
  if (!replaces) {
    // rename() itself never replaces a folder that is not empty, whoever made it meanwhile.
    if (::rename(temporary_.c_str(), out_.c_str()) != 0) io(out_, "the new folder cannot be renamed to it", errno);
    temporary_.clear();
  } else {
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, out_.c_str(), RENAME_EXCHANGE) != 0) {
      if (errno != EINVAL && errno != ENOSYS) io(out_, "it cannot be exchanged with the new folder", errno);
      const std::string old = temporary_ + ".old";
      if (::rename(out_.c_str(), old.c_str()) != 0) io(out_, "it cannot be renamed", errno);
      if (::rename(temporary_.c_str(), out_.c_str()) != 0) {
        const int error = errno;
        ::rename(old.c_str(), out_.c_str());
        io(out_, "the new folder cannot be renamed to it", error);
      }
      temporary_ = old;
    }
    std::error_code error;
    fs::remove_all(temporary_, error);  // what was there before
    if (error)
      fail(ErrorCode::kIo, "{}: what was there before cannot be removed: {}; remove it", temporary_, error.message());
    temporary_.clear();
  }
  sync_folder(fs::path(out_).parent_path().string());
}

void write_safetensors(const std::string& path, const std::vector<OutTensor>& tensors,
                       const std::function<void(const OutTensor&, OutFile&)>& bytes) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t at = 0;
  for (const OutTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes}}};
    at += tensor.bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // so that the data is aligned
  const std::uint64_t size = text.size();
  OutFile file(path);
  file.write(&size, sizeof size);
  file.write(text.data(), text.size());
  for (const OutTensor& tensor : tensors) bytes(tensor, file);
  file.close();
}

std::vector<std::string> copy_other_files(const std::string& from, const std::string& to) {
  std::vector<std::string> left_out;
  try {
    copy_folder(from, to, true, left_out);
  } catch (const fs::filesystem_error& error) { fail(ErrorCode::kIo, "{}: copying it: {}", from, error.what()); }
  std::sort(left_out.begin(), left_out.end());
  return left_out;
}

}  // namespace q4::tools::convert
