// The C ABI: every call runs inside one guard, which turns exceptions into a status and a text.
#include <q4/q4.h>

#include <algorithm>
#include <q4/q4.hpp>

#include "runtime/capi_convert.hpp"
#include "runtime/capi_runtime.hpp"

using namespace q4::capi;

// ---- library --------------------------------------------------------------------------------------------------------
const char* q4_version(void) { return q4::version(); }

const char* q4_status_name(q4_status status) {
  if (status == Q4_OK) return "ok";
  if (status < Q4_OK || status > Q4_INTERNAL) return "unknown";
  return q4::to_string(static_cast<q4::ErrorCode>(status));
}

const char* q4_last_error(void) { return last_error().c_str(); }

// ---- runtime --------------------------------------------------------------------------------------------------------
q4_status q4_runtime_create(const q4_runtime_options* options, q4_runtime** runtime) {
  return guard(__func__, [&] {
    auto& result = required(runtime, "runtime");
    result = new q4_runtime(runtime_options(options_of(options, "options")));
  });
}

void q4_runtime_destroy(q4_runtime* runtime) { delete runtime; }

q4_status q4_device_count(q4_runtime* runtime, size_t* count) {
  return guard(__func__, [&] { required(count, "count") = required(runtime, "runtime").runtime.devices().size(); });
}

q4_status q4_device_get(q4_runtime* runtime, size_t index, q4_device_info* info) {
  return guard(__func__, [&] {
    const auto devices = required(runtime, "runtime").runtime.devices();
    q4::check(index < devices.size(), "index is {}: there are {} devices", index, devices.size());
    give(required(info, "info"), info_of(devices[index]), "info");
  });
}

q4_status q4_best_device(q4_runtime* runtime, q4_device* device) {
  return guard(__func__,
               [&] { required(device, "device") = device_of(required(runtime, "runtime").runtime.best_device()); });
}

q4_status q4_device_parse(const char* text, q4_device* device) {
  return guard(__func__, [&] {
    required(text, "text");
    required(device, "device") = device_of(q4::Device::parse(text));
  });
}

q4_status q4_backend_reason(q4_runtime* runtime, q4_backend backend, char* text, size_t size, size_t* length) {
  return guard(__func__, [&] {
    const auto kind = enumerated(backend, q4::BackendKind::kHip, "backend");
    std::string reason = "this build has no such backend";
    for (const auto& status : required(runtime, "runtime").runtime.backends())
      if (status.kind == kind) reason = status.reason;
    give_text(reason, text, size, length);
  });
}

q4_status q4_cache_counters(q4_runtime* runtime, q4_cache_counts* counts) {
  return guard(__func__, [&] {
    give(required(counts, "counts"), counts_of(required(runtime, "runtime").runtime.cache_counters()), "counts");
  });
}

q4_status q4_memory_get(q4_runtime* runtime, q4_device device, q4_memory_use* use) {
  return guard(__func__, [&] {
    const auto wanted = device_of(device, "device");
    q4_memory_use result{};
    for (const auto& held : required(runtime, "runtime").runtime.memory())
      if (held.device == wanted) result = {sizeof result, held.weights, held.workspace, held.code, held.allocations};
    give(required(use, "use"), result, "use");
  });
}

q4_status q4_runtime_trim(q4_runtime* runtime) {
  return guard(__func__, [&] { required(runtime, "runtime").runtime.trim(); });
}

q4_status q4_runtime_seal(q4_runtime* runtime, q4_sealing mode) {
  return guard(__func__,
               [&] { required(runtime, "runtime").runtime.seal(enumerated(mode, q4::Sealing::kError, "mode")); });
}

// ---- matrices -------------------------------------------------------------------------------------------------------
q4_status q4_matrix_from_gptq(q4_runtime* runtime, q4_device device, const q4_tensors* tensors, q4_matrix* matrix) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(matrix, "matrix");
    const q4_tensors given = options_of(&required(tensors, "tensors"), "tensors");
    auto gptq = tensors_of<q4::GptqTensors>(given);
    gptq.g_idx = optional_view(given.g_idx, "tensors.g_idx");
    gptq.zeros = enumerated(given.zeros, q4::ZeroFormat::kV2, "tensors.zeros");
    result = owner.matrices.add(
        q4::QuantizedMatrix::from_gptq(owner.runtime, device_of(device, "device"), gptq, matrix_options(given)));
  });
}

