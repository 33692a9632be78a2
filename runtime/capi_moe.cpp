// Mixtures of experts through the C ABI.
#include <q4/moe.h>

#include <q4/q4.hpp>

#include "runtime/capi_convert.hpp"
#include "runtime/capi_runtime.hpp"

using namespace q4::capi;

static_assert(Q4_MOE_SWIGLU_CLAMP == int(q4::MoeActivation::kSwigluClamp) &&
              Q4_MOE_GELU_MUL == int(q4::MoeActivation::kGeluMul));

namespace {

q4::ExpertsOptions experts_options(const q4_experts_options* given) {
  return {.gate_up = options_of(given, "options").gate_up != 0};
}

void check_own(const q4_tensors& given) {
  q4::check(given.storage == Q4_STORAGE_OWN, "tensors.storage is {}: experts have own memory, pass 0", given.storage);
  q4::check(given.gate_up == 0, "tensors.gate_up is set: experts have it in q4_experts_options, pass 0");
}

q4::GptqTensors gptq_of(const q4_tensors& given) {
  auto gptq = tensors_of<q4::GptqTensors>(given);
  gptq.g_idx = optional_view(given.g_idx, "tensors.g_idx");
  gptq.zeros = enumerated(given.zeros, q4::ZeroFormat::kV2, "tensors.zeros");
  check_own(given);
  return gptq;
}

q4::AwqTensors awq_of(const q4_tensors& given) {
  q4::check(given.g_idx == nullptr, "tensors.g_idx is set: AWQ matrices have none, pass null");
  q4::check(given.zeros == Q4_ZEROS_AUTO, "tensors.zeros is {}: AWQ has one way to store zeros, pass Q4_ZEROS_AUTO",
            given.zeros);
  check_own(given);
  return tensors_of<q4::AwqTensors>(given);
}

template <class Tensors, class Convert>
std::vector<Tensors> all_of(const q4_tensors* const* tensors, std::size_t count, Convert convert) {
  q4::check(tensors != nullptr || count == 0, "tensors is null, but count is {}", count);
  std::vector<Tensors> all;
  for (std::size_t i = 0; i < count; ++i) {
    q4::check(tensors[i] != nullptr, "tensors[{}] is null: pass the address of one", i);
    all.push_back(convert(options_of(tensors[i], "tensors")));
  }
  return all;
}

template <class Options>
Options plan_options_of(const q4_moe_options& given) {
  Options options;
  options.dtype = enumerated(given.dtype, q4::DType::kU8, "options.dtype");
  options.activation = enumerated(given.activation, q4::MoeActivation::kSwigluClamp, "options.activation");
  if (given.alpha != 0 || given.limit != 0) options.alpha = given.alpha, options.limit = given.limit;
  options.batch_invariant = given.batch_invariant != 0, options.overlap_previous = given.overlap_previous != 0;
  if (given.tactic) options.tactic = given.tactic;
  options.own_workspace = given.caller_workspace == 0;
  return options;
}

q4::MoeOptions moe_options_of(const q4_moe_options* options, const char* name) {
  const q4_moe_options given = options_of(options, name);
  auto with = plan_options_of<q4::MoeOptions>(given);
  if (given.max_rows != 0) with.max_tokens = given.max_rows;
  if (given.topk != 0) with.topk = given.topk;
  q4::check(given.expert_map != nullptr || given.expert_map_count == 0,
            "options.expert_map is null, but options.expert_map_count is {}", given.expert_map_count);
  with.expert_map.assign(given.expert_map, given.expert_map + given.expert_map_count);
  return with;
}

}  // namespace

q4_status q4_experts_from_gptq(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors, size_t count,
                               const q4_experts_options* options, q4_experts* experts) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(experts, "experts");
    const auto all = all_of<q4::GptqTensors>(tensors, count, gptq_of);
    result = owner.experts.add(
        q4::QuantizedExperts::from_gptq(owner.runtime, device_of(device, "device"), all, experts_options(options)));
  });
}

