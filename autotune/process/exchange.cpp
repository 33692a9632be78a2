// Jobs and results as JSON, field by field.
#include "autotune/process/exchange.hpp"

#include <nlohmann/json.hpp>

#include "autotune/epilogue.hpp"
#include "runtime/base/check.hpp"
#include "runtime/tuning_format.hpp"

namespace q4::autotune {

namespace {

DType activation_of(const std::string& text) {
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32})
    if (text == to_string(type)) return type;
  fail(ErrorCode::kInternal, "q4-autotune's worker: activation '{}' is not fp16, bf16 or fp32", text);
}

Json lines_of(const std::vector<MeasuredBucket>& buckets) {
  Json all = Json::array();
  for (const MeasuredBucket& b : buckets) all.push_back(to_json(b));
  return all;
}

Json lines_of(const std::vector<SlowTactic>& slow) {
  Json all = Json::array();
  for (const SlowTactic& s : slow) all.push_back({s.m, s.tactic, s.at_least_us});
  return all;
}

std::vector<SlowTactic> slow_of(const Json& j) {
  std::vector<SlowTactic> all;
  for (const Json& s : j) all.push_back({s.at(0), s.at(1), s.at(2)});
  return all;
}

std::vector<MeasuredBucket> buckets_of(const Json& j) {
  std::vector<MeasuredBucket> all;
  for (const Json& b : j) all.push_back(bucket_of(b));
  return all;
}

}  // namespace

Json to_json(const Job& job) {
  const auto& [p, o] = job;
  Json quarantined = Json::array();
  for (const auto& q : o.quarantined) quarantined.push_back({q.tactic, q.m, q.reason});
  Json likely = Json::array();
  for (const auto& l : o.likely) likely.push_back({l.m, l.tactic});
  return {{"label", p.label},
          {"k", p.k},
          {"n", p.n},
          {"group", p.group},
          {"act_order", p.act_order},
          {"experts", p.experts},
          {"topk", p.topk},
          {"width", p.width},
          {"epilogue", EpilogueChoice{0, 0, p.with.rest}.text()},
          {"adapters", p.with.adapters},
          {"rank", p.with.rank},
          {"m", o.m},
          {"activation", to_string(o.activation)},
          {"policy", o.policy},
          {"seconds", o.seconds},
          {"exhaustive", o.exhaustive},
          {"yardsticks", o.yardsticks},
          {"floor_us_per_byte", o.floor_us_per_byte},
          {"compile_ahead", o.compile_ahead},
          {"compile_only", o.compile_only},
          {"provenance", o.provenance},
          {"quarantined", quarantined},
          {"known", lines_of(o.known)},
          {"slow", lines_of(o.slow)},
          {"likely", likely}};
}

Job job_of(const Json& j) {
  Job job;
  auto& [p, o] = job;
  j.at("label").get_to(p.label), j.at("k").get_to(p.k), j.at("n").get_to(p.n), j.at("group").get_to(p.group);
  j.at("experts").get_to(p.experts), j.at("topk").get_to(p.topk), j.at("width").get_to(p.width);
  j.at("adapters").get_to(p.with.adapters), j.at("rank").get_to(p.with.rank);
  if (const std::string text = j.at("epilogue"); !text.empty()) parse_epilogue(text, p.with);
  j.at("act_order").get_to(p.act_order), j.at("m").get_to(o.m), j.at("policy").get_to(o.policy);
  o.activation = activation_of(j.at("activation"));
  j.at("seconds").get_to(o.seconds), j.at("exhaustive").get_to(o.exhaustive), j.at("yardsticks").get_to(o.yardsticks);
  j.at("floor_us_per_byte").get_to(o.floor_us_per_byte);
  j.at("compile_ahead").get_to(o.compile_ahead), j.at("compile_only").get_to(o.compile_only),
      j.at("provenance").get_to(o.provenance);
  for (const Json& q : j.at("quarantined")) o.quarantined.push_back({q.at(0), q.at(1), q.at(2)});
  o.known = buckets_of(j.at("known")), o.slow = slow_of(j.at("slow"));
  for (const Json& l : j.at("likely")) o.likely.push_back({l.at(0), l.at(1)});
  return job;
}