q4_status q4_matrix_from_awq(q4_runtime* runtime, q4_device device, const q4_tensors* tensors, q4_matrix* matrix) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(matrix, "matrix");
    const q4_tensors given = options_of(&required(tensors, "tensors"), "tensors");
    q4::check(given.g_idx == nullptr, "tensors.g_idx is set: AWQ matrices have none, pass null");
    q4::check(given.zeros == Q4_ZEROS_AUTO, "tensors.zeros is {}: AWQ has one way to store zeros, pass Q4_ZEROS_AUTO",
              given.zeros);
    const auto awq = tensors_of<q4::AwqTensors>(given);
    result = owner.matrices.add(
        q4::QuantizedMatrix::from_awq(owner.runtime, device_of(device, "device"), awq, matrix_options(given)));
  });
}

q4_status q4_checkpoint_open(q4_runtime* runtime, const char* path, q4_checkpoint* checkpoint) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(checkpoint, "checkpoint");
    required(path, "path");
    result = owner.checkpoints.add(q4::Checkpoint::open(path));
  });
}

q4_status q4_checkpoint_count(q4_runtime* runtime, q4_checkpoint checkpoint, size_t* count) {
  return guard(__func__, [&] {
    const auto& opened = find(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint");
    required(count, "count") = opened.matrices().size();
  });
}

namespace {

const q4::MatrixEntry& entry_at(const q4::Checkpoint& checkpoint, std::size_t index) {
  const auto& matrices = checkpoint.matrices();
  q4::check(index < matrices.size(), "index is {}: the checkpoint has {} quantized matrices", index, matrices.size());
  return matrices[index];
}

}  // namespace

q4_status q4_checkpoint_name(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index, char* text, size_t size,
                             size_t* length) {
  return guard(__func__, [&] {
    const auto& opened = find(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint");
    give_text(entry_at(opened, index).name, text, size, length);
  });
}

q4_status q4_checkpoint_get(q4_runtime* runtime, q4_checkpoint checkpoint, q4_checkpoint_info* info) {
  return guard(__func__, [&] {
    const auto& opened = find(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint");
    give(required(info, "info"), info_of(opened), "info");
  });
}

q4_status q4_checkpoint_entry(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index,
                              q4_checkpoint_matrix* entry) {
  return guard(__func__, [&] {
    const auto& opened = find(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint");
    give(required(entry, "entry"), entry_of(entry_at(opened, index)), "entry");
  });
}

q4_status q4_checkpoint_reason(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index, char* text, size_t size,
                               size_t* length) {
  return guard(__func__, [&] {
    const auto& opened = find(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint");
    give_text(entry_at(opened, index).unsupported, text, size, length);
  });
}

q4_status q4_checkpoint_destroy(q4_runtime* runtime, q4_checkpoint checkpoint) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").checkpoints, checkpoint, "checkpoint"); });
}

q4_status q4_matrix_from_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint, const char* name,
                                    q4_zeros zeros, q4_matrix* matrix) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(matrix, "matrix");
    required(name, "name");
    const auto& opened = find(owner.checkpoints, checkpoint, "checkpoint");
    const auto format = enumerated(zeros, q4::ZeroFormat::kV2, "zeros");
    const auto override_zeros = format == q4::ZeroFormat::kAuto ? std::nullopt : std::optional(format);
    result = owner.matrices.add(opened.load(owner.runtime, device_of(device, "device"), name, override_zeros));
  });
}

q4_status q4_matrix_get(q4_runtime* runtime, q4_matrix matrix, q4_matrix_info* info) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").matrices, matrix, "matrix");
    give(required(info, "info"), info_of(found), "info");
  });
}

q4_status q4_matrix_update(q4_runtime* runtime, q4_matrix matrix, const q4_tensors* tensors, void* stream) {
  return guard(__func__, [&] {
    q4::QuantizedMatrix found = find(required(runtime, "runtime").matrices, matrix, "matrix");
    const q4_tensors given = options_of(&required(tensors, "tensors"), "tensors");
    q4::check(given.gate_up == 0, "tensors.gate_up is set: the matrix keeps what it was loaded with, pass 0");
    if (found.is_awq()) return found.update(tensors_of<q4::AwqTensors>(given), {stream});
    auto gptq = tensors_of<q4::GptqTensors>(given);
    gptq.g_idx = optional_view(given.g_idx, "tensors.g_idx");
    gptq.zeros = enumerated(given.zeros, q4::ZeroFormat::kV2, "tensors.zeros");
    found.update(gptq, {stream});
  });
}

q4_status q4_matrix_unpack(q4_runtime* runtime, q4_matrix matrix, const q4_unpacked* to) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").matrices, matrix, "matrix");
    const q4_unpacked wanted = options_of(&required(to, "to"), "to");
    give_unpacked(found, found.unpack(), wanted);
  });
}

q4_status q4_matrix_x_order(q4_runtime* runtime, q4_matrix matrix, int32_t* order) {
  return guard(__func__, [&] {
    const auto all = q4::x_order(find(required(runtime, "runtime").matrices, matrix, "matrix"));
    std::copy(all.begin(), all.end(), &required(order, "order"));
  });
}

