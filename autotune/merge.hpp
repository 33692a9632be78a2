// Uniting and comparing tuning files: the rule for two records of one key.
#pragma once

#include <q4/tuning.hpp>
#include <string>
#include <vector>

namespace q4::autotune {

/// What a record is of, for people: "4096x6144 g128 fp16 cold on H200, kernels 0123456789ab".
std::string name_of(const TuningKey& key);

/// Two records of one key that differ.
struct Conflict {
  TuningKey key;
  bool second = false;              ///< the later file's record is used
  std::string why;                  ///< by which part of the rule
  std::vector<std::string> points;  ///< the m at which the tactics differ, with both times
};

/// Of two records of one key, whole records, since a record's crossover and its tactics belong together:
/// 1. one that was measured completely is taken over one that was not;
/// 2. else the one that is faster outside noise (its 95% interval wholly below the other's) at more of the m that both
///    have;
/// 3. else the first stays.
/// What either one quarantined is quarantined.
TuningRecord united(const TuningRecord& first, const TuningRecord& second, Conflict& conflict);

/// The files in this order; later ones against what came of the earlier.
TuningDb merged(const std::vector<std::string>& files, std::vector<Conflict>& conflicts);

/// What differs between two files, a line each; empty: nothing.
std::vector<std::string> differences(const TuningDb& first, const TuningDb& second);

}  // namespace q4::autotune
