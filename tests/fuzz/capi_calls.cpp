// The C ABI called as bytes say: capi_calls.hpp.
#include "capi_calls.hpp"

#include "capi_makers.hpp"

namespace q4::test {
namespace {

class Calls : Makers {
 public:
  using Makers::Makers;
  using Makers::succeeded;
  unsigned run() {
    create_runtime(), make_matrix(), make_plan();  // so that what follows has something to work with
    for (; !bytes_.empty() && made_ < 60; ++made_) one();
    return made_;
  }

 private:
  /// Rows that a plan of `shape` reads or writes; what is in them is no matter.
  void* rows(std::int64_t m, std::int64_t columns, std::int64_t stride, const Shape& shape) {
    if (bytes_.once_in(60)) return nullptr;
    return a_.rows(m, columns, stride, shape.element, bytes_.byte());
  }
  std::int64_t stride(std::int64_t columns) {
    return bytes_.once_in(4) ? bytes_.of<std::int64_t>({columns, columns + 8, columns - 1, bytes_.number()}) : 0;
  }
  /// A workspace that is large enough, or none.
  void* workspace(std::size_t bytes) {
    if (bytes > (1u << 18) || !bytes_.once_in(4)) return nullptr;
    auto* memory = static_cast<unsigned char*>(a_.block(static_cast<std::int64_t>(bytes) + 512, 0));
    std::memset(memory, 0, bytes + 512);
    return memory + (256 - reinterpret_cast<std::uintptr_t>(memory) % 256);
  }
  std::int32_t* numbers(std::int64_t count, int below) {
    if (count < 0 || count > 1 << 16) return nullptr;
    auto* list = static_cast<std::int32_t*>(a_.block(count * 4 + 4, 0));
    for (std::int64_t i = 0; i < count; ++i)
      list[i] =
          i < 20 ? static_cast<std::int32_t>(bytes_.near(bytes_.byte() % static_cast<unsigned>(below + 1) - 1)) : 0;
    return list;
  }

