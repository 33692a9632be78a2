// Every parser of files that come from elsewhere, and the C ABI, fed with libFuzzer's bytes: $Q4_FUZZ_TARGET names which. A
// q4::Error is what bad input should give; any other exception, a crash, a hang, a leak or a large allocation is a finding.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <q4/q4.hpp>
#include <string>
#include <string_view>

#include "capi_calls.hpp"
#include "runtime/base/sha256.hpp"
#include "runtime/cache/pack.hpp"
#include "runtime/checkpoint/config.hpp"
#include "runtime/checkpoint/files.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/common/npy.hpp"
#include "tools/common/shapes.hpp"

namespace {

/// A folder of this process in memory, gone at its end.
const std::string& folder() {
  static const struct Folder {
    std::string path = "/dev/shm/q4-fuzz-" + std::to_string(::getpid());
    Folder() { std::filesystem::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } instance;
  return instance.path;
}

std::string write(const std::string& name, std::string_view bytes) {
  const std::string path = folder() + "/" + name;
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::write(file, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) std::abort();
  ::close(file);
  return path;
}

volatile unsigned sink;  // what is handed out is read, so that a view of foreign memory is seen
void touch(const void* data, std::size_t bytes) {
  unsigned sum = 0;
  for (std::size_t i = 0; i < bytes; ++i) sum += static_cast<const unsigned char*>(data)[i];
  sink = sum;
}
void touch(const q4::TensorView& view) { touch(view.data, view.rows * view.cols * q4::size_of(view.dtype)); }

/// Each matrix as the library would load it: converted, but not packed for a device.
void read_matrices(const q4::Checkpoint& checkpoint) {
  for (const q4::MatrixEntry& entry : checkpoint.matrices()) try {
      if (entry.format == q4::QuantFormat::kAwq) {
        const q4::AwqTensors tensors = checkpoint.awq(entry.name);
        touch(tensors.qweight), touch(tensors.qzeros), touch(tensors.scales);
      } else {
        const q4::GptqTensors tensors = checkpoint.gptq(entry.name);
        touch(tensors.qweight), touch(tensors.qzeros), touch(tensors.scales);
        if (tensors.g_idx) touch(*tensors.g_idx);
        checkpoint.act_order(entry.name);
      }
    } catch (const q4::Error&) {}
}

// ---- one function a target ------------------------------------------------------------------------------------------
void safetensors(std::string_view data) {
  const q4::checkpoint::SafetensorsFile file(write("a.safetensors", data));
  for (const auto& [name, tensor] : file.tensors()) touch(tensor.data, tensor.bytes);
}

/// Two bytes of length, config.json, and a safetensors file.
void checkpoint(std::string_view data) {
  if (data.size() < 2) return;
  const std::size_t length = static_cast<unsigned char>(data[0]) + 256u * static_cast<unsigned char>(data[1]);
  const std::string_view config = data.substr(2, length);
  write("config.json", config);
  write("model.safetensors", data.substr(2 + config.size()));
  read_matrices(q4::Checkpoint::open(folder()));
}

std::string small_file(const std::string& tensor) {
  const std::string header = "{\"" + tensor + R"(":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})";
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size());
  return bytes + header + "abcd";
}

void index(std::string_view data) {
  write("model-00001-of-00002.safetensors", small_file("a"));
  write("model-00002-of-00002.safetensors", small_file("b"));
  write("model.safetensors.index.json", data);
  q4::checkpoint::open_files(folder());
}

void config(std::string_view data) {
  const std::string path = write("config.json", data);
  const auto ask = [](const q4::checkpoint::ClaimedConfig& claimed) {
    for (const char* module : {"model.layers.10.mlp.down_proj", "lm_head", "a.b.experts.3.w1"}) claimed.bits_of(module);
  };
  try {
    if (const auto claimed = q4::checkpoint::read_config(folder())) ask(*claimed);
  } catch (const q4::Error&) {}
  ask(q4::checkpoint::parse_config(std::string(data), path));
}

void tuning(std::string_view data) {
  q4::TuningDb db;
  db.parse(data, "tuning.jsonl");
  for (const q4::TuningRecord& record : db.records()) {
    q4::TuningMatch match;
    db.find(record.key, &match);
  }
  q4::TuningDb again, same;  // times are rounded when they are written; what was written is read back as the same
  again.parse(db.str(), "again");
  same.parse(again.str(), "same");
  if (again.records().size() != db.records().size() || again.records() != same.records()) std::abort();
}

