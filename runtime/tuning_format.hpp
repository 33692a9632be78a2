// A tuning record as a line of JSON.
#pragma once

#include <optional>
#include <q4/tuning.hpp>
#include <string>
#include <string_view>

namespace q4 {

/// What a file could not hold, or nobody could use; empty: the record is good.
std::string problem_in_record(const TuningRecord& record);

/// Without the newline. Fields in the canonical order: the same record gives the same bytes.
std::string to_line(const TuningRecord& record);
/// Throws std::exception that names the field.
TuningRecord from_line(std::string_view line);
/// The key of a line in the canonical form, without reading the rest; none: from_line() has to look at it.
std::optional<TuningKey> key_of_line(std::string_view line);

/// Whether a record that names `theirs` as its kernels (TuningKey::kernels) may be of use with `ours`: the same
/// kernels, or single digests by name of which some may be the same.
bool comparable_kernels(std::string_view theirs, std::string_view ours);
/// Whether the kernels that the record's own tactics name are the same in `ours`.
bool measured_with(const TuningRecord& record, std::string_view ours);

}  // namespace q4
