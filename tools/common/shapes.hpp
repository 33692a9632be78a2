// Which multiplications a tool works on: a model of the built-in lists, a model's config.json, a CSV of the user, a
// checkpoint or one KxN.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/warmup.hpp>
#include <string>
#include <vector>

#include "autotune/workload.hpp"
#include "tools/common/model_config.hpp"

namespace CLI {
class App;
}

namespace q4::tools {

/// Shapes of one model of the built-in lists (share/q4/shapes.csv, share/q4/models.json), fused, in groups of 128. Throws
/// kNotFound with the names there are.
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
  std::string model, csv_file, checkpoint, shape, config;
  std::int64_t group = 128;
  bool act_order = false;
  bool separate = false;    ///< q, k, v, gate and up each alone: of --config, and --model of models.json
  int tensor_parallel = 1;  ///< shapes are what one of so many ranks holds
  bool group_given = false, act_order_given = false;  ///< they count before what a config says

  void add_to(CLI::App& app, const std::string& default_note);
  /// What was asked for, else `default_model`: in order, repeats of (k, n, group, act_order) removed.
  std::vector<autotune::Problem> resolve(const std::string& default_model) const;
  /// The layers of experts of what was asked for, where that is --config, --model or --checkpoint: each once, in plans
  /// for options.max_m tokens.
  std::vector<WarmupExperts> experts(const PlanOptions& options) const;
  /// Whether matrices without and with a bias are among what was asked for; of a checkpoint and of --config. Otherwise
  /// only `otherwise`.
  std::vector<bool> biases(bool otherwise) const;
  /// What --shapes is a recording of, with its types; none: --shapes is something else.
  std::optional<std::vector<RecordedShape>> recording() const;
};

}  // namespace q4::tools
