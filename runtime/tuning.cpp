// The tuning database: JSON Lines on disk, records grouped by problem in memory.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <q4/tuning.hpp>
#include <string_view>
#include <tuple>

#include "runtime/check.hpp"

namespace q4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;
constexpr const char* kMathNames[] = {"auto", "half2", "fp32"};

std::string problem_in_record(const TuningRecord& r) {
  if (r.key.fingerprint.empty()) return "device is empty";
  if (r.key.k <= 0 || r.key.n <= 0 || r.key.group <= 0) return "k, n and group must be positive";
  if (r.reconstruct_from < 0) return "reconstruct_from must be 0 (never) or a number of rows";
  std::int64_t m = 0;
  for (const TunedBucket& b : r.buckets) {
    if (b.m <= m) return "buckets: m must ascend from 1";
    m = b.m;
    if (b.tactic.empty()) return "buckets: tactic is empty";
    for (const double us : {b.us, b.us_low, b.us_high, b.default_us})
      if (!std::isfinite(us) || us < 0) return "buckets: times must be finite and not negative";
  }
  return {};
}

double rounded(double us) { return std::round(us * 1000) / 1000; }  // a nanosecond is finer than any clock here

Json to_json(const TuningRecord& r) {
  Json j;  // this order is the canonical one: the same records give the same bytes
  j["q4_tuning"] = kSchema;
  j["op"] = "matmul";
  j["device"] = r.key.fingerprint;
  j["arch"] = r.key.arch;
  j["units"] = r.key.units;
  j["k"] = r.key.k;
  j["n"] = r.key.n;
  j["group"] = r.key.group;
  j["act_order"] = r.key.act_order;
  j["activation"] = to_string(r.key.activation);
  j["kernels"] = r.kernels;
  j["policy"] = r.policy;
  j["reconstruct_from"] = r.reconstruct_from;
  j["math"] = kMathNames[static_cast<int>(r.math)];
  j["buckets"] = Json::array();
  for (const TunedBucket& b : r.buckets)
    j["buckets"].push_back({{"m", b.m},
                            {"tactic", b.tactic},
                            {"us", rounded(b.us)},
                            {"low", rounded(b.us_low)},
                            {"high", rounded(b.us_high)},
                            {"default_us", rounded(b.default_us)}});
  j["provenance"] = r.provenance;
  return j;
}

/// Reads one field and names it when it is missing or of another type.
class FieldReader {
 public:
  explicit FieldReader(const Json& object) : object_(object) {}
  template <class T>
  T get(const char* name) const {
    try {
      return object_.at(name).get<T>();
    } catch (const nlohmann::json::exception& e) {
      throw std::runtime_error(fmt::format("field \"{}\": {}", name, e.what()));
    }
  }
  /// get<std::int64_t> would cut a fraction off.
  std::int64_t integer(const char* name) const {
    if (!object_.contains(name) || !object_[name].is_number_integer())
      throw std::runtime_error(fmt::format("field \"{}\" must be an integer", name));
    return get<std::int64_t>(name);
  }

 private:
  const Json& object_;
};

DType activation_named(const std::string& name) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32})
    if (name == to_string(type)) return type;
  throw std::runtime_error(fmt::format("field \"activation\" is \"{}\", must be fp16, bf16 or fp32", name));
}

Math math_named(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kMathNames[i]) return static_cast<Math>(i);
  throw std::runtime_error(fmt::format("field \"math\" is \"{}\", must be auto, half2 or fp32", name));
}

TuningRecord from_json(const std::string& line) {
  const Json j = Json::parse(line);
  if (!j.is_object()) throw std::runtime_error("not a JSON object");
  const FieldReader f(j);
  if (const auto schema = f.integer("q4_tuning"); schema != kSchema)
    throw std::runtime_error(fmt::format("field \"q4_tuning\" is {}, this version reads {}", schema, kSchema));
  TuningRecord r;
  r.key.fingerprint = f.get<std::string>("device");
  r.key.arch = f.get<std::string>("arch");
  r.key.units = static_cast<int>(f.integer("units"));
  r.key.k = f.integer("k");
  r.key.n = f.integer("n");
  r.key.group = f.integer("group");
  r.key.act_order = f.get<bool>("act_order");
  r.key.activation = activation_named(f.get<std::string>("activation"));
  r.kernels = f.get<std::string>("kernels");
  r.policy = f.get<std::string>("policy");
  r.reconstruct_from = f.integer("reconstruct_from");
  r.math = math_named(f.get<std::string>("math"));
  for (const Json& item : f.get<Json>("buckets")) {
    const FieldReader b(item);
    r.buckets.push_back({b.integer("m"), b.get<std::string>("tactic"), b.get<double>("us"), b.get<double>("low"),
                         b.get<double>("high"), b.get<double>("default_us")});
  }
  r.provenance = f.get<std::map<std::string, std::string>>("provenance");
  if (const std::string wrong = problem_in_record(r); !wrong.empty()) throw std::runtime_error(wrong);
  return r;
}