q4_status q4_matrix_restore(q4_runtime* runtime, q4_matrix matrix) {
  return guard(__func__, [&] {
    q4::QuantizedMatrix found = find(required(runtime, "runtime").matrices, matrix, "matrix");
    found.restore();
  });
}

q4_status q4_matrix_destroy(q4_runtime* runtime, q4_matrix matrix) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").matrices, matrix, "matrix"); });
}

// ---- plans ----------------------------------------------------------------------------------------------------------
q4_status q4_plan_create(q4_runtime* runtime, q4_matrix matrix, const q4_plan_options* options, q4_plan* plan) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(plan, "plan");
    const auto& found = find(owner.matrices, matrix, "matrix");
    result = owner.plans.add(q4::MatmulPlan(owner.runtime, found, plan_options(options_of(options, "options"))));
  });
}

q4_status q4_plan_run(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride, void* out,
                      int64_t out_stride, int64_t m) {
  return guard(__func__, [&] {
    find(required(runtime, "runtime").plans, plan, "plan").run({stream}, {x, x_stride}, {out, out_stride}, m);
  });
}

q4_status q4_plan_run_workspace(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride,
                                void* out, int64_t out_stride, int64_t m, void* workspace) {
  return guard(__func__, [&] {
    const auto& found = find(required(runtime, "runtime").plans, plan, "plan");
    found.run({stream}, {x, x_stride}, {out, out_stride}, m, workspace);
  });
}

q4_status q4_plan_workspace_bytes(q4_runtime* runtime, q4_plan plan, size_t* bytes) {
  return guard(__func__, [&] {
    required(bytes, "bytes") = find(required(runtime, "runtime").plans, plan, "plan").workspace_bytes();
  });
}

q4_status q4_plan_tactic(q4_runtime* runtime, q4_plan plan, int64_t m, char* text, size_t size, size_t* length) {
  return guard(__func__, [&] {
    give_text(find(required(runtime, "runtime").plans, plan, "plan").tactic(m), text, size, length);
  });
}

q4_status q4_plan_destroy(q4_runtime* runtime, q4_plan plan) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").plans, plan, "plan"); });
}

q4_status q4_column_remap(q4_runtime* runtime, q4_device device, void* stream, const void* x, int64_t x_stride,
                          int64_t x_cols, void* x_new, int64_t x_new_stride, const int32_t* x_map, int64_t cols,
                          int64_t rows) {
  return guard(__func__, [&] {
    q4::column_remap(required(runtime, "runtime").runtime, device_of(device, "device"), {stream}, {x, x_stride}, x_cols,
                     {x_new, x_new_stride}, x_map, cols, rows);
  });
}

// ---- warm-up --------------------------------------------------------------------------------------------------------
namespace {

std::vector<q4::WarmupShape> shapes_of(const q4_warmup_shape* shapes, std::size_t count) {
  q4::check(shapes != nullptr || count == 0, "shapes is null, but count is {}", count);
  std::vector<q4::WarmupShape> all;
  for (std::size_t i = 0; i < count; ++i) {
    const q4_warmup_shape& s = shapes[i];
    all.push_back({s.k, s.n, s.group_size == 0 ? 128 : s.group_size, s.act_order != 0, s.has_bias != 0, s.awq != 0,
                   s.in_place != 0});
  }
  return all;
}

}  // namespace

q4_status q4_warmup_shapes(q4_runtime* runtime, q4_device device, const q4_warmup_shape* shapes, size_t count,
                           const q4_plan_options* plan, const q4_warmup_options* options, q4_warmup_report* report) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime").runtime;
    const auto all = shapes_of(shapes, count);
    const auto result = report_of(owner.warmup(all, warmup_options(device, plan, options)));
    if (report) give(*report, result, "report");
  });
}

q4_status q4_numerics_id(q4_runtime* runtime, q4_device device, const q4_warmup_shape* shapes, size_t count,
                         const q4_plan_options* plan, char* text, size_t size, size_t* length) {
  return guard(__func__, [&] {
    const auto& owner = required(runtime, "runtime").runtime;
    const auto options = plan_options(options_of(plan, "plan"));
    give_text(owner.numerics_id(device_of(device, "device"), shapes_of(shapes, count), options), text, size, length);
  });
}

q4_status q4_warmup_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                               const q4_plan_options* plan, const q4_warmup_options* options,
                               q4_warmup_report* report) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    const auto& opened = find(owner.checkpoints, checkpoint, "checkpoint");
    const auto result = report_of(owner.runtime.warmup(opened, warmup_options(device, plan, options)));
    if (report) give(*report, result, "report");
  });
}
