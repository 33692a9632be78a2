// Which multiplications a tool works on: a model of share/q4/shapes.csv, a CSV of the user, a checkpoint or one KxN.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "autotune/workload.hpp"

namespace CLI {
class App;
}

namespace q4::tools {

/// Shapes of one model of the built-in list. Throws kNotFound with the names there are.
std::vector<autotune::Problem> model_shapes(const std::string& model);
std::vector<std::string> model_names();
/// A CSV whose header names at least k and n, in any order; model, layer, group and act_order are used where present.
/// `group`, `act_order`: for rows that do not say. Throws kIo or kCorrupt with file and line.
std::vector<autotune::Problem> csv_shapes(const std::string& text, const std::string& name, std::int64_t group,
                                          bool act_order);
autotune::Problem parse_shape(const std::string& text);  ///< "4096x28672": k x n

/// A problem that a service recorded (RuntimeOptions::record_untuned), with the type of its activations.
struct RecordedShape {
  autotune::Problem problem;
  DType activation = DType::kF16;
};
/// Lines of JSON as UntunedLog writes them; an unfinished last line is left out. Throws kCorrupt with file and line.
std::vector<RecordedShape> recorded_shapes(const std::string& text, const std::string& name);

/// The options that choose shapes, the same in every tool.
struct ShapeOptions {
  std::string model, csv_file, checkpoint, shape;
  std::int64_t group = 128;
  bool act_order = false;

  void add_to(CLI::App& app, const std::string& default_note);
  /// What was asked for, else `default_model`: in order, repeats of (k, n, group, act_order) removed.
  std::vector<autotune::Problem> resolve(const std::string& default_model) const;
  /// What --shapes is a recording of, with its types; none: --shapes is something else.
  std::optional<std::vector<RecordedShape>> recording() const;
};

}  // namespace q4::tools
