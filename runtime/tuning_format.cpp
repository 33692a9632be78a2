// A tuning record as a line of JSON, written in one canonical order and read field by field.
#include "runtime/tuning_format.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace q4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchema = 1;
constexpr const char* kMathNames[] = {"auto", "half2", "fp32"};

}  // namespace

std::string problem_in_record(const TuningRecord& r) {
  if (r.key.fingerprint.empty()) return "device is empty";
  if (r.key.k <= 0 || r.key.n <= 0 || r.key.group <= 0) return "k, n and group must be positive";
  if (r.reconstruct_from < 0) return "reconstruct_from must be 0 (never) or a number of rows";
  std::int64_t m = 0;
  for (const TunedBucket& b : r.buckets) {
    if (b.m <= m) return "buckets: m must ascend from 1";
    m = b.m;
    if (b.tactic.empty()) return "buckets: tactic is empty";
    for (const double us : {b.us, b.us_low, b.us_high, b.default_us, b.dense_us})
      if (!std::isfinite(us) || us < 0) return "buckets: times must be finite and not negative";
  }
  return {};
}

namespace {

double rounded(double us) { return std::round(us * 1000) / 1000; }  // a nanosecond is finer than any clock here

Json json_of(const TuningRecord& r) {
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
  if (!r.key.epilogue.empty()) j["epilogue"] = r.key.epilogue;
  j["kernels"] = r.key.kernels;
  j["policy"] = r.key.policy;
  j["reconstruct_from"] = r.reconstruct_from;
  j["math"] = kMathNames[static_cast<int>(r.math)];
  j["buckets"] = Json::array();
  for (const TunedBucket& b : r.buckets) {
    Json& bucket = j["buckets"].emplace_back(Json{{"m", b.m},
                                                  {"tactic", b.tactic},
                                                  {"us", rounded(b.us)},
                                                  {"low", rounded(b.us_low)},
                                                  {"high", rounded(b.us_high)},
                                                  {"default_us", rounded(b.default_us)}});
    if (b.dense_us > 0) bucket["dense_us"] = rounded(b.dense_us);
  }
  if (r.floor_us > 0) j["floor_us"] = rounded(r.floor_us);
  for (const QuarantinedTactic& q : r.quarantined)
    j["quarantined"].push_back({{"tactic", q.tactic}, {"m", q.m}, {"reason", q.reason}});
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
  template <class T>
  T get_or(const char* name, T absent) const {
    return object_.contains(name) ? get<T>(name) : absent;
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

}  // namespace

std::string to_line(const TuningRecord& record) { return json_of(record).dump(); }

TuningRecord from_line(std::string_view line) {
  const Json j = Json::parse(line);
  if (!j.is_object()) throw std::runtime_error("not a JSON object");
  const FieldReader f(j);
  if (const auto schema = f.integer("q4_tuning"); schema != kSchema)
    throw std::runtime_error(fmt::format(
        "field \"q4_tuning\" is {}, this version reads {}: another version of q4 wrote it", schema, kSchema));
  TuningRecord r;
  r.key.fingerprint = f.get<std::string>("device");
  r.key.arch = f.get<std::string>("arch");
  r.key.units = static_cast<int>(f.integer("units"));
  r.key.k = f.integer("k");
  r.key.n = f.integer("n");
  r.key.group = f.integer("group");
  r.key.act_order = f.get<bool>("act_order");
  r.key.activation = activation_named(f.get<std::string>("activation"));
  r.key.epilogue = f.get_or<std::string>("epilogue", "");
  r.key.kernels = f.get<std::string>("kernels");
  r.key.policy = f.get<std::string>("policy");
  r.reconstruct_from = f.integer("reconstruct_from");
  r.math = math_named(f.get<std::string>("math"));
  for (const Json& item : f.get<Json>("buckets")) {
    const FieldReader b(item);
    r.buckets.push_back({b.integer("m"), b.get<std::string>("tactic"), b.get<double>("us"), b.get<double>("low"),
                         b.get<double>("high"), b.get<double>("default_us"), b.get_or("dense_us", 0.0)});
  }
  r.floor_us = f.get_or("floor_us", 0.0);
  for (const Json& item : f.get_or("quarantined", Json::array())) {
    const FieldReader q(item);
    r.quarantined.push_back({q.get<std::string>("tactic"), q.integer("m"), q.get<std::string>("reason")});
  }
  r.provenance = f.get<std::map<std::string, std::string>>("provenance");
  if (const std::string wrong = problem_in_record(r); !wrong.empty()) throw std::runtime_error(wrong);
  return r;
}

namespace {

/// Steps through a line in canonical form. Once something is not as expected, nothing matches any more.
class Scanner {
 public:
  explicit Scanner(std::string_view line) : rest_(line) {}
  explicit operator bool() const { return ok_; }

  bool at(std::string_view text) const { return rest_.starts_with(text); }
  void literal(std::string_view text) {
    ok_ = ok_ && rest_.starts_with(text);
    if (ok_) rest_.remove_prefix(text.size());
  }
  /// Up to the closing quote; with an escape in it, the slow way has to read it.
  std::string string(std::string_view before) {
    literal(before);
    const auto end = rest_.find_first_of("\"\\");
    ok_ = ok_ && end != std::string_view::npos && rest_[end] == '"';
    if (!ok_) return {};
    std::string value(rest_.substr(0, end));
    rest_.remove_prefix(end + 1);
    return value;
  }
  std::int64_t integer(std::string_view before) {
    literal(before);
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    ok_ = ok_ && error == std::errc();
    if (ok_) rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return value;
  }
  bool boolean(std::string_view before) {
    literal(before);
    const bool value = rest_.starts_with("true");
    literal(value ? "true" : "false");
    return value;
  }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

}  // namespace

std::optional<TuningKey> key_of_line(std::string_view line) {
  Scanner s(line);
  TuningKey key;
  s.literal(R"({"q4_tuning":1,"op":"matmul")");
  key.fingerprint = s.string(R"(,"device":")");
  key.arch = s.string(R"(,"arch":")");
  key.units = static_cast<int>(s.integer(R"(,"units":)"));
  key.k = s.integer(R"(,"k":)");
  key.n = s.integer(R"(,"n":)");
  key.group = s.integer(R"(,"group":)");
  key.act_order = s.boolean(R"(,"act_order":)");
  const std::string activation = s.string(R"(,"activation":")");
  if (s.at(R"(,"epilogue":)")) key.epilogue = s.string(R"(,"epilogue":")");
  key.kernels = s.string(R"(,"kernels":")");
  key.policy = s.string(R"(,"policy":")");
  s.literal(R"(,"reconstruct_from":)");
  if (!s || !line.ends_with("}}") || key.fingerprint.empty() || key.k <= 0 || key.n <= 0 || key.group <= 0) return {};
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32})
    if (activation == to_string(type)) {
      key.activation = type;
      return key;
    }
  return {};
}

namespace {

/// "decode:0123,remap:4567/1" as names with digests, and what is after the slash.
struct KernelList {
  std::map<std::string_view, std::string_view> digests;
  std::string_view version;
  bool by_name = true;