void write_all(int file, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t n = ::write(file, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorCode::kIo, "TuningDb::save: writing {}: {}", path, std::strerror(errno));
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

/// Readers see the old file or the new one, also after a crash: temporary file, fsync, rename, fsync of the folder.
void replace_file(const std::string& path, std::string_view text) {
  std::string temporary = path + ".XXXXXX";
  const int file = ::mkostemp(temporary.data(), O_CLOEXEC);
  if (file < 0)
    fail(ErrorCode::kIo,
         "TuningDb::save: path = {}: cannot create a file there: {}; the folder must exist and be writable", path,
         std::strerror(errno));
  try {
    write_all(file, text, temporary);
    ::fchmod(file, 0644);  // a tuning file is meant to be shared
    if (::fsync(file) != 0) fail(ErrorCode::kIo, "TuningDb::save: fsync of {}: {}", temporary, std::strerror(errno));
    if (::rename(temporary.c_str(), path.c_str()) != 0)
      fail(ErrorCode::kIo, "TuningDb::save: renaming {} to {}: {}", temporary, path, std::strerror(errno));
  } catch (...) {
    ::close(file);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(file);
  const auto folder = std::filesystem::path(path).parent_path();
  const int opened = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) return;  // written and renamed; only the durability of the name is unknown
  ::fsync(opened);
  ::close(opened);
}

using Problem = std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, DType>;
Problem problem_of(const TuningKey& key) { return {key.k, key.n, key.group, key.act_order, key.activation}; }

}  // namespace

const TunedBucket* TuningRecord::bucket(std::int64_t m) const {
  if (buckets.empty()) return nullptr;
  for (const TunedBucket& b : buckets)
    if (m <= b.m) return &b;
  return &buckets.back();
}

struct TuningDb::Impl {
  std::map<Problem, std::map<std::string, TuningRecord>> devices;  ///< problem, then fingerprint
  std::size_t size = 0;
};

TuningDb::TuningDb() : impl_(std::make_unique<Impl>()) {}
TuningDb::~TuningDb() = default;
TuningDb::TuningDb(TuningDb&&) noexcept = default;
TuningDb& TuningDb::operator=(TuningDb&&) noexcept = default;

void TuningDb::load(const std::string& path) {
  std::ifstream in(path);
  if (!in)
    fail(ErrorCode::kIo, "TuningDb::load: path = {}: {}; q4-autotune writes such files", path, std::strerror(errno));
  std::string text;
  for (char piece[4096]; in.read(piece, sizeof piece) || in.gcount() > 0;)
    text.append(piece, static_cast<std::size_t>(in.gcount()));
  if (in.bad()) fail(ErrorCode::kIo, "TuningDb::load: reading {}: {}", path, std::strerror(errno));
  parse(text, path);
}

void TuningDb::parse(std::string_view text, const std::string& name) {
  std::vector<TuningRecord> loaded;
  for (std::size_t number = 1; !text.empty(); ++number) {
    const auto end = std::min(text.find('\n'), text.size() - 1);
    const std::string line(text.substr(0, end + 1));
    text.remove_prefix(end + 1);
    if (line.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    try {
      loaded.push_back(from_json(line));
    } catch (const std::exception& e) {
      fail(ErrorCode::kCorrupt, "TuningDb::load: {} line {}: {}; delete the line or tune again", name, number,
           e.what());
    }
  }
  for (TuningRecord& record : loaded) add(std::move(record));
}

void TuningDb::save(const std::string& path) const { replace_file(path, str()); }

std::string TuningDb::str() const {
  std::string text;
  for (const TuningRecord& record : records()) text += to_json(record).dump() + '\n';
  return text;
}

void TuningDb::add(TuningRecord record) {
  const std::string wrong = problem_in_record(record);
  check(wrong.empty(), "TuningDb::add: record for {} k = {} n = {}: {}", record.key.fingerprint, record.key.k,
        record.key.n, wrong);
  auto& of_problem = impl_->devices[problem_of(record.key)];
  const std::string fingerprint = record.key.fingerprint;
  if (of_problem.insert_or_assign(fingerprint, std::move(record)).second) ++impl_->size;
}

const TuningRecord* TuningDb::find(const TuningKey& key, TuningMatch* match) const {
  if (match) *match = TuningMatch::kNone;
  const auto of_problem = impl_->devices.find(problem_of(key));
  if (of_problem == impl_->devices.end()) return nullptr;
  if (const auto exact = of_problem->second.find(key.fingerprint); exact != of_problem->second.end()) {
    if (match) *match = TuningMatch::kExact;
    return &exact->second;
  }
  const TuningRecord* nearest = nullptr;
  for (const auto& [fingerprint, record] : of_problem->second) {
    if (record.key.arch != key.arch) continue;
    if (!nearest || std::abs(record.key.units - key.units) < std::abs(nearest->key.units - key.units))
      nearest = &record;
  }
  if (nearest && match) *match = TuningMatch::kNearest;
  return nearest;
}

std::vector<TuningRecord> TuningDb::records() const {
  std::vector<TuningRecord> all;
  for (const auto& [problem, of_problem] : impl_->devices)
    for (const auto& [fingerprint, record] : of_problem) all.push_back(record);
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  return all;
}

std::size_t TuningDb::size() const { return impl_->size; }

}  // namespace q4
