// Checkpoints of many matrices and many files: opening takes linear time and few descriptors.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <q4/checkpoint.hpp>

#include "checkpoint_maker.hpp"
#include "paths.hpp"
#include "report.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace q4::test {
namespace {

/// The smallest matrices there are, `count` of them over `shards` files, named as those of a mixture of experts.
void make_many(const std::string& folder, int count, int shards) {
  const GptqMatrix matrix = make_gptq({.k = 8, .n = 8, .group_size = 8, .act_order = ActOrder::kTrivial});
  std::string index = "{\"weight_map\":{";
  for (int shard = 0; shard < shards; ++shard) {
    const std::string file = "model-" + std::to_string(shard + 1) + ".safetensors";
    std::vector<FileTensor> tensors;
    for (int i = shard * count / shards; i < (shard + 1) * count / shards; ++i) {
      const std::string name = "model.layers." + std::to_string(i / 384) + ".mlp.experts." +
                               std::to_string(i / 3 % 128) +
                               (i % 3 == 0   ? ".down_proj"
                                : i % 3 == 1 ? ".gate_proj"
                                             : ".up_proj");
      for (FileTensor& tensor : file_tensors(name, matrix)) {
        index += (index.back() == '{' ? "\"" : ",\"") + tensor.name + "\":\"" + file + "\"";
        tensors.push_back(std::move(tensor));
      }
    }
    write_safetensors(folder + "/" + file, tensors);
  }
  write_file(folder + "/model.safetensors.index.json", index + "}}");
}

template <class Work>
double best_seconds(int times, Work&& work) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

TEST_CASE("checkpoint: opening 18,432 matrices takes at most three times a plain parse of their JSON") {
  const TempFolder folder;
  constexpr int kCount = 18432, kShards = 4;
  make_many(folder.path(), kCount, kShards);
  std::vector<std::string> texts = {read_file(folder / "model.safetensors.index.json")};
  for (int shard = 0; shard < kShards; ++shard) {
    const std::string bytes = read_file(folder / ("model-" + std::to_string(shard + 1) + ".safetensors"));
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    texts.push_back(bytes.substr(8, length));
  }
  const double plain = best_seconds(3, [&] {
    for (const std::string& text : texts) CHECK(nlohmann::json::parse(text).is_object());
  });
  const double open = best_seconds(3, [&] { CHECK(Checkpoint::open(folder.path()).matrices().size() == kCount); });
  MESSAGE("plain parse " << plain << " s, open " << open << " s");
  CHECK(open <= 3 * plain);
}

TEST_CASE("checkpoint: files that cannot be mapped are read") {
  const TempFolder folder;
  const auto tensors = file_tensors("a", make_gptq({.k = 64, .n = 16, .group_size = 32}));
  const std::string path = folder / "model.safetensors";
  write_safetensors(path, tensors);
  const checkpoint::SafetensorsFile mapped(path), read(path, checkpoint::FileBytes::Access::kRead);
  for (const auto& [name, tensor] : mapped.tensors()) {
    const checkpoint::StoredTensor& other = read.tensors().at(name);
    CHECK(other.data != tensor.data);
    REQUIRE(other.bytes == tensor.bytes);
    CHECK(std::memcmp(other.data, tensor.data, tensor.bytes) == 0);
  }
  CHECK_NOTHROW(read.fetch(read.tensors().begin()->second));
  std::filesystem::resize_file(path, 100);
  CHECK(error_of([&] { read.fetch(read.tensors().begin()->second); }).find("was modified after it was opened") !=
        std::string::npos);
}

TEST_CASE("checkpoint: files that are read on demand give what mapped ones give, and their memory back") {
  for (const auto format : {CheckpointSpec::Format::kGptq, CheckpointSpec::Format::kAwq}) {
    const TempFolder folder;
    make_checkpoint(folder.path(), {.format = format, .matrix = {.k = 256, .n = 512, .group_size = 32}, .shards = 2});
    const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
    const auto mapped = Checkpoint::open(folder.path()).load_all(runtime, {});
    ::setenv("Q4_CHECKPOINT_READ", "read", 1);
    const auto opened = Checkpoint::open(folder.path());
    ::unsetenv("Q4_CHECKPOINT_READ");
    const std::string name = opened.matrices()[1].name;
    const TensorView scales = opened.tensor(name + ".scales");  // stays, whatever is loaded meanwhile
    const std::vector<std::byte> before(static_cast<const std::byte*>(scales.data),
                                        static_cast<const std::byte*>(scales.data) + scales.rows * scales.cols * 2);
    const auto read = opened.load_all(runtime, {});
    REQUIRE(read.size() == mapped.size());
    for (std::size_t i = 0; i < read.size(); ++i) {
      const UnpackedMatrix a = mapped[i].unpack(), b = read[i].unpack();
      CHECK((a.qweight == b.qweight && a.qzeros == b.qzeros && a.scales == b.scales));
    }
    CHECK(std::memcmp(before.data(), scales.data, before.size()) == 0);
    CHECK(std::any_of(before.begin(), before.end(), [](std::byte b) { return b != std::byte{0}; }));
  }
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  write_safetensors(path, file_tensors("a", make_gptq({.k = 512, .n = 256, .group_size = 32})));
  const checkpoint::SafetensorsFile file(path, checkpoint::FileBytes::Access::kOnDemand), mapped(path);
  const auto &tensor = file.tensors().at("a.qweight"), &same = mapped.tensors().at("a.qweight");
  const auto zero = [&] { return tensor.data[tensor.bytes / 2] == std::byte{0} && tensor.data[8192] == std::byte{0}; };
  CHECK(zero());
  file.fetch(tensor), file.fetch(tensor), file.release(tensor);  // for one of two users
  CHECK(std::memcmp(tensor.data, same.data, tensor.bytes) == 0);
  file.release(tensor);
  CHECK(zero());
  file.fetch(tensor);
  CHECK(std::memcmp(tensor.data, same.data, tensor.bytes) == 0);
  file.release(tensor);

  const std::string other = folder / "other";
  std::filesystem::copy_file(path, other);
  std::filesystem::rename(other, path);  // a mapping would live on
  CHECK(error_of([&] { file.fetch(tensor); }).starts_with("corrupt: Checkpoint: " + path));
  CHECK_NOTHROW(mapped.fetch(same));
  std::filesystem::remove(path);
  CHECK(error_of([&] { file.fetch(tensor); }).starts_with("not_found: "));
  ::setenv("Q4_CHECKPOINT_READ", "never", 1);
  CHECK(error_of([&] { Checkpoint::open(folder.path()); }).find("no *.safetensors") != std::string::npos);
  write_safetensors(path, file_tensors("a", make_gptq({.k = 64, .n = 16, .group_size = 32})));
  CHECK(error_of([&] { Checkpoint::open(folder.path()); }).find("Q4_CHECKPOINT_READ = never") != std::string::npos);
  ::unsetenv("Q4_CHECKPOINT_READ");
}

/// Runs `work` in a process of its own under a limit, which cannot be raised again; whether it returned true.
bool under_limit(__rlimit_resource resource, ::rlim_t value, const std::function<bool()>& work) {
  const ::pid_t child = ::fork();
  if (child == 0) {
    const ::rlimit most{value, value};
    bool fine = ::setrlimit(resource, &most) == 0;
    fine = fine && work();
    ::_exit(fine ? 0 : 1);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_CASE("checkpoint: a hundred files need few descriptors, and a limit that is reached is named") {
  const TempFolder folder;
  make_many(folder.path(), 100, 100);
  CHECK(under_limit(RLIMIT_NOFILE, 24, [&] { return Checkpoint::open(folder.path()).matrices().size() == 100; }));
#if !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)  // which need descriptors, and address space without limit
  CHECK(under_limit(RLIMIT_NOFILE, 0, [&] {
    const std::string error = error_of([&] { Checkpoint::open(folder / "model-1.safetensors"); });
    return error.find("its limit of 0 files open (ulimit -n)") != std::string::npos;
  }));
  const std::string large = folder / "large.safetensors";
  write_safetensors(large, {});
  std::filesystem::resize_file(large, std::uintmax_t{1} << 38);  // sparse
  CHECK(under_limit(RLIMIT_AS, ::rlim_t{1} << 34, [&] {
    const std::string error = error_of([&] { Checkpoint::open(large); });
    return error.find("out_of_memory: ") == 0 &&
           error.find("limited to 17179869184 bytes (ulimit -v)") != std::string::npos;
  }));
#else
  skip("no descriptors, and little address space: sanitizers need them");
#endif
}

}  // namespace
}  // namespace q4::test
