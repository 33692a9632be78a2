// Reads, changes and replaces the file under a lock of its folder.
#include "autotune/process/tuning_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "autotune/tuner.hpp"
#include "runtime/base/check.hpp"

namespace q4::autotune {

/// Held while a file is read, changed and replaced. It is of the folder, so that nothing is left behind.
class TuningFile::Lock {
 public:
  explicit Lock(const TuningFile& file) {
    const auto folder = std::filesystem::path(file.path_).parent_path();
    folder_ = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    constexpr int kMostMs = 10000, kInterruptedMs = 300, kPauseMs = 10;
    for (int waited = 0; folder_ >= 0 && ::flock(folder_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
         waited += kPauseMs) {  // where locks are not supported: without
      if (waited >= (file.interrupted_() ? kInterruptedMs : kMostMs)) {
        ::close(folder_);
        fail(ErrorCode::kIo, "tuning file = {}: another process holds the lock of its folder; try again later",
             file.path_);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(kPauseMs));
    }
  }
  ~Lock() {
    if (folder_ >= 0) ::close(folder_);
  }
  Lock(const Lock&) = delete;

 private:
  int folder_;
};

TuningDb TuningFile::load() const {
  TuningDb db;
  if (std::filesystem::exists(path_)) db.load(path_);
  return db;
}

void TuningFile::check_writable() const {
  const Lock lock(*this);
  load().save(path_);
}

void TuningFile::store(TuningRecord& record) const {
  const Lock lock(*this);  // another tuner may have changed the file since it was read
  TuningDb db = load();
  if (const auto older = find_exact(db, record.key)) complete_from(*older, record);
  add(db, record);
}

void TuningFile::quarantine(const TuningKey& key, const QuarantinedTactic& tactic) const {
  const Lock lock(*this);
  TuningDb db = load();
  TuningRecord record = find_exact(db, key).value_or(TuningRecord{});
  record.key = key;
  record.quarantined.push_back(tactic);
  record.provenance[kNotMeasured] = "the run ended after a quarantine";
  add(db, record);
}

void TuningFile::add(TuningDb& db, const TuningRecord& record) const {
  db.add(record);
  db.save(path_);
}

std::optional<TuningRecord> find_exact(const TuningDb& db, const TuningKey& key) {
  TuningMatch match = TuningMatch::kNone;
  const TuningRecord* const found = db.find(key, &match);
  if (match != TuningMatch::kExact || found->key != key) return {};
  return *found;
}

}  // namespace q4::autotune
