// Tables, JSON and CSV of a run of q4-bench.
#include "tools/bench/output.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime/backends/traits.hpp"
#include "tools/bench/summary.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

double gbps(const ChainResult& chain, double us) { return us > 0 ? static_cast<double>(chain.bytes) / us / 1e3 : 0; }

/// The time with an epilogue over that of the matmul alone.
std::string times_alone(const Point& p) {
  return p.versus_us > 0 ? fmt::format("{:.3f}", p.us.value / p.versus_us) : "-";
}

}  // namespace

std::string bench_table(const BenchRun& run, const BenchOptions& options) {
  std::vector<std::string> header = {"k x n",   "group", "m",        "us",      "95% interval",
                                     "TFLOP/s", "GB/s",  "floor us", "x floor", "rel_err"};
  const bool cpu = !traits_of(run.info.device).asynchronous;
  if (cpu)
    header.insert(header.end(), {"vector peak", "rec+blas us", "x blas", "oneDNN us", "x oneDNN", "its u4 us", "x u4"});
  if (!options.versus.empty()) header.insert(header.end(), {"other us", "gain", "its 95% interval"});
  if (options.epilogue.any()) header.insert(header.end(), {"alone us", "x alone"});
  if (options.dense) header.insert(header.end(), {"dense us", "x dense"});
  if (run.baseline)
    header.insert(header.end(), {"best 4-bit peer", "peer us", "x peer", "peers' floor us", "cuBLAS fp16 us"});
  header.push_back("kernel");
  Table table(header);
  const auto ratio = [](double us, double of) { return us > 0 && of > 0 ? fmt::format("{:.2f}", us / of) : "-"; };
  for (const Point& p : run.points) {
    std::vector<std::string> row = {fmt::format("{}x{}", p.problem.k, p.problem.n),
                                    fmt::format("{}{}", p.problem.group, p.problem.act_order ? " act-order" : ""),
                                    std::to_string(p.m),
                                    number(p.us.value),
                                    p.us.low < p.us.high ? number(p.us.low) + "-" + number(p.us.high) : "-",
                                    number(p.tflops()),
                                    number(p.gbps()),
                                    number(p.floor_us),
                                    ratio(p.us.value, p.floor_us),
                                    fmt::format("{:.1e}{}", p.error, p.exact ? "" : " WRONG")};
    if (cpu)
      row.insert(row.end(), {fmt::format("{:.0f}%", 100 * p.vector_share), number(p.blas_us),
                             ratio(p.us.value, p.blas_us), number(p.onednn_us), ratio(p.us.value, p.onednn_us),
                             number(p.onednn_u4_us), ratio(p.us.value, p.onednn_u4_us)});
    if (!options.versus.empty())
      row.insert(row.end(),
                 {number(p.versus_us), percent(p.gain.value), percent(p.gain.low) + ".." + percent(p.gain.high)});
    if (options.epilogue.any()) row.insert(row.end(), {number(p.versus_us), times_alone(p)});
    if (options.dense) row.insert(row.end(), {number(p.dense_us), ratio(p.us.value, p.dense_us)});
    if (run.baseline) {
      const auto peers = run.baseline->at(p.problem, p.m);
      row.insert(row.end(), {peers.best, number(peers.best_us), ratio(p.us.value, peers.best_us),
                             number(peers.floor_us), number(peers.dense_us)});
    }
    row.push_back(p.kernel);
    table.add(row);
  }
  return fmt::format(
      "{} ({}, {}), {} activations{}, {}\n{}\n{}{}{}", run.info.device.str(), run.info.name, run.info.arch,
      to_string(options.activation), options.math == Math::kInt8 ? " quantized to int8" : "",
      options.untuned ? "default tactics" : fmt::format("tuning records: {}", run.tuning_records),
      cpu ? run.ceilings.str() + "\n" : "", table.str(), options.summary ? "\n" + summary_table(run) : "",
      run.scaling.empty() ? "" : "\n" + scaling_table(run.scaling));
}

