// q4-cache explain: which field of a key differs from the nearest kernel that there is.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <q4/q4.hpp>
#include <set>

#include "runtime/base/check.hpp"
#include "runtime/jit/embedded.hpp"
#include "tools/cache/cache_tool.hpp"

namespace q4::tools {
namespace {

using cache::KernelKey;

struct Difference {
  std::string field, here, there;
};

/// A generated source as words: ".k=4096" is {".k", "4096"}, anything else a name without a value.
std::multimap<std::string, std::string> words_of(const std::string& source) {
  std::multimap<std::string, std::string> words;
  for (std::size_t at = 0; at < source.size();) {
    const auto begin = source.find_first_not_of(" \n(){}<>,;", at);
    if (begin == source.npos) break;
    const auto end = std::min(source.find_first_of(" \n(){}<>,;", begin), source.size());
    const std::string word = source.substr(begin, end - begin);
    const auto equals = std::min(word.find('='), word.size());
    words.emplace(word.substr(0, equals), equals < word.size() ? word.substr(equals + 1) : "");
    at = end;
  }
  return words;
}

std::string joined(const std::multimap<std::string, std::string>& words, const std::string& name) {
  std::string text;
  for (auto [it, end] = words.equal_range(name); it != end; ++it)
    text += (text.empty() ? "" : " ") + (it->second.empty() ? name : it->second);
  return text.empty() ? "-" : text;
}

/// Every field that differs; words of the sources one by one.
std::vector<Difference> differences(const KernelKey& a, const KernelKey& b) {
  std::vector<Difference> found;
  const auto note = [&](const std::string& field, const std::string& here, const std::string& there) {
    if (here != there) found.push_back({field, here, there});
  };
  note("target", a.target, b.target);
  note("kernel headers", a.headers, b.headers);
  note("options", fmt::format("{}", fmt::join(a.options, " ")), fmt::format("{}", fmt::join(b.options, " ")));
  const auto here = words_of(a.source), there = words_of(b.source);
  std::set<std::string> names;
  for (const auto* words : {&here, &there})
    for (const auto& [name, value] : *words) names.insert(name);
  for (const auto& name : names) note("source: " + name, joined(here, name), joined(there, name));
  return found;
}

/// Every kernel of the layers that a program here searches, and of --in.
std::vector<Listed> everything(const CacheToolOptions& options, std::vector<std::string>& searched) {
  RuntimeOptions runtime;
  runtime.cache_dir = options.folder, runtime.cache_mode = CacheMode::kReadOnly;
  for (const auto& source : options.sources)
    (source.ends_with(cache::kPackExtension) ? runtime.packs : runtime.cache_folders).push_back(source);
  cache::KernelCache cache(cache::cache_options(runtime), nullptr);
  std::vector<Listed> all;
  for (const auto& layer : cache.layers()) {
    searched.push_back(layer.name + (layer.problem.empty() ? "" : " (" + layer.problem + ")"));
    std::vector<Listed> listed;
    if (layer.pack) listed = read_pack(*layer.pack);
    if (layer.folder && std::filesystem::is_directory(layer.folder->path())) listed = read_folder(layer.folder->path());
    for (auto& l : listed) {
      if (layer.pack) l.path = layer.pack->path();
      all.push_back(std::move(l));
    }
  }
  return all;
}

/// The key among those that plans of some shapes ask for on some targets; nothing is compiled.
std::optional<KernelKey> derive(const CacheToolOptions& options, std::size_t& tried) {
  std::vector<autotune::Problem> shapes;
  std::vector<WarmupExperts> experts;
  const auto add = [&](const ShapeOptions& from) {
    for (const auto& shape : from.resolve("")) shapes.push_back(shape);
    PlanOptions plan;
    plan.max_m = options.cross.max_m;
    for (const auto& layer : from.experts(plan)) experts.push_back(layer);
  };
  const ShapeOptions& given = options.shapes;
  if (given.model.empty() && given.csv_file.empty() && given.checkpoint.empty() && given.shape.empty() &&
      given.config.empty()) {
    for (const auto& model : model_names()) {
      ShapeOptions of_model;
      of_model.model = model;
      add(of_model);
    }
  } else {
    add(given);
  }
  cache::KernelCache nothing({.mode = CacheMode::kOff}, nullptr);
  std::set<std::string> seen;
  const auto match = [&](const Target& target, const std::vector<jit::Source>& sources) -> std::optional<KernelKey> {
    for (const auto& source : sources) {
      if (!seen.insert(target.arch + source.text).second) continue;
      ++tried;
      const KernelKey key = key_of(target.arch, source);
      if (key.digest().starts_with(options.key)) return key;
    }
    return std::nullopt;
  };
  for (const Target& target : options.target.empty() ? all_targets() : parse_targets(options.target)) {
    CrossCompiler compiler(target, nothing);
    for (const auto& shape : shapes)
      for (const DType activation : {DType::kF16, DType::kBF16})
        for (const int variant : {0, 1, 2, 3}) {
          CrossOptions cross = options.cross;
          cross.activation = activation, cross.bias = variant & 1, cross.in_place = variant & 2;
          if (const auto key = match(target, compiler.sources(shape, cross))) return key;
        }
    for (WarmupExperts layer : experts)
      for (const DType type : {DType::kF16, DType::kBF16}) {
        layer.plan.dtype = type;
        if (const auto key = match(target, compiler.sources(layer))) return key;
      }
  }
  return std::nullopt;
}

Json fields_of(const KernelKey& key) {
  return {{"kernel", key.name},
          {"target", key.target},
          {"options", key.options},
          {"kernel_headers", key.headers},
          {"headers_are", key.headers == jit::headers_digest(key.source) ? "this version's" : "another version's"},
          {"source", key.source}};
}

}  // namespace

int explain(const Tool& tool, const CacheToolOptions& options) {
  check(options.key.size() >= 8 && options.key.size() <= 64 &&
            options.key.find_first_not_of("0123456789abcdef") == std::string::npos,
        "key = {}: it must be 8 to 64 hex digits, as q4-cache ls prints them", options.key);
  std::vector<std::string> searched;
  const auto all = everything(options, searched);
  std::optional<KernelKey> wanted;
  Json found = Json::array(), damaged = Json::array();
  for (const auto& l : all) {
    const bool named = std::filesystem::path(l.path).filename().string().starts_with(options.key);
    if (!l.problem.empty() && named) damaged.push_back({{"in", l.path}, {"problem", l.problem}});
    if (!l.problem.empty() || !l.entry.digest.starts_with(options.key)) continue;
    check(!wanted || wanted->digest() == l.entry.digest, "key = {}: several keys begin so; write more digits",
          options.key);
    wanted = l.entry.key;
    found.push_back({{"in", l.path}, {"made_by", l.entry.compiler}, {"created", l.entry.created}, {"bytes", l.bytes}});
  }
  std::size_t tried = 0;
  if (!wanted) wanted = derive(options, tried);

  Json result{
      {"key", wanted ? wanted->digest() : options.key}, {"searched", searched}, {"found", found}, {"damaged", damaged}};
  const Listed* nearest = nullptr;
  std::vector<Difference> differs;
  if (wanted) {
    for (const auto& l : all) {
      if (!l.problem.empty() || l.entry.digest == wanted->digest()) continue;
      auto candidate = differences(*wanted, l.entry.key);
      if (!nearest || candidate.size() < differs.size()) nearest = &l, differs = std::move(candidate);
    }
    result["fields"] = fields_of(*wanted);
  }
  if (nearest) {
    Json rows = Json::array();
    for (const auto& d : differs) rows.push_back({{"field", d.field}, {"here", d.here}, {"there", d.there}});
    result["nearest"] = {
        {"key", nearest->entry.digest}, {"in", nearest->path}, {"made_by", nearest->entry.compiler}, {"differs", rows}};
  }
  const int status = wanted ? 0 : 1;
  if (tool.json) return fmt::print("{}\n", result.dump(2)), status;

  for (const auto& d : damaged)
    fmt::print("damaged: {}: {}\n", d["in"].get<std::string>(), d["problem"].get<std::string>());
  if (!wanted) {
    fmt::print(
        "{}: no layer holds it, nor is it one of the {} kernels that were tried; give --target and the shapes,\n"
        "--max-m included, of the program that asked for it. Searched: {}\n",
        options.key, tried, fmt::join(searched, ", "));
    return status;
  }
  fmt::print("key     {}\nkernel  {}\ntarget  {}\noptions {}\nheaders {} ({})\n", wanted->digest(), wanted->name,
             wanted->target, fmt::join(wanted->options, " "), wanted->headers.substr(0, 16),
             result["fields"]["headers_are"].get<std::string>());
  for (const auto& f : found)
    fmt::print("in      {}, made by {}\n", f["in"].get<std::string>(), f["made_by"].get<std::string>());
  if (found.empty()) fmt::print("in      no layer; searched: {}\n", fmt::join(searched, ", "));
  if (!nearest) return fmt::print("There is no other kernel to compare it with.\n"), status;
  fmt::print("\nnearest {} in {}\n", nearest->entry.digest, nearest->path);
  Table table({"field that differs", "this key", "the nearest"});
  for (const auto& d : differs) table.add({d.field, d.here, d.there});
  fmt::print("{}", table.str());
  return status;
}

}  // namespace q4::tools
