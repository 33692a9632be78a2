// Slices by layer name, shards by FNV-1a.
#include "tools/common/slices.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "runtime/base/check.hpp"

namespace q4::tools {
namespace {

constexpr std::array<std::string_view, 11> kColumnParallel = {
    "qkv", "q", "k", "v", "gate_up", "query_key_value", "gate", "up", "lm_head", "w1", "w3"};
constexpr std::array<std::string_view, 5> kRowParallel = {"o", "down", "out", "w2", "dense_4h_to_h"};

/// "llama qkv_proj" and "self_attn.qkv_proj" are "qkv".
std::string layer_of(const std::string& label) {
  std::string layer = label.substr(label.find_last_of(" .") + 1);
  if (layer.ends_with("_proj")) layer.erase(layer.size() - 5);
  return layer;
}

}  // namespace

autotune::Problem tensor_parallel(const autotune::Problem& problem, int degree) {
  autotune::Problem slice = problem;
  if (degree == 1) return slice;
  const std::string layer = layer_of(problem.label);
  const bool column = std::ranges::find(kColumnParallel, layer) != kColumnParallel.end();
  const bool row = std::ranges::find(kRowParallel, layer) != kRowParallel.end();
  check(column || row,
        "--tp {}: layer \"{}\" is neither known as column-parallel ({}) nor as row-parallel ({}); give its slices with "
        "--shapes",
        degree, problem.label, fmt::join(kColumnParallel, ", "), fmt::join(kRowParallel, ", "));
  std::int64_t& divided = column ? slice.n : slice.k;
  const std::int64_t unit = column || problem.group == problem.k ? 8 : problem.group;
  check(divided % (degree * unit) == 0, "--tp {}: {} = {} of \"{}\" does not divide into {} slices of whole {}", degree,
        column ? "n" : "k", divided, problem.label, degree, column || unit == 8 ? "eights" : "groups");
  divided /= degree;
  if (problem.group == problem.k) slice.group = slice.k;
  slice.label += fmt::format(" tp{}", degree);
  return slice;
}

Shard Shard::parse(const std::string& text) {
  Shard shard;
  const auto slash = text.find('/');
  const auto whole = [&](std::string_view part, int& value) {
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    return error == std::errc() && end == part.data() + part.size();
  };
  const bool ok = slash != std::string::npos && whole(std::string_view(text).substr(0, slash), shard.index) &&
                  whole(std::string_view(text).substr(slash + 1), shard.count) && shard.index >= 0 &&
                  shard.index < shard.count;
  check(ok, "--shard = \"{}\": write I/N with 0 <= I < N, such as 0/8", text);
  return shard;
}

bool Shard::holds(const autotune::Problem& p, DType activation) const {
  std::string text = fmt::format("{} {} {} {} {}", p.k, p.n, p.group, p.act_order, to_string(activation));
  if (p.experts > 0) text += fmt::format(" {} {} {}", p.experts, p.topk, p.width);
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a; then mixed, since its low bits alone divide badly
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  hash = (hash ^ (hash >> 32)) * 0x9e3779b97f4a7c15u;
  return (hash >> 32) % static_cast<std::uint64_t>(count) == static_cast<std::uint64_t>(index);
}

}  // namespace q4::tools
