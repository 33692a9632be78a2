// Reading shapes: CSV text, checkpoints, KxN.
#include "tools/common/shapes.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <q4/checkpoint.hpp>

#include "runtime/base/check.hpp"
#include "runtime/matmul.hpp"
#include "tools/common/common.hpp"
#include "tools/common/csv.hpp"
#include "tools/common/exit.hpp"
#include "tools/common/slices.hpp"

namespace q4::tools {

extern const char* const kShapesCsv;   // share/q4/shapes.csv, embedded by tools/CMakeLists.txt
extern const char* const kModelsJson;  // share/q4/models.json, likewise

namespace {

using autotune::Problem;

Problem checked(Problem p, const std::string& where) {
  constexpr std::int64_t kLargest = 1 << 24;
  const auto fits = [](std::int64_t size) { return size >= 8 && size <= kLargest && size % 8 == 0; };
  check(fits(p.k) && fits(p.n), "{}: {}x{}: k and n must be multiples of 8, at least 8, at most {}", where, p.k, p.n,
        kLargest);
  check(p.group == -1 || (p.group >= 8 && p.group % 8 == 0), "{}: group = {} must be -1 or a multiple of 8", where,
        p.group);
  if (p.group == -1 || p.group > p.k) p.group = p.k;
  return p;
}

std::vector<Problem> checkpoint_shapes(const std::string& path) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  std::vector<Problem> shapes;
  for (const MatrixEntry& entry : checkpoint.matrices()) {
    if (!entry.unsupported.empty()) continue;
    const std::string layer = entry.name.substr(entry.name.rfind('.') + 1);
    shapes.push_back({layer, entry.k, entry.n, entry.group_size, checkpoint.act_order(entry.name)});
  }
  check(!shapes.empty(), "--checkpoint = {}: no quantized matrix in it that q4 can load", path);
  return shapes;
}

std::vector<Problem> of_csv(const Csv& csv, std::int64_t group, bool act_order) {
  std::vector<Problem> shapes;
  for (std::size_t r = 0; r < csv.rows(); ++r) {
    Problem p{csv.text(r, "layer"), csv.whole(r, "k"), csv.whole(r, "n"), group, act_order};
    if (const std::string model = csv.text(r, "model"); !model.empty())
      p.label = model + (p.label.empty() ? "" : " ") + p.label;
    try {
      Json(p.label).dump();
    } catch (const nlohmann::json::exception&) {
      fail(ErrorCode::kCorrupt, "{}: the name of the layer is no UTF-8; save the file as such", csv.where(r));
    }
    if (!csv.text(r, "group").empty()) p.group = csv.whole(r, "group");
    if (!csv.text(r, "act_order").empty()) p.act_order = csv.whole(r, "act_order") != 0;
    shapes.push_back(checked(p, csv.where(r)));
  }
  check(!shapes.empty(), "{}: no shape in it; below the header each line is one, such as 4096,28672", csv.name());
  return shapes;
}

}  // namespace

std::vector<Problem> csv_shapes(const std::string& text, const std::string& name, std::int64_t group, bool act_order) {
  const Csv csv(text, name, {"k", "n"});
  return of_csv(csv, group, act_order);
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const Problem& p : csv_shapes(kShapesCsv, "shapes.csv", 128, false)) {
    const std::string name = p.label.substr(0, p.label.find(' '));
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  const Json all = Json::parse(kModelsJson);  // items() refers to it
  for (const auto& [name, config] : all.items()) names.push_back(name);
  return names;
}

