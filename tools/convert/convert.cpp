// Plans the files, writes them, reads them back.
#include "tools/convert/convert.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "runtime/base/check.hpp"
#include "tools/common/exit.hpp"
#include "tools/convert/config.hpp"
#include "tools/convert/folder.hpp"

namespace q4::tools::convert {

namespace {

using checkpoint::quote;
using Shards = std::vector<std::vector<OutTensor>>;

void refuse_what_is_not_exact(Format format, const Source& source) {
  std::size_t count = 0;
  std::string first;
  for (std::size_t i = 0; i < source.plans().size(); ++i) {
    const std::string reason = refusal(format, source.plans()[i]);
    if (reason.empty()) continue;
    ++count;
    if (first.empty()) first = fmt::format("{}: {}", quote(source.matrices()[i].entry.name), reason);
  }
  if (first.empty()) first = config_refusal(format, source);
  if (first.empty()) return;
  fail(ErrorCode::kUnsupported, "--to {}: {}: {} of {} matrices cannot be converted exactly: {}", to_string(format),
       source.folder(), std::max<std::size_t>(count, 1), source.matrices().size(), first);
}

/// All tensors in the order of their names, those that would misalign what follows them last.
std::vector<OutTensor> all_tensors(Format format, const Source& source) {
  std::vector<OutTensor> tensors;
  for (std::size_t i = 0; i < source.matrices().size(); ++i)
    for (OutTensor& tensor : tensors_of(format, source.plans()[i], source.matrices()[i].entry.name, i))
      tensors.push_back(std::move(tensor));
  for (const std::string& name : source.others()) {
    const checkpoint::StoredTensor& stored = *source.files().tensors.at(name).tensor;
    tensors.push_back({name, stored.dtype, stored.shape, stored.bytes});
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const OutTensor& a, const OutTensor& b) { return checkpoint::natural_less(a.name, b.name); });
  return tensors;
}

Shards shards_of(std::vector<OutTensor> tensors, std::uint64_t limit) {
  Shards shards(1);
  std::uint64_t bytes = 0;
  for (OutTensor& tensor : tensors) {
    if (bytes > 0 && bytes + tensor.bytes > limit) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += tensor.bytes;
    shards.back().push_back(std::move(tensor));
  }
  // Data of 8, 4, 2 bytes stays aligned if what is no multiple of 8 bytes comes last, the largest power of two first.
  const auto alignment = [](const OutTensor& tensor) { return std::min<std::size_t>(8, tensor.bytes & -tensor.bytes); };
  for (auto& shard : shards)
    std::stable_sort(shard.begin(), shard.end(), [&](const OutTensor& a, const OutTensor& b) {
      return (a.bytes == 0 ? 8 : alignment(a)) > (b.bytes == 0 ? 8 : alignment(b));
    });
  return shards;
}

std::string file_name(std::size_t shard, std::size_t shards) {
  return shards == 1 ? "model.safetensors" : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

void write_text(const std::string& path, const std::string& text) {
  OutFile file(path);
  file.write(text.data(), text.size());
  file.close();
}

void write_index(const NewFolder& folder, const Shards& shards, std::uint64_t total) {
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  for (std::size_t i = 0; i < shards.size(); ++i)
    for (const OutTensor& tensor : shards[i]) map[tensor.name] = file_name(i, shards.size());
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  write_text(folder.file("model.safetensors.index.json"), index.dump(2) + "\n");
}

/// Numbers of one matrix at a time: the tensors of a matrix follow each other.
class OneMatrix {
 public:
  explicit OneMatrix(const Source& source) : source_(source) {}
  const Numbers& numbers(std::size_t matrix) {
    if (matrix_ != matrix) numbers_ = source_.numbers(matrix);
    matrix_ = matrix;
    return numbers_;
  }

 private:
  const Source& source_;
  std::optional<std::size_t> matrix_;
  Numbers numbers_;
};

[[noreturn]] void differs(const std::string& name) {
  fail(
      ErrorCode::kIo,
      "{}: what was read back differs from what was converted; nothing was kept. The disk or memory is faulty, or this "
      "is a defect of q4-convert: please report it",
      quote(name));
}

void read_back(const Source& source, const std::string& written, const std::function<void()>& step) {
  const Source again(written);
  if (again.matrices().size() != source.matrices().size() || again.others() != source.others()) differs(written);
  for (std::size_t i = 0; i < source.matrices().size(); ++i) {
    const std::string& name = source.matrices()[i].entry.name;
    const Plan &a = source.plans()[i], &b = again.plans()[i];
    const bool same = again.matrices()[i].entry.name == name && a.k == b.k && a.n == b.n && a.groups == b.groups &&
                      a.act_order == b.act_order && a.scale_type == b.scale_type;
    if (!same || source.numbers(i) != again.numbers(i)) differs(name);
    step();
  }
  for (const std::string& name : source.others()) {
    const checkpoint::Located &from = source.files().tensors.at(name), &to = again.files().tensors.at(name);
    const checkpoint::Fetched fetched({&from, &to});
    const checkpoint::StoredTensor &a = *from.tensor, &b = *to.tensor;
    if (a.dtype != b.dtype || a.shape != b.shape || std::memcmp(a.data, b.data, a.bytes) != 0) differs(name);
    step();
  }
}

}  // namespace

Converted convert(const Request& request, const std::function<void(double, const std::string&)>& progress) {
  const Source source = read_input([&] { return Source(request.in); });
  refuse_what_is_not_exact(request.format, source);
  const std::string config = config_text(request.format, source);
  const Shards shards = shards_of(all_tensors(request.format, source), request.shard_bytes);
  Converted result{source.packing(), source.matrices().size(), source.others().size(), shards.size()};
  std::size_t tensors = 0;
  for (const auto& shard : shards)
    for (const OutTensor& tensor : shard) result.bytes += tensor.bytes, ++tensors;

  // A single file may lie among anything, in a home folder for one.
  const bool whole = std::filesystem::is_directory(request.in) || request.in.ends_with(".index.json");
  NewFolder folder(request.out, request.in, whole ? source.folder() : "", request.force);
  folder.need(result.bytes);
  if (whole) result.left_out = copy_other_files(source.folder(), folder.path());
  for (const auto& [name, at] : source.files().tensors) {
    const std::string file = at.file->path().substr(at.file->path().rfind('/') + 1);
    std::erase(result.left_out, file);
  }
  write_text(folder.file("config.json"), config);
  OneMatrix one(source);
  std::size_t done = 0, checked = 0;
  const std::size_t to_check = source.matrices().size() + source.others().size();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    write_safetensors(folder.file(file_name(i, shards.size())), shards[i], [&](const OutTensor& tensor, OutFile& file) {
      progress(0.7 * static_cast<double>(done++) / static_cast<double>(tensors), tensor.name);
      if (tensor.part.empty()) {
        const checkpoint::Located& at = source.files().tensors.at(tensor.name);
        const checkpoint::Fetched fetched({&at});
        file.write(at.tensor->data, at.tensor->bytes);
        return;
      }
      const auto bytes =
          bytes_of(request.format, source.plans()[tensor.matrix], one.numbers(tensor.matrix), tensor.part);
      file.write(bytes.data(), bytes.size());
    });
  }
  if (shards.size() > 1) write_index(folder, shards, result.bytes);
  read_back(source, folder.path(), [&] {
    progress(0.7 + 0.3 * static_cast<double>(++checked) / static_cast<double>(std::max<std::size_t>(to_check, 1)),
             "reading back");
  });
  folder.commit();
  return result;
}

}  // namespace q4::tools::convert
