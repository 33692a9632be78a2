// Checks tensors, cuts and joins them, and brings the small ones to the host.
#include "runtime/matrix_source.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.hpp"
#include "runtime/group_index.hpp"
#include "runtime/matrix_codes.hpp"
#include "runtime/matrix_scales.hpp"
#include "runtime/slice.hpp"
#include "runtime/tensor_reader.hpp"

namespace q4 {
namespace {

constexpr std::int64_t kLargest = INT32_MAX;

/// One of the matrices that are joined, whatever its format.
struct Part {
  TensorView qweight, qzeros, scales;
  std::optional<TensorView> g_idx, bias;
  std::int64_t group_size;
  ZeroFormat zeros;
  CutFrom cut = {};
  // What check_part() finds.
  std::int64_t k = 0, n = 0, groups = 0;
  std::vector<Extent> columns = {};  ///< of the tensors that are given
  std::vector<std::int32_t> group_of_row = {}, plain_g_idx = {};
  bool detected = false;
};

/// `plain` receives one that means no act-order, as it is.
GroupIndex read_g_idx(const TensorReader& reader, const TensorView& view, const Part& part,
                      std::vector<std::int32_t>& plain) {
  reader.check_view(view, "g_idx", {DType::kI32, DType::kI64});
  check(view.rows * view.cols == part.k && (view.rows == 1 || view.cols == 1),
        "{}: g_idx has shape [{}, {}]; it must have k = {} elements", reader.call(), view.rows, view.cols, part.k);
  const auto raw = reader.bytes(view);
  GroupIndex index = read_group_index(reader.call(), view.dtype, raw.data(), part.k, part.group_size, part.groups);
  if (index.rows.empty()) {
    plain.resize(static_cast<std::size_t>(part.k));
    for (std::size_t r = 0; r < plain.size(); ++r) std::memcpy(&plain[r], raw.data() + r * size_of(view.dtype), 4);
  }
  return index;
}

void check_groups(const TensorReader& reader, Part& part, std::vector<std::string>& notes) {
  const char* call = reader.call();
  const std::int64_t given = part.group_size;
  check(given >= -1 && given <= kLargest,
        "{}: group_size = {}; it must be -1 (one group), 0 (derive) or a positive multiple of 8", call, given);
  if (given <= 0) part.group_size = given == -1 ? part.k : (part.k + part.groups - 1) / part.groups;
  if (present(part.g_idx)) {
    GroupIndex index = read_g_idx(reader, *part.g_idx, part, part.plain_g_idx);
    part.group_of_row = std::move(index.rows);
    if (!index.note.empty()) notes.push_back(std::move(index.note));
  }
  if (!part.group_of_row.empty()) return;
  check(given != -1 || part.groups == 1, "{}: group_size = -1 means one group, but scales has {} rows", call,
        part.groups);
  check(part.group_size % 8 == 0,
        "{}: group size {} (k = {}, {} groups) is no multiple of 8; pass group_size if the last group is shorter", call,
        part.group_size, part.k, part.groups);
  const std::int64_t groups = (part.k + part.group_size - 1) / part.group_size;
  check(groups == part.groups, "{}: k = {} rows in groups of {} make {} groups, but scales has {} rows", call, part.k,
        part.group_size, groups, part.groups);
}

/// k and n of the whole matrix; what the slice takes of the columns that are there.
void set_columns(const TensorReader& reader, Part& part, const Slice& slice, bool awq) {
  const bool cut = part.cut.n > 0;
  part.k = cut ? part.cut.k : part.qweight.rows * (awq ? 1 : 8);
  part.n = cut ? part.cut.n : part.qweight.cols * (awq ? 8 : 1);
  part.columns = {{0, part.n, 0}};
  if (slice.along == Slice::Along::kColumns) part.columns = extents_of(reader.call(), slice, part.n, "n");
  std::int64_t next = 0;
  for (Extent& e : part.columns) {
    if (!cut) continue;
    e.first = next;
    next += e.count;
  }
}

/// Shapes, types and groups of one matrix, after set_columns().
void check_part(const TensorReader& reader, Part& part, std::vector<std::string>& notes) {
  const char* call = reader.call();
  check(part.k >= 8 && part.n >= 8, "{}: W is {} x {} (k x n); both must be at least 8", call, part.k, part.n);
  check(part.k % 8 == 0 && part.k <= kLargest,
        "{}: k = {} must be a multiple of 8 of at most {}: pad W and x with zero rows", call, part.k, kLargest);
  check(part.n % 8 == 0 && part.n <= kLargest,
        "{}: n = {} must be a multiple of 8 of at most {}: pad W with zero columns", call, part.n, kLargest);
  part.groups = part.scales.rows;
  std::int64_t n = part.n;
  if (part.cut.n > 0) n = part.columns.back().first + part.columns.back().count;
  check(part.groups >= 1 && part.scales.cols == n, "{}: scales has shape [{}, {}]; it must be [groups, n = {}]", call,
        part.scales.rows, part.scales.cols, n);
  check(part.qzeros.rows == part.groups && part.qzeros.cols == n / 8,
        "{}: qzeros has shape [{}, {}]; with {} groups of scales and n = {} it must be [{}, {}]", call,
        part.qzeros.rows, part.qzeros.cols, part.groups, n, part.groups, n / 8);
  check_groups(reader, part, notes);
  if (present(part.bias)) {
    reader.check_view(*part.bias, "bias", {DType::kF16, DType::kBF16, DType::kF32});
    check(part.bias->rows * part.bias->cols == part.n && (part.bias->rows == 1 || part.bias->cols == 1),
          "{}: bias has shape [{}, {}]; it must have n = {} elements", call, part.bias->rows, part.bias->cols, part.n);
  } else {
    part.bias.reset();
  }
  check(part.zeros <= ZeroFormat::kV2, "{}: zeros = {} is no value of ZeroFormat", call, static_cast<int>(part.zeros));
  if (part.zeros == ZeroFormat::kAuto) {  // the whole matrix decides, so that all slices agree
    part.detected = every_zero_is_8(reader.on_host(part.qzeros), part.groups, part.qzeros.cols);
    part.zeros = part.detected ? ZeroFormat::kV2 : ZeroFormat::kV1;
  }
}

/// That `part` can stand beside `first`.
void check_beside(const TensorReader& reader, const Part& part, const Part& first) {
  const char* call = reader.call();
  check(part.k == first.k, "{}: k = {}, that of the first is {}: matrices of one input are joined", call, part.k,
        first.k);
  if (part.groups != first.groups ||
      (part.group_of_row.empty() && first.group_of_row.empty() && part.group_size != first.group_size)) {
    fail(ErrorCode::kUnsupported, "{}: {} groups of {} rows, the first has {} of {}: load them as separate matrices",
         call, part.groups, part.group_size, first.groups, first.group_size);
  }
  if (part.group_of_row == first.group_of_row) return;
  const auto act_order = [](const Part& p) { return p.group_of_row.empty() ? "no act-order" : "act-order"; };
  if (part.group_of_row.empty() || first.group_of_row.empty()) {
    fail(ErrorCode::kUnsupported, "{}: it has {}, the first has {}: load them as separate matrices", call,
         act_order(part), act_order(first));
  }
  const auto [a, b] = std::mismatch(part.group_of_row.begin(), part.group_of_row.end(), first.group_of_row.begin());
  fail(ErrorCode::kUnsupported,
       "{}: its g_idx differs from the first's (row {}: group {}, there {}), and one order of x serves a matrix: load "
       "them as separate matrices",
       call, a - part.group_of_row.begin(), *a, *b);
}

/// Group size, groups and row order of the result.
void set_rows(MatrixSource& s, const RowSlice& rows) {
  s.k = rows.k, s.group_size = rows.group_size;
  s.groups = static_cast<std::int64_t>(rows.source_group.size());
  s.g_idx = rows.g_idx;
  s.act_order = !s.g_idx.empty();
  s.order = arrange(s, s.g_idx);
}

bool every_group_has_rows(const MatrixSource& s) {
  std::vector<bool> has(static_cast<std::size_t>(s.groups));
  for (const auto group : s.g_idx) has[static_cast<std::size_t>(group)] = true;
  return std::find(has.begin(), has.end(), false) == has.end();
}

/// A float for each column; 0 where a matrix has no bias.
void put_bias(MatrixSource& s, const std::vector<Part>& parts, const std::vector<TensorReader>& readers,
              const Slice& slice) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    std::vector<float> bias(static_cast<std::size_t>(part.n));
    if (part.bias) bias = readers[i].floats(*part.bias);
    std::vector<Extent> columns = {{0, part.n, 0}};  // of the whole: a bias is never cut
    if (slice.along == Slice::Along::kColumns) columns = extents_of(readers[i].call(), slice, part.n, "n");
    for (const Extent& e : columns) {
      s.bias.insert(s.bias.end(), bias.begin() + e.first, bias.begin() + e.first + e.count);
      s.bias.resize(s.bias.size() + static_cast<std::size_t>(e.padding));
    }
  }
}