namespace {

/// The config.json of a model of models.json; empty: it is not in it.
std::string model_config(const std::string& model) {
  const Json all = Json::parse(kModelsJson);
  return all.contains(model) ? all[model].dump() : std::string();
}

std::vector<Problem> listed_shapes(const std::string& model) {
  std::vector<Problem> shapes;
  for (Problem& p : csv_shapes(kShapesCsv, "shapes.csv", 128, false)) {
    const auto space = p.label.find(' ');
    if (p.label.substr(0, space) != model) continue;
    p.label.erase(0, space + 1);
    shapes.push_back(p);
  }
  if (shapes.empty())
    fail(ErrorCode::kNotFound,
         "--model = {}: unknown; there are {}; other shapes: --config config.json, --shapes FILE.csv, --checkpoint DIR",
         model, fmt::join(model_names(), ", "));
  return shapes;
}

/// What a config.json says, in the groups that it says, unless the command line says others.
ModelShapes shapes_of(const std::string& text, const std::string& where, const ShapeOptions& options) {
  ModelShapes model = model_shapes(text, where, {!options.separate, options.tensor_parallel});
  if (options.group_given || !model.group_size) model.group_size = options.group;
  if (options.act_order_given || !model.act_order) model.act_order = options.act_order;
  return model;
}

std::vector<Problem> config_shapes(const std::string& text, const std::string& where, const ShapeOptions& options) {
  const ModelShapes model = shapes_of(text, where, options);
  std::vector<Problem> shapes;
  for (const ModelMatmul& m : model.matmuls)
    shapes.push_back(checked({m.label, m.k, m.n, *model.group_size, *model.act_order}, where));
  return shapes;
}

/// The config.json that --config or --model names; none: they name something else.
std::optional<ModelShapes> named_config(const ShapeOptions& options) {
  const std::string known = model_config(options.model);
  if (options.config.empty() && known.empty()) return std::nullopt;
  return read_input([&] {
    return options.config.empty() ? shapes_of(known, options.model, options)
                                  : shapes_of(read_config_file(options.config), options.config, options);
  });
}

}  // namespace

std::vector<Problem> model_shapes(const std::string& model) {
  const std::string config = model_config(model);
  return config.empty() ? listed_shapes(model) : config_shapes(config, "--model = " + model, {});
}

std::vector<RecordedShape> recorded_shapes(const std::string& text, const std::string& name) {
  std::vector<RecordedShape> shapes;
  std::size_t begin = 0;
  for (int number = 1; begin < text.size(); ++number) {
    const auto end = text.find('\n', begin);
    if (end == std::string::npos) break;  // being written
    const std::string line = text.substr(begin, end - begin), where = fmt::format("{} line {}", name, number);
    begin = end + 1;
    if (line.find_first_not_of(" \r") == std::string::npos) continue;
    try {
      const Json j = Json::parse(line);
      const Problem p{"", j.at("k"), j.at("n"), j.at("group"), j.at("act_order")};
      shapes.push_back({checked(p, where), parse_activation(j.at("activation"), where + ", activation")});
    } catch (const nlohmann::json::exception& e) {
      fail(ErrorCode::kCorrupt, "{}: {}; delete the line", where, e.what());
    }
  }
  check(!shapes.empty(), "{}: no shape in it", name);
  return shapes;
}

std::optional<std::vector<RecordedShape>> ShapeOptions::recording() const {
  std::ifstream in(csv_file);
  if (csv_file.empty() || in.peek() != '{') return {};
  return read_input([&] { return recorded_shapes({std::istreambuf_iterator<char>(in), {}}, csv_file); });
}

Problem parse_shape(const std::string& text) {
  const auto x = text.find('x');
  check(x != std::string::npos && x > 0 && x + 1 < text.size(),
        "--shape = {}: write KxN, such as 4096x28672 (k in_features, n out_features)", text);
  return checked({"", parse_whole(text.substr(0, x), "--shape"), parse_whole(text.substr(x + 1), "--shape"), -1, false},
                 "--shape");
}

void ShapeOptions::add_to(CLI::App& app, const std::string& default_note) {
  auto* of_model =
      app.add_option("--model", model, fmt::format("{} (default: {})", fmt::join(model_names(), ", "), default_note));
  auto* of_config = app.add_option("--config", config, "every linear layer of a Hugging Face config.json");
  auto* of_csv =
      app.add_option("--shapes", csv_file,
                     "CSV with the columns k,n and perhaps model,layer,group,act_order; or a record of untuned shapes");
  auto* of_checkpoint =
      app.add_option("--checkpoint", checkpoint, "every quantized matrix's shape of a safetensors folder");
  auto* of_shape = app.add_option("--shape", shape, "one shape, KxN, such as 4096x28672");
  of_model->type_name("NAME"), of_csv->type_name("FILE"), of_checkpoint->type_name("DIR"), of_shape->type_name("KxN");
  of_config->type_name("FILE");
  app.callback([this, &app] {  // CLI11's own excludes() would fill the help with every pair
    int given = 0;
    for (const char* option : {"--model", "--config", "--shapes", "--checkpoint", "--shape"})
      given += app.count(option) > 0;
    check(given <= 1, "--model, --config, --shapes, --checkpoint and --shape exclude each other; {} were given", given);
    group_given = app.count("--group") > 0, act_order_given = app.count("--act-order") > 0;
    check(app.count("--checkpoint") == 0 || !(group_given || act_order_given),
          "--group and --act-order are not for --checkpoint, whose matrices say them");
    check(!separate || !config.empty() || !model_config(model).empty(),
          "--separate is for --config and for a --model whose config is known; other shapes are taken as they are");
  });
  app.add_option("--group", group, "rows of a quantization group, -1: one group (not for --checkpoint)")
      ->type_name("G")
      ->capture_default_str();
  app.add_flag("--act-order", act_order, "rows in a random group order, as desc_act checkpoints have");
  app.add_flag("--separate", separate, "q, k, v, gate and up as separate matrices (with --config and --model)");
  app.add_option("--tp", tensor_parallel, "the shapes that one of N ranks has")
      ->check(CLI::Range(1, 64))
      ->type_name("N");
}