  void run_plan() {
    const Handle plan = handle(plan_);
    const Shape s = shape_of(plan);
    q4_runtime* const on = runtime();
    const std::int64_t m = bytes_.near(bytes_.of<std::int64_t>({1, 0, 2, 4, 17, 70})), x_stride = stride(s.k),
                       out_stride = stride(s.n);
    const void* x = rows(m, s.k, x_stride, s);
    void* out = rows(m, s.n, out_stride, s);
    std::size_t bytes = 0;
    check("q4_plan_workspace_bytes", q4_plan_workspace_bytes(on, plan, bytes_.once_in(60) ? nullptr : &bytes));
    void* const scratch = workspace(bytes);
    q4_run_inputs i{};
    i.size = a_.size(sizeof i), i.workspace = scratch;
    if (s.residual != bytes_.once_in(8))
      i.residual_stride = stride(s.n), i.residual = rows(m, s.n, i.residual_stride, s);
    if (i.residual && bytes_.once_in(4)) i.residual = out, i.residual_stride = out_stride;
    if (s.lora != bytes_.once_in(8)) i.adapters = handle(lora_), i.adapter_of_row = numbers(m, 9);
    switch (bytes_.byte() % 3) {
      case 0:
        check("q4_plan_run", q4_plan_run(on, plan, stream(), x, x_stride, out, out_stride, m));
        return;
      case 1:
        check("q4_plan_run_workspace",
              q4_plan_run_workspace(on, plan, stream(), x, x_stride, out, out_stride, m, scratch));
        return;
      default:
        check("q4_plan_run_inputs",
              q4_plan_run_inputs(on, plan, stream(), x, x_stride, out, out_stride, m, a_.options(i)));
    }
  }
  void run_experts(bool grouped) {
    const Handle plan = handle(grouped ? grouped_ : moe_);
    const Shape s = shape_of(plan);
    q4_runtime* const on = runtime();
    const std::int64_t m = bytes_.near(bytes_.of<std::int64_t>({1, 0, 2, 4, 17, 70})), x_stride = stride(s.k),
                       out_stride = stride(s.n);
    const void* x = rows(m, s.k, x_stride, s);
    void* out = rows(m, s.n, out_stride, s);
    std::size_t bytes = 0;
    const char* name = grouped ? "q4_grouped_plan_workspace_bytes" : "q4_moe_plan_workspace_bytes";
    check(name, (grouped ? q4_grouped_plan_workspace_bytes : q4_moe_plan_workspace_bytes)(
                    on, plan, bytes_.once_in(60) ? nullptr : &bytes));
    void* const scratch = workspace(bytes);
    const std::int32_t* ids = m < 0 || m > 300 ? nullptr : numbers(m * std::clamp<std::int64_t>(s.topk, 1, 64), 4);
    if (!grouped) {
      const void* weights = ids ? a_.block(m * std::clamp<std::int64_t>(s.topk, 1, 64) * 4, 3) : nullptr;
      check("q4_moe_plan_run", q4_moe_plan_run(on, plan, stream(), x, x_stride, ids, static_cast<const float*>(weights),
                                               out, out_stride, m, scratch));
      return;
    }
    std::int32_t* offsets = bytes_.once_in(2) ? numbers(s.experts + 1, 70) : nullptr;
    if (offsets) std::sort(offsets, offsets + s.experts + 1);
    if (offsets && !bytes_.once_in(16)) ids = nullptr;
    check("q4_grouped_plan_run",
          q4_grouped_plan_run(on, plan, stream(), x, x_stride, ids, offsets, out, out_stride, m, scratch));
  }
  void remap() {
    const std::int64_t m = bytes_.near(bytes_.of<std::int64_t>({1, 0, 5})), from = bytes_.near(16),
                       to = bytes_.near(24);
    const std::int64_t x_stride = stride(from), new_stride = stride(to);
    const Shape halves{.element = 2};
    check("q4_column_remap", q4_column_remap(runtime(), a_.device(), stream(), rows(m, from, x_stride, halves),
                                             x_stride, from, rows(m, to, new_stride, halves), new_stride,
                                             bytes_.once_in(40) ? nullptr : numbers(to, 16), to, m));
  }
  void make_lora() {
    const Handle from = handle(matrix_);
    q4_lora_options o{};
    o.size = a_.size(sizeof o), o.adapters = bytes_.once_in(4) ? bytes_.number() : 0, o.max_rank = bytes_.near(16),
    o.type = bytes_.choice(3);
    if (o.adapters > 100)
      o.adapters = bytes_.once_in(4) ? std::numeric_limits<std::int64_t>::max() : 3;  // places are memory
    if (o.max_rank == 1 << 20 || o.max_rank == std::int64_t{1} << 32) o.max_rank = 64;
    q4_runtime* const on = runtime();
    Handle lora = kUntouched;
    if (!made("q4_lora_create", q4_lora_create(on, from, a_.options(o), result(lora)), lora)) return;
    lora_ = lora;
    q4_matrix_info info{};
    info.size = sizeof info;
    if (q4_matrix_get(on, from, &info) == Q4_OK) shapes_[lora] = {info.k, info.n};
  }
  void set_lora() {
    const Handle lora = handle(lora_);
    const Shape s = shape_of(lora);
    const std::int64_t rank = bytes_.near(8);
    const q4_tensor a = a_.tensor(rank, s.k, a_.scale_type()), b = a_.tensor(s.n, rank, a_.scale_type());
    check("q4_lora_set", q4_lora_set(runtime(), lora, bytes_.near(bytes_.byte() % 4), bytes_.once_in(40) ? nullptr : &a,
                                     bytes_.once_in(40) ? nullptr : &b, static_cast<float>(bytes_.byte())));
  }
  void update() {
    const bool awq = bytes_.once_in(4), experts = bytes_.once_in(3);
    const q4_tensors* t = a_.options(a_.tensors(awq, a_.k(), a_.n()));
    if (experts)
      check("q4_experts_update", q4_experts_update(runtime(), handle(experts_[0]), bytes_.near(0), t, stream()));
    else
      check("q4_matrix_update", q4_matrix_update(runtime(), handle(matrix_), t, stream()));
  }
  void unpack() {
    const bool experts = bytes_.once_in(3);
    const Handle from = handle(experts ? experts_[0] : matrix_);
    q4_runtime* const on = runtime();
    std::int64_t k = 8, n = 8, groups = 1;
    if (experts) {
      q4_experts_info info{};
      info.size = sizeof info;
      if (check("q4_experts_get", q4_experts_get(on, from, &info))) k = info.k, n = info.n, groups = info.groups;
    } else {
      q4_matrix_info info{};
      info.size = sizeof info;
      if (check("q4_matrix_get", q4_matrix_get(on, from, &info))) k = info.k, n = info.n, groups = info.groups;
    }
    q4_unpacked u{};
    u.size = a_.size(sizeof u);
    const auto want = [&](auto*& place, std::int64_t bytes) {
      if (!bytes_.once_in(3)) place = static_cast<std::remove_reference_t<decltype(place)>>(a_.block(bytes, 0));
    };
    want(u.qweight, k * n / 2), want(u.qzeros, groups * n / 2), want(u.scales, groups * n * 2), want(u.g_idx, k * 4),
        want(u.bias, n * 4);
    if (experts)
      check("q4_experts_unpack", q4_experts_unpack(on, from, bytes_.near(0), a_.options(u)));
    else
      check("q4_matrix_unpack", q4_matrix_unpack(on, from, a_.options(u)));
  }
  void checkpoints() {
    q4_runtime* const on = runtime();
    Handle opened = kUntouched;
    if (made("q4_checkpoint_open",
             q4_checkpoint_open(on, a_.text({file_.c_str(), folder_.c_str(), nowhere_.c_str()}), result(opened)),
             opened))
      checkpoint_ = opened;
    const Handle c = handle(checkpoint_);
    check("q4_checkpoint_count", q4_checkpoint_count(on, c, a_.size_result()));
    const auto index = static_cast<std::size_t>(bytes_.near(0));
    check("q4_checkpoint_entry", q4_checkpoint_entry(on, c, index, a_.result<q4_checkpoint_matrix>()));
    check("q4_checkpoint_get", q4_checkpoint_get(on, c, a_.result<q4_checkpoint_info>()));
    text("q4_checkpoint_name",
         [&](char* t, size_t size, size_t* length) { return q4_checkpoint_name(on, c, index, t, size, length); });
    text("q4_checkpoint_reason",
         [&](char* t, size_t size, size_t* length) { return q4_checkpoint_reason(on, c, index, t, size, length); });
    Handle m = kUntouched;
    const char* names[] = {a_.text({"m", "m", "none"}), "m"};
    if (bytes_.once_in(3)) {
      q4_slice s{};
      s.size = a_.size(sizeof s), s.along = bytes_.choice(3), s.rank = bytes_.choice(2), s.world = bytes_.choice(3),
      s.pad = 1;
      if (made("q4_matrix_from_checkpoint_slice",
               q4_matrix_from_checkpoint_slice(on, a_.device(), c, bytes_.once_in(40) ? nullptr : names,
                                               bytes_.byte() % 3, bytes_.choice(3), a_.options(s), result(m)),
               m))
        matrix_ = m;
    } else if (made("q4_matrix_from_checkpoint",
                    q4_matrix_from_checkpoint(on, a_.device(), c, names[0], bytes_.choice(3), result(m)), m)) {
      matrix_ = m;
    }
    const char* patterns[] = {a_.text({"m{}", "{}", "m", "{}{}"}), "m{}"};
    if (made("q4_experts_from_checkpoint",
             q4_experts_from_checkpoint(on, a_.device(), c, bytes_.once_in(40) ? nullptr : patterns, bytes_.byte() % 3,
                                        bytes_.near(0), bytes_.near(-1), nullptr, result(m)),
             m))
      experts_[0] = m;
  }
  template <class Call>
  void text(const char* name, const Call& call) {
    const auto size = static_cast<std::size_t>(bytes_.of<std::int64_t>({0, 1, 4, 255}));
    auto* into = bytes_.once_in(8) ? nullptr : static_cast<char*>(a_.block(static_cast<std::int64_t>(size), 5));
    if (check(name, call(into, size, a_.size_result())) && into && size && std::memchr(into, 0, size) == nullptr)
      finding(name, "a text without an end");
  }
  void ask() {
    q4_runtime* const on = runtime();
    check("q4_device_count", q4_device_count(on, a_.size_result()));
    check("q4_device_get", q4_device_get(on, static_cast<std::size_t>(bytes_.near(0)), a_.result<q4_device_info>()));
    q4_device device{};
    check("q4_best_device", q4_best_device(on, bytes_.once_in(40) ? nullptr : &device));
    check("q4_device_parse", q4_device_parse(a_.text({"cpu", "cuda:0", "hip:1", "cuda:99999999999", "cuda:-1", ""}),
                                             bytes_.once_in(40) ? nullptr : &device));
    text("q4_backend_reason", [&](char* t, size_t size, size_t* length) {
      return q4_backend_reason(on, bytes_.choice(3), t, size, length);
    });
    check("q4_cache_counters", q4_cache_counters(on, a_.result<q4_cache_counts>()));
    check("q4_memory_get", q4_memory_get(on, a_.device(), a_.result<q4_memory_use>()));
    check("q4_matrix_get", q4_matrix_get(on, handle(matrix_), a_.result<q4_matrix_info>()));
    check("q4_experts_get", q4_experts_get(on, handle(experts_[0]), a_.result<q4_experts_info>()));
    const std::int64_t m = bytes_.near(1);
    text("q4_moe_plan_tactic", [&](char* t, size_t size, size_t* length) {
      return q4_moe_plan_tactic(on, handle(moe_), m, t, size, length);
    });
    text("q4_plan_tactic",
         [&](char* t, size_t size, size_t* length) { return q4_plan_tactic(on, handle(plan_), m, t, size, length); });
    if (q4_plan_tactic(on, handle(plan_), 1, tactic_, sizeof tactic_, nullptr) != Q4_OK) tactic_[0] = 0;
    q4_status_name(static_cast<q4_status>(bytes_.number()));
  }
  void warm_up() {
    q4_runtime* const on = runtime();
    q4_warmup_shape shapes[2] = {};
    for (auto& s : shapes)
      s.k = bytes_.near(64), s.n = bytes_.near(64), s.group_size = bytes_.near(32), s.act_order = bytes_.once_in(4),
      s.awq = bytes_.once_in(4), s.in_place = bytes_.once_in(4);
    const std::size_t count = bytes_.byte() % 3;
    const auto* of = bytes_.once_in(40) ? nullptr : shapes;
    q4_warmup_options o{};
    o.size = a_.size(sizeof o), o.threads = static_cast<std::int32_t>(bytes_.near(1)),
    o.deadline_s = bytes_.once_in(8) ? -1 : 0;
    o.progress = [](void*, size_t, size_t, const q4_cache_event*) {};
    // `user` is null where the size cuts it off.
    o.cancel = [](void* user) -> std::int32_t { return user && static_cast<Calls*>(user)->bytes_.once_in(4); };
    o.user = this;
    const q4_plan_options* plan = a_.options(plan_options());
    const q4_warmup_options* options = a_.options(o);
    check("q4_warmup_shapes",
          q4_warmup_shapes(on, a_.device(), of, count, plan, options, a_.result<q4_warmup_report>()));
    text("q4_numerics_id", [&](char* t, size_t size, size_t* length) {
      return q4_numerics_id(on, a_.device(), of, count, plan, t, size, length);
    });
    check("q4_warmup_checkpoint",
          q4_warmup_checkpoint(on, a_.device(), handle(checkpoint_), plan, options, a_.result<q4_warmup_report>()));
    q4_warmup_layer layer{};
    layer.experts = bytes_.near(4), layer.k = bytes_.near(64), layer.width = bytes_.near(32), layer.n = bytes_.near(0),
    layer.group_size = bytes_.near(32);
    check("q4_warmup_experts",
          q4_warmup_experts(on, a_.device(), bytes_.once_in(40) ? nullptr : &layer, 1, a_.options(moe_options(false)),
                            options, a_.result<q4_warmup_report>()));
  }
  void destroy() {
    q4_runtime* const on = runtime();
    switch (bytes_.byte() % 9) {
      case 0:
        check("q4_matrix_destroy", q4_matrix_destroy(on, handle(matrix_)));
        return;
      case 1:
        check("q4_plan_destroy", q4_plan_destroy(on, handle(plan_)));
        return;
      case 2:
        check("q4_lora_destroy", q4_lora_destroy(on, handle(lora_)));
        return;
      case 3:
        check("q4_checkpoint_destroy", q4_checkpoint_destroy(on, handle(checkpoint_)));
        return;
      case 4:
        check("q4_experts_destroy", q4_experts_destroy(on, handle(experts_[1])));
        return;
      case 5:
        check("q4_moe_plan_destroy", q4_moe_plan_destroy(on, handle(moe_)));
        return;
      case 6:
        check("q4_grouped_plan_destroy", q4_grouped_plan_destroy(on, handle(grouped_)));
        return;
      case 7:
        check("q4_lora_remove", q4_lora_remove(on, handle(lora_), bytes_.near(0)));
        return;
      default:
        check("q4_matrix_restore", q4_matrix_restore(on, handle(matrix_)));
    }
  }
  void end_runtime() {
    if (runtimes_.size() < 2) return create_runtime();
    const std::size_t at = bytes_.byte() % runtimes_.size();
    q4_runtime_destroy(runtimes_[at]);
    runtimes_.erase(runtimes_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  void one() {
    switch (bytes_.byte() % 20) {
      case 0:
        return make_matrix();
      case 1:
        return fuse();
      case 2:
      case 3:
        return make_plan();
      case 4:
      case 5:
      case 6:
        return run_plan();
      case 7:
        return make_experts();
      case 8:
        return make_moe_plan(false);
      case 9:
        return make_moe_plan(true);
      case 10:
        return run_experts(false);
      case 11:
        return run_experts(true);
      case 12:
        return bytes_.once_in(2) ? make_lora() : set_lora();
      case 13:
        return update();
      case 14:
        return unpack();
      case 15:
        return checkpoints();
      case 16:
        return bytes_.once_in(2) ? ask() : remap();
      case 17:
        return warm_up();
      case 18:
        return destroy();
      default:
        if (bytes_.once_in(4)) return end_runtime();
        if (bytes_.once_in(2))
          check("q4_runtime_trim", q4_runtime_trim(runtime()));
        else
          check("q4_runtime_seal", q4_runtime_seal(runtime(), bytes_.choice(3)));
    }
  }
};

}  // namespace

unsigned call_c_abi(std::string_view bytes, const std::string& folder, unsigned* succeeded) {
  Calls calls(bytes, folder);
  const unsigned made = calls.run();
  if (succeeded) *succeeded += calls.succeeded();
  return made;
}

}  // namespace q4::test