q4_status q4_experts_from_awq(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors, size_t count,
                              const q4_experts_options* options, q4_experts* experts) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(experts, "experts");
    const auto all = all_of<q4::AwqTensors>(tensors, count, awq_of);
    result = owner.experts.add(
        q4::QuantizedExperts::from_awq(owner.runtime, device_of(device, "device"), all, experts_options(options)));
  });
}

q4_status q4_experts_from_stacked(q4_runtime* runtime, q4_device device, int64_t count, const q4_tensors* tensors,
                                  const q4_experts_options* options, q4_experts* experts) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(experts, "experts");
    const auto stacked = gptq_of(options_of(&required(tensors, "tensors"), "tensors"));
    result = owner.experts.add(q4::QuantizedExperts::from_stacked(owner.runtime, device_of(device, "device"), count,
                                                                  stacked, experts_options(options)));
  });
}

q4_status q4_experts_from_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                     const char* const* patterns, size_t pattern_count, int64_t first, int64_t count,
                                     const q4_experts_options* options, q4_experts* experts) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(experts, "experts");
    const auto& opened = find(owner.checkpoints, checkpoint, "checkpoint");
    const q4::ExpertNames names{strings(patterns, pattern_count, "patterns"), first, count};
    result = owner.experts.add(q4::QuantizedExperts::load(owner.runtime, device_of(device, "device"), opened, names,
                                                          experts_options(options)));
  });
}

q4_status q4_experts_get(q4_runtime* runtime, q4_experts experts, q4_experts_info* info) {
  return guard(__func__, [&] {
    const auto& e = find(required(runtime, "runtime").experts, experts, "experts");
    q4_experts_info result{};
    result.experts = e.experts(), result.k = e.k(), result.n = e.n();
    result.group_size = e.group_size(), result.groups = e.groups();
    result.act_order = e.act_order(), result.has_bias = e.has_bias();
    result.gate_up = e.gate_up(), result.awq = e.is_awq();
    result.device = device_of(e.device()), result.bytes = e.bytes();
    give(required(info, "info"), result, "info");
  });
}

q4_status q4_experts_update(q4_runtime* runtime, q4_experts experts, int64_t expert, const q4_tensors* tensors,
                            void* stream) {
  return guard(__func__, [&] {
    q4::QuantizedExperts found = find(required(runtime, "runtime").experts, experts, "experts");
    const q4_tensors given = options_of(&required(tensors, "tensors"), "tensors");
    if (found.is_awq())
      found.update(expert, awq_of(given), {stream});
    else
      found.update(expert, gptq_of(given), {stream});
  });
}

q4_status q4_experts_unpack(q4_runtime* runtime, q4_experts experts, int64_t expert, const q4_unpacked* to) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").experts, experts, "experts");
    const q4_unpacked wanted = options_of(&required(to, "to"), "to");
    give_unpacked(found, found.unpack(expert), wanted);
  });
}

q4_status q4_experts_destroy(q4_runtime* runtime, q4_experts experts) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").experts, experts, "experts"); });
}

q4_status q4_moe_plan_create(q4_runtime* runtime, q4_experts w13, q4_experts w2, const q4_moe_options* options,
                             q4_moe_plan* plan) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(plan, "plan");
    const auto& first = find(owner.experts, w13, "w13");
    const auto& second = find(owner.experts, w2, "w2");
    result = owner.moe_plans.add(q4::MoePlan(owner.runtime, first, second, moe_options_of(options, "options")));
  });
}

q4_status q4_moe_plan_run(q4_runtime* runtime, q4_moe_plan plan, void* stream, const void* x, int64_t x_stride,
                          const int32_t* topk_ids, const float* topk_weights, void* out, int64_t out_stride,
                          int64_t tokens, void* workspace) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").moe_plans, plan, "plan");
    if (workspace)
      found.run({stream}, {x, x_stride}, topk_ids, topk_weights, {out, out_stride}, tokens, workspace);
    else
      found.run({stream}, {x, x_stride}, topk_ids, topk_weights, {out, out_stride}, tokens);
  });
}

