// The tuning file that a run writes: locked while it is changed, so that several tuners may write to it.
#pragma once

#include <functional>
#include <optional>
#include <q4/tuning.hpp>
#include <string>

namespace q4::autotune {

class TuningFile {
 public:
  /// Waiting for another process that changes the file ends early where `interrupted` says so, with an error.
  explicit TuningFile(
      std::string path, std::function<bool()> interrupted = [] { return false; })
      : path_(std::move(path)), interrupted_(std::move(interrupted)) {}

  const std::string& path() const { return path_; }
  /// What it holds now; nothing where there is no file. Throws kIo or kCorrupt.
  TuningDb load() const;
  /// Writes what is there. Throws what keeps the file from being read or written, before anything is measured.
  void check_writable() const;
  /// Adds the record, and what an earlier run found under the same key at other m (complete_from()).
  void store(TuningRecord& record) const;
  /// At once, so that a run which is killed later does not try the tactic again.
  void quarantine(const TuningKey& key, const QuarantinedTactic& tactic) const;

 private:
  class Lock;
  void add(TuningDb& db, const TuningRecord& record) const;

  std::string path_;
  std::function<bool()> interrupted_;
};

/// The record of exactly this key: of this device, these kernels and this policy.
std::optional<TuningRecord> find_exact(const TuningDb& db, const TuningKey& key);

}  // namespace q4::autotune
