// TuningDb: measured choices, as a file that ships.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <q4/error.hpp>
#include <q4/matmul.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace q4 {

/// The multiplication that a record speaks of.
struct TuningKey {
  std::string fingerprint;  ///< DeviceInfo::fingerprint
  std::string arch;         ///< DeviceInfo::arch, for the nearest-device fallback
  int units = 0;            ///< DeviceInfo::compute_units, likewise
  std::int64_t k = 0, n = 0, group = 0;
  bool act_order = false;
  DType activation = DType::kF16;
  std::string policy = "cold";  ///< how weights were timed: "cold" (not in a cache) or "warm"
  /// Digest of the kernels, or of each by name, and the version of the search. find() gives records whose own tactics'
  /// kernels are the same; empty means any.
  std::string kernels = {};
  std::string epilogue = {};  ///< of the plan: "", "silu_mul+residual", ...; MoePlan: "experts=8 topk=2 width=64"
  friend auto operator<=>(const TuningKey&, const TuningKey&) = default;
};

/// One bucket of m: the tactic that won, and how sure that is. Times in microseconds.
struct TunedBucket {
  std::int64_t m = 0;                      ///< measured at this m; serves what is nearer than half of it
  std::string tactic;                      ///< as MatmulPlan::tactic
  double us = 0, us_low = 0, us_high = 0;  ///< median and 95% bootstrap interval; 0: not measured, the default tactic
  double default_us = 0;                   ///< the default tactic in the same run; 0: it is quarantined
  double dense_us = 0;                     ///< the dense BLAS on unquantized weights; 0: not measured
  friend bool operator==(const TunedBucket&, const TunedBucket&) = default;
  /// Elsewhere nothing was measured, and the default serves: tuning for few rows says nothing about many.
  bool serves(std::int64_t rows) const { return rows <= m && rows > m / 2; }
};

/// A tactic that crashed or hung the device, or the process that measured it.
struct QuarantinedTactic {
  std::string tactic;
  std::int64_t m = 0;
  std::string reason;
  friend bool operator==(const QuarantinedTactic&, const QuarantinedTactic&) = default;
};

/// Everything known about one key: a line of the file. The buckets below `reconstruct_from` hold direct tactics.
struct TuningRecord {
  TuningKey key;
  std::int64_t reconstruct_from = 0;  ///< first m at which reconstruct + BLAS won; 0: never within the range measured
  Math math = Math::kAuto;            ///< half2 or fp32 for the direct kernels
  std::vector<TunedBucket> buckets;   ///< ascending m
  double floor_us = 0;                ///< a kernel that only reads as many cold bytes as the weights have; 0: unknown
  std::vector<QuarantinedTactic> quarantined;
  std::map<std::string, std::string> provenance;  ///< driver, clocks, versions, date: warned about, never fatal

  /// The smallest one that serves m; null when there is none.
  Q4_API const TunedBucket* bucket(std::int64_t m) const;
  friend bool operator==(const TuningRecord&, const TuningRecord&) = default;
};

enum class TuningMatch : std::uint8_t {
  kNone,
  kExact,
  kNearest,  ///< another device of the same arch
  kStale,    ///< there is a record, of other kernels: find() gives none
};

class TuningDb;

/// A file or a pack that a Runtime takes tuning records from.
struct TuningSource {
  std::string path;    ///< "/opt/q4/tuning.jsonl", "/opt/llama.q4pack"
  bool pack = false;   ///< what q4-cache pack put in
  bool named = false;  ///< by RuntimeOptions::tuning_files or $Q4_TUNING: a problem with it fails every plan
  std::shared_ptr<const TuningDb> records;  ///< null where there is a problem
  std::string problem;                      ///< why it is not used; empty: it is
};

/// A set of records. Reading and looking up are thread-safe while nobody modifies it; adding invalidates what find()
/// gave.
class Q4_API TuningDb {
 public:
  TuningDb();
  ~TuningDb();
  TuningDb(TuningDb&&) noexcept;
  TuningDb& operator=(TuningDb&&) noexcept;

  /// JSON Lines, one record a line, blank lines skipped; a record replaces one of the same key. Throws kNotFound, kIo
  /// or kCorrupt with file, line and field; nothing is added then. Of lines in the canonical form only the key is read
  /// here (10,000 take milliseconds): what is wrong with the rest of such a line, find() and records() throw as
  /// kCorrupt.
  void load(const std::string& path);
  /// The same from memory; `name` says in errors where the text is from.
  void parse(std::string_view text, const std::string& name);
  /// Writes to a temporary file in the same folder and renames it, so that readers see the old or the new file.
  void save(const std::string& path) const;
  std::string str() const;        ///< what save() writes
  void add(TuningRecord record);  ///< replaces a record of the same key
  /// Exact device, else the same arch with the nearest number of compute units (kNearest); of the key's policy, else of
  /// the other; never one whose tactics name other kernels than these.
  const TuningRecord* find(const TuningKey& key, TuningMatch* match = nullptr) const;
  std::vector<TuningRecord> records() const;  ///< sorted by key
  std::size_t size() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace q4
