// The C ABI: runs with what an epilogue reads, and tables of adapters.
#include <q4/epilogue.h>

#include "runtime/capi_convert.hpp"
#include "runtime/capi_runtime.hpp"

using namespace q4::capi;

static_assert(Q4_SILU_MUL == int(q4::Activation::kSiluMul) && Q4_RELU2_MUL == int(q4::Activation::kRelu2Mul));

q4_status q4_plan_run_inputs(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride,
                             void* out, int64_t out_stride, int64_t m, const q4_run_inputs* inputs) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    const q4_run_inputs given = options_of(inputs, "inputs");
    q4::RunInputs read{.residual = {given.residual, given.residual_stride}, .workspace = given.workspace};
    if (given.adapters) read.adapters = &find(owner.loras, given.adapters, "inputs.adapters");
    read.adapter_of_row = given.adapter_of_row, read.norm_weight = given.norm_weight;
    find(owner.plans, plan, "plan").run({stream}, {x, x_stride}, {out, out_stride}, m, read);
  });
}

q4_status q4_lora_create(q4_runtime* runtime, q4_matrix matrix, const q4_lora_options* options, q4_lora* lora) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(lora, "lora");
    const auto& found = find(owner.matrices, matrix, "matrix");
    const q4_lora_options given = options_of(options, "options");
    q4::LoraOptions wanted;
    if (given.adapters) wanted.adapters = given.adapters;
    if (given.max_rank) wanted.max_rank = given.max_rank;
    wanted.type = enumerated(given.type, q4::DType::kU8, "options.type");
    result = owner.loras.add(q4::LoraAdapters(owner.runtime, found, wanted));
  });
}

q4_status q4_lora_set(q4_runtime* runtime, q4_lora lora, int64_t index, const q4_tensor* a, const q4_tensor* b,
                      float scale) {
  return guard(__func__, [&] {
    q4::LoraAdapters found = find(required(runtime, "runtime").loras, lora, "lora");
    found.set(index, {view_of(required(a, "a"), "a"), view_of(required(b, "b"), "b"), scale});
  });
}

q4_status q4_lora_remove(q4_runtime* runtime, q4_lora lora, int64_t index) {
  return guard(__func__, [&] {
    q4::LoraAdapters found = find(required(runtime, "runtime").loras, lora, "lora");
    found.remove(index);
  });
}

q4_status q4_lora_destroy(q4_runtime* runtime, q4_lora lora) {
  return guard(__func__, [&] { destroy(required(runtime, "runtime").loras, lora, "lora"); });
}