/// The bytes of an entry without their checksum, which is put behind them: else nothing would come past it.
void entry(std::string_view data) {
  const auto sum = q4::cache::Sha256().update(data.data(), data.size()).digest();
  std::string bytes(data);
  bytes.append(reinterpret_cast<const char*>(sum.data()), sum.size());
  if (const auto entry = q4::cache::decode(bytes))
    if (q4::cache::encode(*entry) != bytes) std::abort();
  static_cast<void>(q4::cache::decode(data));
}

/// The checksum of the head, at byte 40, is put right where the sizes in the head allow it.
void pack(std::string_view data) {
  std::string bytes(data);
  constexpr std::size_t kHead = 168;
  std::uint64_t sizes[2] = {};
  std::uint32_t count = 0;
  if (bytes.size() >= kHead) {
    std::memcpy(&count, bytes.data() + 12, 4);
    std::memcpy(sizes, bytes.data() + 16, 16);
    const std::uint64_t rest = bytes.size() - kHead;
    if (sizes[0] <= rest && sizes[1] <= rest - sizes[0] && count <= (rest - sizes[0] - sizes[1]) / 80) {
      const std::size_t covered = sizes[0] + sizes[1] + 80 * std::size_t{count};
      const auto sum = q4::cache::Sha256().update(bytes.data(), 40).update(bytes.data() + kHead, covered).digest();
      std::memcpy(bytes.data() + 40, sum.data(), sum.size());
    }
  }
  const auto opened = q4::cache::Pack::open(write("a.q4pack", bytes));
  if (!opened) return;
  const q4::cache::Pack& pack = **opened;
  pack.verify(), pack.holds("sm_90a", {"headers"}), pack.signer();
  touch(pack.tuning().data(), pack.tuning().size());
  for (std::size_t i = 0; i < pack.size(); ++i)
    if (const auto entry = pack.entry(i)) static_cast<void>(pack.find(entry->digest, entry->key.target));
}

void npy(std::string_view data) {
  const q4::tools::NpyArray array = q4::tools::read_npy(write("a.npy", data));
  if (static_cast<std::size_t>(array.rows() * array.cols()) * q4::size_of(array.dtype) != array.data.size())
    std::abort();
}

void csv(std::string_view data) {
  const std::string text(data);
  const std::function<void()> readers[] = {[&] { q4::tools::csv_shapes(text, "shapes.csv", 128, false); },
                                           [&] { q4::tools::recorded_shapes(text, "untuned.jsonl"); },
                                           [&] { q4::tools::Baseline::parse(text, "peers.csv"); }};
  for (const auto& read : readers) try {
      read();
    } catch (const q4::Error&) {}
}

/// Beside a checkpoint with the bytes of the seeds, which is no input here.
void capi(std::string_view data) {
  static const bool once = [] {
    for (const char* name : {"Q4_CUDA_DRIVER", "Q4_HIP_RUNTIME", "Q4_BLAS"}) ::setenv(name, "none", 1);
    ::setenv("Q4_CACHE_DIR", folder().c_str(), 1);
    if (const char* file = std::getenv("Q4_FUZZ_CHECKPOINT"))
      std::filesystem::copy_file(file, folder() + "/m.safetensors");
    return true;
  }();
  static_cast<void>(once);
  q4::test::call_c_abi(data, folder());
}

using Target = void (*)(std::string_view);
Target chosen() {
  static const std::map<std::string_view, Target> targets = {{"safetensors", safetensors},
                                                             {"checkpoint", checkpoint},
                                                             {"index", index},
                                                             {"config", config},
                                                             {"tuning", tuning},
                                                             {"entry", entry},
                                                             {"pack", pack},
                                                             {"npy", npy},
                                                             {"csv", csv},
                                                             {"capi", capi}};
  const char* name = std::getenv("Q4_FUZZ_TARGET");
  if (const auto found = targets.find(name ? name : ""); found != targets.end()) return found->second;
  std::fprintf(stderr, "Q4_FUZZ_TARGET is none of:");
  for (const auto& [target, unused] : targets) std::fprintf(stderr, " %s", target.data());
  std::fprintf(stderr, "\n");
  std::_Exit(2);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Target target = chosen();
  try {
    target({reinterpret_cast<const char*>(data), size});
  } catch (const q4::Error&) {}
  return 0;
}
