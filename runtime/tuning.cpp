// The tuning database: JSON Lines on disk, records grouped by problem in memory.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <q4/tuning.hpp>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "runtime/base/check.hpp"
#include "runtime/base/file_system.hpp"
#include "runtime/base/fork.hpp"
#include "runtime/cache/entry.hpp"
#include "runtime/tuning_format.hpp"

namespace q4 {
namespace {

using Problem = std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, DType, std::string>;
Problem problem_of(const TuningKey& key) {
  return {key.k, key.n, key.group, key.act_order, key.activation, key.epilogue};
}
struct Hash {
  std::size_t operator()(const Problem& p) const {
    const auto& [k, n, group, act_order, activation, epilogue] = p;
    std::uint64_t h = std::hash<std::string>()(epilogue);
    for (const std::int64_t part : {k, n, group, act_order + 2 * static_cast<std::int64_t>(activation)})
      h = (h ^ static_cast<std::uint64_t>(part)) * 0x9e3779b97f4a7c15u, h ^= h >> 32;
    return static_cast<std::size_t>(h);
  }
};

/// One key with its record, which is read from its line when it is first asked for.
struct Slot {
  TuningKey key;
  std::unique_ptr<const TuningRecord> record;
  std::string_view line;
  const std::string* path = nullptr;  ///< of the file, for messages
  std::size_t number = 0;             ///< of the line
};

std::string read_file(const std::string& path) {
  std::error_code unknown;
  const bool regular = std::filesystem::is_regular_file(path, unknown);  // others do not say their size
  const char* const wrong = std::filesystem::is_directory(path, unknown) ? "is a folder"
                            : endless(path)                              ? "is a device"
                                                                         : nullptr;
  std::ifstream in(path, std::ios::binary);
  std::string text;
  if (in && regular) {
    text.resize(std::filesystem::file_size(path, unknown));
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(in.gcount()));  // it may have been cut meanwhile
  } else if (in && !wrong) {
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  if (!in.is_open() || in.bad() || wrong)
    fail(errno == ENOENT && !wrong ? ErrorCode::kNotFound : ErrorCode::kIo,
         "TuningDb::load: path = {}: {}; q4-autotune writes such files", path,
         wrong   ? wrong
         : errno ? std::strerror(errno)
                 : "cannot be read");
  return text;
}

/// Reads the whole of its line.
std::unique_ptr<const TuningRecord> record_of(const Slot& slot) {
  try {
    return std::make_unique<const TuningRecord>(from_line(slot.line));
  } catch (const std::exception& e) {
    fail(ErrorCode::kCorrupt, "TuningDb::load: {} line {}: {}; delete the line or tune again", *slot.path, slot.number,
         e.what());
  }
}

}  // namespace

const TunedBucket* TuningRecord::bucket(std::int64_t m) const {
  for (const TunedBucket& b : buckets)
    if (b.serves(m)) return &b;
  return nullptr;
}

struct [[gnu::visibility("hidden")]] TuningDb::Impl {
  using File = std::pair<std::string, std::string>;  ///< path and text
  std::deque<File> files;                            ///< the slots' lines are views of them
  std::deque<Slot> slots;
  std::unordered_map<Problem, std::vector<std::size_t>, Hash> of_problem;
  ForkSafeMutex reading;

  void read(File given);

  void put(Slot slot) {
    auto& indexes = of_problem[problem_of(slot.key)];
    for (const std::size_t i : indexes)
      if (slots[i].key == slot.key) {
        slots[i] = std::move(slot);
        return;
      }
    indexes.push_back(slots.size());
    slots.push_back(std::move(slot));
  }