q4_status q4_moe_plan_workspace_bytes(q4_runtime* runtime, q4_moe_plan plan, size_t* bytes) {
  return guard(__func__, [&] {
    required(bytes, "bytes") = find(required(runtime, "runtime").moe_plans, plan, "plan").workspace_bytes();
  });
}

q4_status q4_moe_plan_tactic(q4_runtime* runtime, q4_moe_plan plan, int64_t tokens, char* text, size_t size,
                             size_t* length) {
  return guard(__func__, [&] {
    give_text(find(required(runtime, "runtime").moe_plans, plan, "plan").tactic(tokens), text, size, length);
  });
}

q4_status q4_moe_plan_destroy(q4_runtime* runtime, q4_moe_plan plan) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").moe_plans, plan, "plan"); });
}

q4_status q4_grouped_plan_create(q4_runtime* runtime, q4_experts experts, const q4_moe_options* options,
                                 q4_grouped_plan* plan) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(plan, "plan");
    const auto& found = find(owner.experts, experts, "experts");
    const q4_moe_options given = options_of(options, "options");
    q4::check(given.topk == 0 && given.expert_map_count == 0,
              "options.topk is {} and options.expert_map_count {}: a grouped plan has neither, pass 0", given.topk,
              given.expert_map_count);
    auto with = plan_options_of<q4::GroupedOptions>(given);
    if (given.max_rows != 0) with.max_rows = given.max_rows;
    result = owner.grouped_plans.add(q4::GroupedPlan(owner.runtime, found, with));
  });
}

q4_status q4_grouped_plan_run(q4_runtime* runtime, q4_grouped_plan plan, void* stream, const void* x, int64_t x_stride,
                              const int32_t* expert_ids, const int32_t* offsets, void* out, int64_t out_stride,
                              int64_t rows, void* workspace) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").grouped_plans, plan, "plan");
    q4::check(rows == 0 || !expert_ids != !offsets, "expert_ids and offsets are both {}: pass one of them",
              expert_ids ? "given" : "null");
    if (offsets)
      found.run_sorted({stream}, {x, x_stride}, offsets, {out, out_stride}, rows, workspace);
    else
      found.run({stream}, {x, x_stride}, expert_ids, {out, out_stride}, rows, workspace);
  });
}

q4_status q4_grouped_plan_workspace_bytes(q4_runtime* runtime, q4_grouped_plan plan, size_t* bytes) {
  return guard(__func__, [&] {
    required(bytes, "bytes") = find(required(runtime, "runtime").grouped_plans, plan, "plan").workspace_bytes();
  });
}

q4_status q4_grouped_plan_destroy(q4_runtime* runtime, q4_grouped_plan plan) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").grouped_plans, plan, "plan"); });
}

q4_status q4_warmup_experts(q4_runtime* runtime, q4_device device, const q4_warmup_layer* layers, size_t count,
                            const q4_moe_options* plan, const q4_warmup_options* options, q4_warmup_report* report) {
  return guard(__func__, [&] {
    const auto& owner = required(runtime, "runtime").runtime;
    q4::check(layers != nullptr || count == 0, "layers is null, but count is {}", count);
    const q4::MoeOptions with = moe_options_of(plan, "plan");
    std::vector<q4::WarmupExperts> all;
    for (std::size_t i = 0; i < count; ++i) {
      const q4_warmup_layer& l = layers[i];
      all.push_back({l.experts, l.k, l.width, l.n, l.group_size == 0 ? 128 : l.group_size, l.act_order != 0,
                     l.has_bias != 0, l.awq != 0, with});
    }
    const auto result = report_of(owner.warmup_experts(all, warmup_options(device, nullptr, options)));
    if (report) give(*report, result, "report");
  });
}