Json to_json(const Hello& h) {
  return {{"device", h.info.device.str()},
          {"name", h.info.name},
          {"arch", h.info.arch},
          {"units", h.info.compute_units},
          {"memory_bytes", h.info.memory_bytes},
          {"l2_bytes", h.info.l2_bytes},
          {"driver", h.info.driver},
          {"fingerprint", h.info.fingerprint},
          {"kernels", h.kernels},
          {"address", h.address},
          {"versions", h.versions}};
}

Hello hello_of(const Json& j) {
  Hello h;
  h.info.device = Device::parse(j.at("device"));
  j.at("name").get_to(h.info.name), j.at("arch").get_to(h.info.arch), j.at("units").get_to(h.info.compute_units);
  j.at("memory_bytes").get_to(h.info.memory_bytes), j.at("l2_bytes").get_to(h.info.l2_bytes);
  j.at("driver").get_to(h.info.driver), j.at("fingerprint").get_to(h.info.fingerprint);
  j.at("kernels").get_to(h.kernels), j.at("address").get_to(h.address), j.at("versions").get_to(h.versions);
  return h;
}

Json to_json(const MeasuredBucket& b) {
  Json contenders = Json::array(), earlier = Json::array();
  for (const Contender& c : b.found.contenders) contenders.push_back({c.id, c.early, c.final, c.rejected});
  if (const auto& e = b.earlier) earlier = {e->tactic, e->us, e->us_low, e->us_high, e->default_us, e->dense_us};
  return {{"m", b.m},
          {"contenders", contenders},
          {"winner", b.found.winner},
          {"pruned", b.found.pruned},
          {"unmeasured", b.found.unmeasured},
          {"undecided", b.found.undecided},
          {"default_ran", b.default_ran},
          {"uncompiled", b.uncompiled},
          {"earlier", earlier}};
}

MeasuredBucket bucket_of(const Json& j) {
  MeasuredBucket b;
  j.at("m").get_to(b.m), j.at("winner").get_to(b.found.winner);
  j.at("pruned").get_to(b.found.pruned), j.at("unmeasured").get_to(b.found.unmeasured);
  j.at("undecided").get_to(b.found.undecided);
  j.at("default_ran").get_to(b.default_ran), j.at("uncompiled").get_to(b.uncompiled);
  for (const Json& c : j.at("contenders")) b.found.contenders.push_back({c.at(0), c.at(1), c.at(2), 0, c.at(3)});
  if (const Json& e = j.at("earlier"); !e.empty())
    b.earlier = TunedBucket{b.m, e.at(0), e.at(1), e.at(2), e.at(3), e.at(4), e.at(5)};
  return b;
}

Json to_json(const TuneProgress& p) { return {p.fraction, p.m, p.best_us, p.default_us, p.stage}; }
TuneProgress progress_of(const Json& j) { return {j.at(0), j.at(1), j.at(2), j.at(3), j.at(4)}; }

Json to_json(const Tuned& t) {
  return {{"record", to_line(t.record)},
          {"failed", t.failed},
          {"complete", t.complete},
          {"notes", t.notes},
          {"half2_us", t.half2_us},
          {"fp32_us", t.fp32_us},
          {"measured", t.measured},
          {"pruned", t.pruned},
          {"copies", t.copies},
          {"cold_bytes", t.cold_bytes},
          {"buckets", lines_of(t.buckets)},
          {"slow", lines_of(t.slow)}};
}

Tuned tuned_of(const Json& j) {
  Tuned t;
  t.record = from_line(j.at("record").get<std::string>());
  j.at("failed").get_to(t.failed), j.at("complete").get_to(t.complete), j.at("notes").get_to(t.notes);
  j.at("half2_us").get_to(t.half2_us), j.at("fp32_us").get_to(t.fp32_us), j.at("measured").get_to(t.measured);
  j.at("pruned").get_to(t.pruned), j.at("copies").get_to(t.copies), j.at("cold_bytes").get_to(t.cold_bytes);
  t.buckets = buckets_of(j.at("buckets")), t.slow = slow_of(j.at("slow"));
  return t;
}

}  // namespace q4::autotune