  const TuningRecord& record(Slot & slot) {
    const std::lock_guard lock(reading);
    if (!slot.record) slot.record = record_of(slot);
    return *slot.record;
  }
};

TuningDb::TuningDb() : impl_(std::make_unique<Impl>()) {}
TuningDb::~TuningDb() = default;
TuningDb::TuningDb(TuningDb&&) noexcept = default;
TuningDb& TuningDb::operator=(TuningDb&&) noexcept = default;

void TuningDb::load(const std::string& path) { impl_->read({path, read_file(path)}); }

void TuningDb::parse(std::string_view text, const std::string& name) { impl_->read({name, std::string(text)}); }

void TuningDb::Impl::read(File given) {
  const auto& [file, text] = files.emplace_back(std::move(given));
  std::vector<Slot> loaded;
  std::size_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    ++number;
    line.remove_suffix(line.size() - (line.find_last_not_of(" \t\r") + 1));
    if (line.empty()) continue;
    Slot slot{{}, nullptr, line, &file, number};
    if (auto key = key_of_line(line)) {
      slot.key = std::move(*key);
    } else {
      slot.record = record_of(slot);
      slot.key = slot.record->key;
    }
    loaded.push_back(std::move(slot));
  }
  of_problem.reserve(of_problem.size() + loaded.size());
  for (Slot& slot : loaded) put(std::move(slot));
}

void TuningDb::save(const std::string& path) const {
  namespace fs = std::filesystem;
  std::error_code absent;
  fs::path file = fs::canonical(path, absent);  // a link to a shared file stays one
  if (absent) file = path;
  const std::string folder = file.has_parent_path() ? file.parent_path().string() : ".";
  const std::string problem = cache::write_file(folder, file.filename().string(), str(), 0644);  // meant to be shared
  if (!problem.empty())
    fail(ErrorCode::kIo, "TuningDb::save: path = {}: {}; name a file in a writable folder with room for it", path,
         problem);
}

std::string TuningDb::str() const {
  std::string text;
  for (const TuningRecord& record : records()) text += to_line(record) + '\n';
  return text;
}

void TuningDb::add(TuningRecord record) {
  const std::string wrong = problem_in_record(record);
  check(wrong.empty(), "TuningDb::add: record for {} k = {} n = {}: {}", record.key.fingerprint, record.key.k,
        record.key.n, wrong);
  TuningKey key = record.key;
  impl_->put({std::move(key), std::make_unique<const TuningRecord>(std::move(record)), {}, nullptr, 0});
}

const TuningRecord* TuningDb::find(const TuningKey& key, TuningMatch* match) const {
  TuningMatch found = TuningMatch::kNone;
  Slot* best = nullptr;
  const auto better = [&](const Slot& a,
                          const Slot& b) {  // exact, then policy, then units, then name: the same for all
    const auto rank = [&](const Slot& s) {
      return std::tuple(s.key.fingerprint != key.fingerprint, s.key.policy != key.policy,
                        std::abs(s.key.units - key.units), s.key.kernels != key.kernels,
                        std::string_view(s.key.fingerprint), std::string_view(s.key.kernels));
    };
    return rank(a) < rank(b);
  };
  if (const auto indexes = impl_->of_problem.find(problem_of(key)); indexes != impl_->of_problem.end())
    for (const std::size_t i : indexes->second) {
      Slot& slot = impl_->slots[i];
      const bool exact = slot.key.fingerprint == key.fingerprint;
      if (!exact && slot.key.arch != key.arch) continue;
      // A record is read only if the digests of its kernels can decide.
      if (!key.kernels.empty() &&
          !(comparable_kernels(slot.key.kernels, key.kernels) &&
            (slot.key.kernels == key.kernels || measured_with(impl_->record(slot), key.kernels)))) {
        if (!best) found = TuningMatch::kStale;
        continue;
      }
      if (!best || better(slot, *best)) best = &slot;
    }
  if (best) found = best->key.fingerprint == key.fingerprint ? TuningMatch::kExact : TuningMatch::kNearest;
  if (match) *match = found;
  return best ? &impl_->record(*best) : nullptr;
}

std::vector<TuningRecord> TuningDb::records() const {
  std::vector<TuningRecord> all;
  for (Slot& slot : impl_->slots) all.push_back(impl_->record(slot));
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  return all;
}

std::size_t TuningDb::size() const { return impl_->slots.size(); }

}  // namespace q4
