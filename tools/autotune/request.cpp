// Resolves shapes and files before anything is measured.
#include "tools/autotune/request.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <tuple>

#include "runtime/base/check.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

std::string shard_file(const std::string& out, const Shard& shard) {
  std::filesystem::path path = out;
  path.replace_filename(
      fmt::format("{}-{}-of-{}{}", path.stem().string(), shard.index, shard.count, path.extension().string()));
  return path.string();
}

}  // namespace

std::vector<autotune::TunedShape> requested_shapes(const TuningRequest& request) {
  std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t, bool, DType>> seen;
  std::vector<RecordedShape> wanted;
  if (auto recorded = request.shapes.recording())
    for (const RecordedShape& shape : *recorded)
      wanted.push_back({tensor_parallel(shape.problem, request.shapes.tensor_parallel), shape.activation});
  else
    for (const autotune::Problem& p : request.shapes.resolve("llama-3-8b")) wanted.push_back({p, request.activation});
  std::vector<autotune::TunedShape> shapes;
  for (const RecordedShape& shape : wanted) {
    autotune::TunedShape row;
    row.problem = shape.problem;
    row.problem.with = request.with;
    row.activation = shape.activation;
    const auto& p = row.problem;
    if (!seen.insert({p.k, p.n, p.group, p.act_order, row.activation}).second) continue;
    if (request.shard.holds(p, row.activation)) shapes.push_back(std::move(row));
  }
  PlanOptions plan;
  plan.activation = request.activation;
  for (const WarmupExperts& layer : request.shapes.experts(plan)) {
    autotune::TunedShape row;
    row.activation = request.activation;
    row.problem = {"experts", layer.k, layer.n ? layer.n : layer.k,
                   layer.group_size > 0 ? std::min(layer.group_size, layer.k) : layer.k, layer.act_order};
    row.problem.experts = layer.experts, row.problem.topk = layer.plan.topk, row.problem.width = layer.width;
    if (request.shard.holds(row.problem, row.activation)) shapes.push_back(std::move(row));
  }
  return shapes;
}

void complete_request(TuningRequest& request, bool cpu, const std::string& default_file) {
  if (request.m.empty()) request.m = powers_of_two(cpu ? 512 : 4096);
  if (request.m.size() == 1) request.m = powers_of_two(request.m[0]);
  if (request.out.empty()) request.out = default_file;
  if (request.out.empty())
    fail(ErrorCode::kIo, "--out: there is no cache folder to write tuning.jsonl to; name a file, or set Q4_CACHE_DIR");
  if (request.shard.count > 1) request.out = shard_file(request.out, request.shard);
  const auto folder = std::filesystem::path(request.out).parent_path();
  std::error_code problem;
  if (!folder.empty() && std::filesystem::create_directories(folder, problem))
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all);
  if (problem)
    fail(ErrorCode::kIo, "--out = {}: its folder cannot be made: {}; name a file elsewhere", request.out,
         problem.message());
}

void check_report(const TuningRequest& request) {
  if (request.report.empty()) return;
  std::error_code absent;
  for (const auto& [option, file] : {std::pair("--out", request.out), {"--shapes", request.shapes.csv_file}})
    check(file.empty() || std::filesystem::weakly_canonical(file, absent) !=
                              std::filesystem::weakly_canonical(request.report, absent),
          "--report = {}: that is the file of {}; name another", request.report, option);
  if (!std::ofstream(request.report, std::ios::app))
    fail(ErrorCode::kIo, "--report = {}: cannot be written; name a file in a folder that exists", request.report);
}

}  // namespace q4::tools