  explicit KernelList(std::string_view text) {
    const auto slash = std::min(text.rfind('/'), text.size());
    version = text.substr(slash);
    for (std::string_view rest = text.substr(0, slash); !rest.empty();) {
      const auto item = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(item.size() + 1, rest.size()));
      const auto colon = item.find(':');
      by_name = by_name && colon != item.npos;
      digests[item.substr(0, colon)] = by_name ? item.substr(colon + 1) : std::string_view();
    }
  }
  std::string_view of(std::string_view name) const {
    const auto at = digests.find(name);
    return at == digests.end() ? std::string_view() : at->second;
  }
};

}  // namespace

bool comparable_kernels(std::string_view theirs, std::string_view ours) {
  if (theirs == ours) return true;
  const KernelList a(theirs), b(ours);
  return a.by_name && b.by_name && a.version == b.version;
}

bool measured_with(const TuningRecord& record, std::string_view ours) {
  if (record.key.kernels == ours) return true;
  if (!comparable_kernels(record.key.kernels, ours)) return false;
  const KernelList a(record.key.kernels), b(ours);
  const auto same = [&](std::string_view tactic) {  // "remap+decode tiles=2": both kernels; "blas" has no digest
    for (std::string_view names = tactic.substr(0, tactic.find(' ')); !names.empty();) {
      const auto name = names.substr(0, names.find('+'));
      names.remove_prefix(std::min(name.size() + 1, names.size()));
      if (a.of(name) != b.of(name)) return false;
    }
    return true;
  };
  return (record.reconstruct_from == 0 || same("reconstruct")) &&
         std::all_of(record.buckets.begin(), record.buckets.end(), [&](const TunedBucket& b) {
           constexpr std::string_view kBetween = " | ";  // of experts: a tactic for each product
           for (std::string_view rest = b.tactic; !rest.empty();) {
             const auto one = rest.substr(0, rest.find(kBetween));
             rest.remove_prefix(std::min(one.size() + kBetween.size(), rest.size()));
             if (!same(one)) return false;
           }
           return true;
         });
}

}  // namespace q4