CheckedSource join(const std::shared_ptr<DeviceBackend>& device, std::vector<Part>& parts, bool awq, const Slice& slice,
                   const char* call) {
  check(!parts.empty(), "{}: no tensors are given: pass those of one matrix or more", call);
  CheckedSource to;
  MatrixSource& s = to.source;
  s.awq = awq;
  std::vector<TensorReader> readers;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const TensorReader& reader = readers.emplace_back(
        parts.size() == 1 ? call : fmt::format("{}: matrix {} of {}", call, i + 1, parts.size()), device);
    Part& part = parts[i];
    reader.check_view(part.qweight, "qweight", {DType::kI32});
    reader.check_view(part.qzeros, "qzeros", {DType::kI32});
    reader.check_view(part.scales, "scales", {DType::kF16, DType::kBF16, DType::kF32});
    set_columns(reader, part, slice, awq);
    check_part(reader, part, to.notes);
    if (i > 0) check_beside(reader, part, parts[0]);
  }
  const Part& first = parts[0];
  const bool by_rows = slice.along == Slice::Along::kRows;
  check(parts.size() == 1 || slice.parts.empty(), "{}: slice.parts is set, and {} matrices are given: either", call,
        parts.size());
  const Extent row_extent = by_rows ? extents_of(call, slice, first.k, "k")[0] : Extent{0, first.k, 0};
  const RowSlice rows = slice_rows(row_extent, first.k, first.group_size, first.groups, first.group_of_row, !awq);

  CodesJoin codes(rows, awq);
  for (std::size_t i = 0; i < parts.size(); ++i)
    for (const Extent& columns : parts[i].columns)
      codes.add(readers[i], parts[i].qweight, columns, parts[i].cut.n > 0 ? 0 : rows.first);
  s.n = codes.n();
  check(s.n <= kLargest, "{}: the matrices have {} columns together; at most {} are one matrix", call, s.n, kLargest);
  codes.place(to);
  set_rows(s, rows);

  const bool whole = parts.size() == 1 && slice.along == Slice::Along::kWhole;
  const auto stays = [&](const TensorView& view) {
    return TensorReader::on_device(view) == s.qweight_on_device && TensorReader::contiguous(view);
  };
  // They are packed as they are, but for those of groups without rows.
  to.small_stay = whole && (!s.act_order || every_group_has_rows(s)) && first.scales.dtype == DType::kF16 &&
                  stays(first.scales) && stays(first.qzeros);
  if (to.small_stay) {
    s.device_scales = static_cast<const std::uint16_t*>(first.scales.data);
    s.device_qzeros = static_cast<const std::uint32_t*>(first.qzeros.data);
  } else {
    s.scales.resize(static_cast<std::size_t>(s.groups * s.n));
    s.zeros.resize(s.scales.size());
  }
  std::int64_t column = 0;
  const bool bias_here = !by_rows || slice.rank == 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    s.has_bias |= bias_here && part.bias.has_value();
    to.zeros_detected |= part.detected;
    std::optional<std::string> note;
    if (!to.small_stay) {
      put_zeros(s, readers[i].on_host(part.qzeros), rows, part.columns, column, part.zeros);
      note = put_scales(s, readers[i], part.scales, rows, part.columns, column);
    }
    if (note) to.notes.push_back(std::move(*note));
    for (const Extent& columns : part.columns) column += columns.count + columns.padding;
  }
  if (s.has_bias) put_bias(s, parts, readers, slice);
  if (whole) to.plain_g_idx = std::move(parts[0].plain_g_idx);
  const bool same_zeros = std::ranges::all_of(parts, [&](const Part& p) { return p.zeros == first.zeros; });
  to.zeros = same_zeros ? first.zeros : ZeroFormat::kV2;
  s.zero_add = to.zeros == ZeroFormat::kV1 ? 1 : 0;
  return to;
}

}  // namespace

CheckedSource check_gptq(const std::shared_ptr<DeviceBackend>& device, std::span<const GptqTensors> tensors,
                         const Slice& slice, const char* call, std::span<const CutFrom> cuts) {
  std::vector<Part> parts;
  for (const GptqTensors& t : tensors) {
    const CutFrom cut = cuts.empty() ? CutFrom() : cuts[parts.size()];
    parts.push_back({t.qweight, t.qzeros, t.scales, t.g_idx, t.bias, t.group_size, t.zeros, cut});
  }
  return join(device, parts, false, slice, call);
}

CheckedSource check_awq(const std::shared_ptr<DeviceBackend>& device, std::span<const AwqTensors> tensors,
                        const Slice& slice, const char* call) {
  std::vector<Part> parts;
  for (const AwqTensors& t : tensors)
    parts.push_back({t.qweight, t.qzeros, t.scales, std::nullopt, t.bias, t.group_size, ZeroFormat::kV2});
  return join(device, parts, true, slice, call);
}

}  // namespace q4