std::vector<bool> ShapeOptions::biases(bool otherwise) const {
  bool with = false, without = false;
  if (!checkpoint.empty()) {
    const Checkpoint opened = read_input([&] { return Checkpoint::open(checkpoint); });
    for (const MatrixEntry& entry : opened.matrices())
      if (entry.unsupported.empty()) (entry.has_bias ? with : without) = true;
  } else if (const auto shapes = named_config(*this)) {
    for (const ModelMatmul& m : shapes->matmuls) (m.bias ? with : without) = true;
  } else {
    return {otherwise};
  }
  std::vector<bool> variants;
  if (without || !with) variants.push_back(false);
  if (with) variants.push_back(true);
  return variants;
}

std::vector<WarmupExperts> ShapeOptions::experts(const PlanOptions& options) const {
  std::vector<WarmupExperts> layers;
  if (!checkpoint.empty()) {
    layers = read_input([&] { return warmup_layers(Checkpoint::open(checkpoint), options); });
    for (auto& layer : layers) {
      check(layer.width % (8 * tensor_parallel) == 0,
            "--tp {}: experts have {} columns between their products, which do not divide into multiples of 8 by it",
            tensor_parallel, layer.width);
      layer.width /= tensor_parallel;
    }
  } else if (const auto config = named_config(*this); config && config->experts) {
    const ModelExperts& e = *config->experts;
    WarmupExperts layer{.experts = e.experts, .k = e.k, .width = e.width};
    layer.group_size = *config->group_size, layer.act_order = *config->act_order, layer.bias = e.bias;
    layer.plan.topk = e.topk, layer.plan.activation = e.activation;
    layer.plan.max_tokens = options.max_m, layer.plan.dtype = options.activation;
    layers.push_back(layer);
  }
  return layers;
}

std::vector<Problem> ShapeOptions::resolve(const std::string& default_model) const {
  const std::string chosen = model.empty() ? default_model : model, known = model_config(chosen);
  std::vector<Problem> shapes;
  if (!config.empty()) {
    shapes = read_input([&] { return config_shapes(read_config_file(config), config, *this); });
  } else if (!checkpoint.empty()) {
    shapes = read_input([&] { return checkpoint_shapes(checkpoint); });
  } else if (const auto recorded = recording()) {
    for (const RecordedShape& shape : *recorded) shapes.push_back(shape.problem);
  } else if (!csv_file.empty()) {
    shapes = read_input([&] { return of_csv(Csv::read(csv_file, {"k", "n"}), group, act_order); });
  } else if (shape.empty() && !known.empty()) {
    shapes = config_shapes(known, "--model = " + chosen, *this);
  } else {
    shapes = shape.empty() ? listed_shapes(chosen) : std::vector{parse_shape(shape)};
    for (Problem& p : shapes) p.group = group, p.act_order = act_order, p = checked(p, "--group");
  }
  const bool divided = !config.empty() || (shape.empty() && csv_file.empty() && checkpoint.empty() && !known.empty());
  if (!divided)
    for (Problem& p : shapes) p = q4::tools::tensor_parallel(p, tensor_parallel);
  std::vector<Problem> unique;
  for (const Problem& p : shapes) {
    const bool seen = std::any_of(unique.begin(), unique.end(), [&](const Problem& u) {
      return u.k == p.k && u.n == p.n && u.group == p.group && u.act_order == p.act_order;
    });
    if (!seen) unique.push_back(p);
  }
  return unique;
}

}  // namespace q4::tools
