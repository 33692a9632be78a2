// Finds the quantized matrices and has each read by its format's reader.
#include "runtime/checkpoint/matrices.hpp"

#include <algorithm>

namespace q4::checkpoint {

namespace {

/// A matrix for each tensor whose name ends as the codes of some format do.
std::vector<Matrix> find(const FileSet& files) {
  std::vector<Matrix> list;
  for (const auto& [name, at] : files.tensors) {
    const std::size_t dot = name.rfind('.');
    if (dot == std::string::npos || dot == 0) continue;
    const std::string_view suffix = std::string_view(name).substr(dot + 1);
    if (suffix != "qweight" && suffix != "weight_packed" && suffix != "B") continue;
    Matrix matrix;
    matrix.entry.name = name.substr(0, dot);
    if (suffix == "B" && look_up(files, matrix.name("s")).tensor == nullptr) continue;  // any model's "B"
    matrix.suffix = suffix;
    matrix.codes = at;
    list.push_back(std::move(matrix));
  }
  std::sort(list.begin(), list.end(), [](const Matrix& a, const Matrix& b) {
    return a.entry.name == b.entry.name ? a.suffix < b.suffix : natural_less(a.entry.name, b.entry.name);
  });
  return list;
}

void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) {
  if (const auto bits = claimed.bits_of(matrix.entry.name)) matrix.entry.bits = *bits;
  matrix.scales = look_up(files, matrix.name("scales"));
  matrix.meta = look_up(files, matrix.name("scaled_zeros"));
  const auto& all = readers();
  const auto reader =
      std::find_if(all.begin(), all.end(), [&](const Reader* r) { return r->detects(matrix, claimed); });
  if (reader == all.end()) {
    wrong(ErrorCode::kUnsupported, matrix.codes, matrix.name(matrix.suffix),
          "{} is not packed in a way that q4 reads{}", shape_of(*matrix.codes.tensor),
          claimed.packing ? fmt::format("; {} says {}", claimed.path, to_string(*claimed.packing)) : "");
  }
  matrix.reader = *reader;
  matrix.entry.packing = matrix.reader->name();
  matrix.reader->describe(files, matrix, claimed);
}

void set_error(Matrix& matrix, const Error& error) {
  matrix.code = error.code();
  matrix.entry.unsupported = error.what();
  matrix.entry.damaged = error.code() == ErrorCode::kCorrupt;
}

/// A configuration that says act-order, and no g_idx anywhere: which rows are in which group is lost. Where some have
/// one, rows of the others are in order.
void check_order(std::vector<Matrix>& list, const ClaimedConfig& claimed) {
  const bool may = claimed.packing == Packing::kGptq || claimed.packing == Packing::kCompressed;
  if (!may || !claimed.needs_g_idx()) return;
  if (std::any_of(list.begin(), list.end(), [](const Matrix& m) { return m.entry.has_g_idx; })) return;
  for (Matrix& matrix : list) {
    if (!matrix.entry.unsupported.empty() || matrix.entry.groups == 1) continue;
    try {
      wrong(
          ErrorCode::kCorrupt, matrix.codes, matrix.name(matrix.suffix),
          "there is no g_idx beside it, nor beside any other, but {} says act-order, which does not tell the rows of "
          "{} groups without; fetch the whole checkpoint, or have the configuration say desc_act: false if rows are in "
          "order",
          claimed.path, matrix.entry.groups);
    } catch (const Error& error) { set_error(matrix, error); }
  }
}

}  // namespace

Matrices find_matrices(const FileSet& files, const std::optional<ClaimedConfig>& claimed) {
  const ClaimedConfig& said = claimed ? *claimed : ClaimedConfig();
  Matrices matrices;
  matrices.list = find(files);
  for (Matrix& matrix : matrices.list) {
    try {
      describe(files, matrix, said);
    } catch (const Error& error) { set_error(matrix, error); }
  }
  check_order(matrices.list, said);
  const auto found = std::find_if(matrices.list.begin(), matrices.list.end(),
                                  [](const Matrix& matrix) { return matrix.entry.unsupported.empty(); });
  const Matrix* const first = found == matrices.list.end() ? nullptr : &*found;  // that can be loaded

  QuantConfig& config = matrices.config;
  config.tool = said.tool;
  if (first != nullptr) {
    config.format = first->entry.format;
  } else if (said.packing == Packing::kAwqGemm) {
    config.format = QuantFormat::kAwq;
  }
  config.desc_act = said.desc_act.value_or(false);
  config.sym = said.sym.value_or(true);
  if (said.zeros == ZeroFormat::kV2 || config.format == QuantFormat::kAwq) config.zeros = ZeroFormat::kV2;
  if (said.group_size) {
    config.group_size = *said.group_size;
  } else if (first != nullptr) {
    config.group_size = first->entry.groups == 1 ? -1 : first->entry.group_size;
  }
  return matrices;
}

}  // namespace q4::checkpoint