Json bench_json(const BenchRun& run, const BenchOptions& options) {
  Json out{{"device", run.info.device.str()},
           {"fingerprint", run.info.fingerprint},
           {"activation", to_string(options.activation)},
           {"tuning_records", run.tuning_records},
           {"points", Json::array()}};
  const bool cpu = !traits_of(run.info.device).asynchronous;
  if (cpu) out["ceilings"] = run.ceilings.json(), out["scaling"] = scaling_json(run.scaling);
  for (const Point& p : run.points) {
    Json point{{"kernel", p.kernel},
               {"k", p.problem.k},
               {"n", p.problem.n},
               {"group", p.problem.group},
               {"act_order", p.problem.act_order},
               {"m", p.m},
               {"us", p.us.value},
               {"low", p.us.low},
               {"high", p.us.high},
               {"tflops", p.tflops()},
               {"gbps", p.gbps()},
               {"rel_err", p.error},
               {"exact", p.exact},
               {"floor_us", p.floor_us}};
    if (cpu)
      point["vector_share"] = p.vector_share, point["blas_us"] = p.blas_us, point["onednn_us"] = p.onednn_us,
      point["onednn_u4_us"] = p.onednn_u4_us;
    if (options.dense) point["dense_us"] = p.dense_us;
    if (options.epilogue.any())
      point["adapters"] = options.epilogue.adapters, point["rank"] = options.epilogue.rank,
      point["residual"] = options.epilogue.rest.residual, point["alone_us"] = p.versus_us,
      point["out_activation"] = to_string(options.epilogue.rest.activation);
    if (!options.versus.empty())
      point["versus_us"] = p.versus_us, point["gain"] = {p.gain.value, p.gain.low, p.gain.high};
    if (run.baseline) {
      const auto peers = run.baseline->at(p.problem, p.m);
      point["peer"] = peers.best, point["peer_us"] = peers.best_us;
    }
    out["points"].push_back(std::move(point));
  }
  if (options.summary) out["summary"] = summary_json(run);
  return out;
}

std::string bench_csv(const BenchRun& run, const BenchOptions& options) {
  std::string text = "kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err";
  const autotune::EpilogueChoice& with = options.epilogue;
  text += with.any() ? ",adapters,rank,residual,alone_us,x_alone\n" : "\n";
  for (const Point& p : run.points) {
    text += fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{:.1f},{:.2e}", p.kernel, p.problem.k, p.problem.n,
                        p.problem.group, p.problem.act_order ? 1 : 0, p.m, p.us.value, p.tflops(), p.gbps(), p.error);
    text += with.any() ? fmt::format(",{},{},{},{:.3f},{}\n", with.adapters, with.rank, with.rest.residual ? 1 : 0,
                                     p.versus_us, times_alone(p))
                       : "\n";
  }
  return text;
}

std::string chains_table(const std::vector<ChainResult>& chains) {
  Table table({"layers", "m", "us", "GB/s", "overlapped us", "GB/s", "read-only GB/s", "share of read-only"});
  for (const ChainResult& c : chains)
    table.add({std::to_string(c.layers), std::to_string(c.m), number(c.us), number(gbps(c, c.us)),
               number(c.overlapped_us), number(gbps(c, c.overlapped_us)), number(gbps(c, c.read_only_us)),
               fmt::format("{:.3f}", c.read_only_us / c.overlapped_us)});
  return table.str();
}

Json chains_json(const std::vector<ChainResult>& chains) {
  Json json = Json::array();
  for (const ChainResult& c : chains)
    json.push_back({{"layers", c.layers},
                    {"m", c.m},
                    {"us", c.us},
                    {"overlapped_us", c.overlapped_us},
                    {"read_only_us", c.read_only_us},
                    {"bytes", c.bytes}});
  return json;
}

}  // namespace q4::tools
