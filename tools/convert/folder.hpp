// The new folder: written beside its place and renamed into it, so that nothing half-done is ever seen there.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/convert/target.hpp"

namespace q4::tools::convert {

/// A file that is being written. Errors are kIo with path, system's text and remedy.
class OutFile {
 public:
  explicit OutFile(const std::string& path);
  ~OutFile();
  OutFile(const OutFile&) = delete;
  OutFile& operator=(const OutFile&) = delete;
  void write(const void* data, std::size_t bytes);
  void close();  ///< to the disk; must be called, or what was written may be lost unseen

 private:
  [[noreturn]] void failed(const char* what) const;
  std::string path_;
  int file_ = -1;
};

/// The place of a new checkpoint, and the folder beside it that is filled first; that one is removed unless commit()
/// was reached.
class NewFolder {
 public:
  /// Checks that `out` can be made (its parent exists; it is absent or an empty folder, or `force` is set and it
  /// holds nothing but what q4-convert writes and files of the folder `copied`) and is apart from `in`. Throws
  /// kInvalidArgument or kIo, and nothing has been changed then.
  NewFolder(const std::string& out, const std::string& in, const std::string& copied, bool force);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  const std::string& path() const { return temporary_; }
  /// Throws kIo unless the disk has this many bytes left.
  void need(std::uint64_t bytes) const;
  /// Renames it into its place, in one step.
  void commit();

 private:
  std::string out_, temporary_;
  bool force_ = false;
};

/// A safetensors file of these tensors, in this order; `bytes` is called once a tensor, in order, and must give as many
/// bytes as the tensor has.
void write_safetensors(const std::string& path, const std::vector<OutTensor>& tensors,
                       const std::function<void(const OutTensor&, OutFile&)>& bytes);

/// Copies what is not weights or their configuration (tokenizer, templates, code, licence) from one folder to the
/// other, links followed. Returns the names of files of weights that were left out.
std::vector<std::string> copy_other_files(const std::string& from, const std::string& to);

}  // namespace q4::tools::convert
