// The calls of the C ABI that make something, with arguments drawn from bytes, and what was made.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>

#include "capi_arguments.hpp"

namespace q4::test {

/// What a plan reads and writes, as its maker knows it.
struct Shape {
  std::int64_t k = 8, n = 8, experts = 1, topk = 1;
  int element = 4;
  bool lora = false, residual = false;
};

class Makers {
 public:
  Makers(std::string_view bytes, const std::string& folder) : bytes_(bytes), folder_(folder) {}
  ~Makers() {
    for (q4_runtime* runtime : runtimes_) q4_runtime_destroy(runtime);
  }
  unsigned succeeded() const { return succeeded_; }

 protected:
  using Handle = std::uint64_t;
  static constexpr Handle kUntouched = 0x5a5a5a5a5a5a5a5a;

  [[noreturn]] static void finding(const char* call, const char* what) {
    std::fprintf(stderr, "C ABI: %s: %s (%s)\n", call, what, q4_last_error());
    std::abort();
  }
  bool check(const char* call, q4_status status) {
    if (status < Q4_OK || status > Q4_CORRUPT + 1) finding(call, status == Q4_INTERNAL ? "a defect" : "no status");
    if (status != Q4_OK && std::strstr(q4_last_error(), call) == nullptr)
      finding(call, "the error does not name the call");
    succeeded_ += status == Q4_OK;
    return status == Q4_OK;
  }
  /// After a call that makes a handle.
  bool made(const char* call, q4_status status, const Handle& handle) {
    if (!check(call, status)) {
      if (handle != kUntouched) finding(call, "it failed and wrote a handle");
      return false;
    }
    if (handle == 0 || handle == kUntouched) finding(call, "it succeeded without a handle");
    handles_.push_back(handle);
    return true;
  }

  q4_runtime* runtime() { return bytes_.once_in(60) ? nullptr : runtimes_[bytes_.byte() % runtimes_.size()]; }
  /// The newest, now and then any that there was.
  Handle handle() {
    if (handles_.empty() || bytes_.once_in(24)) return static_cast<Handle>(bytes_.number());
    return handles_[handles_.size() - 1 - bytes_.byte() % handles_.size()];
  }
  /// Of this kind: the last one that was made, or any handle.
  Handle handle(Handle last) { return last && !bytes_.once_in(6) ? last : handle(); }
  Handle* result(Handle& place) {
    place = kUntouched;
    return &place;
  }
  void* stream() { return bytes_.once_in(8) ? this : nullptr; }  // the CPU ignores it
  Shape shape_of(Handle plan) const {
    const auto found = shapes_.find(plan);
    return found == shapes_.end() ? Shape{} : found->second;
  }

  // ---- what makes something ------------------------------------------------------------------------------------------
  void create_runtime() {
    q4_runtime_options o{};
    o.size = a_.size(sizeof o);
    o.cache_dir = folder_.c_str(), o.cache_mode = bytes_.choice(4);
    o.cpu_threads = static_cast<std::int32_t>(bytes_.near(1 + bytes_.byte() % 2));
    if (o.cpu_threads > 64) o.cpu_threads = 2;  // as many are started
    o.log = [](void*, q4_log_level, const char*) {};
    if (bytes_.once_in(8)) o.cpu_isa = a_.text({"portable", "sse4", "avx2", "neon", ""});
    if (bytes_.once_in(8))
      o.parallel_for = [](void*, std::int32_t tasks, void (*task)(void*, std::int32_t), void* state) {
        for (std::int32_t i = tasks; i-- > 0;) task(state, i);
      };
    if (bytes_.once_in(6)) o.allocate = allocate, o.allocator_user = this;
    if (o.allocate && !bytes_.once_in(8)) o.release = release;
    const char* const files[] = {nowhere_.c_str(), folder_.c_str(), nullptr};
    if (bytes_.once_in(16)) o.tuning_files = files, o.tuning_file_count = bytes_.byte() % 4 % 3 + 1;
    if (bytes_.once_in(16)) o.packs = files, o.pack_count = bytes_.byte() % 2 + 1;
    if (bytes_.once_in(16)) o.cache_folders = bytes_.once_in(4) ? nullptr : files, o.cache_folder_count = 2;
    if (bytes_.once_in(16))
      o.pack_public_key = a_.text({"00", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"});
    if (bytes_.once_in(16)) o.cache_max_bytes = static_cast<std::uint64_t>(bytes_.number());
    q4_runtime* made = nullptr;
    const bool ok = check("q4_runtime_create", q4_runtime_create(a_.options(o), bytes_.once_in(60) ? nullptr : &made));
    if (ok != (made != nullptr)) finding("q4_runtime_create", "status and result differ");
    if (!ok && runtimes_.empty() && q4_runtime_create(nullptr, &made) != Q4_OK)
      finding("q4_runtime_create", "defaults");
    if (made) runtimes_.push_back(made);
  }
  static void* allocate(void* user, std::size_t size, std::size_t alignment, q4_device, void*) {
    if (user && ++static_cast<Makers*>(user)->allocations_ % 13 == 0) return nullptr;
    return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  }
  static void release(void*, void* memory, std::size_t, q4_device, void*) { std::free(memory); }

  void make_matrix() {
    const bool awq = bytes_.once_in(4);
    const q4_tensors t = a_.tensors(awq, a_.k(), a_.n());
    Handle made_here = kUntouched;
    const q4_tensors* given = a_.options(t);
    const bool ok = awq ? made("q4_matrix_from_awq",
                               q4_matrix_from_awq(runtime(), a_.device(), given, result(made_here)), made_here)
                        : made("q4_matrix_from_gptq",
                               q4_matrix_from_gptq(runtime(), a_.device(), given, result(made_here)), made_here);
    if (ok) matrix_ = made_here;
  }
  void fuse() {
    const bool awq = bytes_.once_in(4);
    const std::int64_t k = a_.k();
    const q4_tensors* list[3];
    for (auto& one : list) one = a_.options(a_.tensors(awq, k, a_.n()));
    q4_slice s{};
    s.size = a_.size(sizeof s), s.along = bytes_.choice(3), s.rank = bytes_.choice(3), s.world = bytes_.choice(4);
    s.share = bytes_.choice(2), s.pad = bytes_.choice(2);
    if (bytes_.once_in(4)) s.unit = bytes_.near(16);
    const std::int64_t parts[] = {bytes_.near(8), bytes_.near(16)};
    if (bytes_.once_in(4)) s.parts = bytes_.once_in(8) ? nullptr : parts, s.part_count = bytes_.byte() % 3;
    Handle m = kUntouched;
    if (made("q4_matrix_fuse",
             q4_matrix_fuse(runtime(), a_.device(), bytes_.once_in(40) ? nullptr : list, bytes_.byte() % 4, awq,
                            a_.options(s), result(m)),
             m))
      matrix_ = m;
  }
  q4_plan_options plan_options() {
    q4_plan_options o{};
    o.size = a_.size(sizeof o), o.max_m = max_rows(), o.activation = bytes_.choice(3), o.math = bytes_.choice(4);
    o.gather = bytes_.choice(3), o.reconstruct_from = bytes_.once_in(4) ? bytes_.number() : 0;
    o.batch_invariant = bytes_.once_in(4), o.overlap_previous = bytes_.once_in(8),
    o.caller_workspace = bytes_.once_in(8);
    if (bytes_.once_in(8)) o.tactic = a_.text({"", "cpu-direct", "cpu-panel math=fp32", "reconstruct+blas", tactic_});
    if (bytes_.once_in(3)) o.epilogue = bytes_.choice(9);
    o.residual = bytes_.once_in(4);
    if (bytes_.once_in(4)) o.lora_rank = bytes_.near(16);
    return o;
  }
  /// No plan is made for more: its workspace is memory that the caller asked for.
  std::int64_t max_rows() {
    const std::int64_t wanted = bytes_.near(bytes_.of<std::int64_t>({0, 1, 4, 17, 70}));
    return wanted == 1 << 20 || wanted == std::int64_t{1} << 32 ? 300 : wanted;
  }
  void make_plan() {
    const Handle from = handle(matrix_);
    const q4_plan_options o = plan_options();
    const q4_plan_options* given = a_.options(o);
    q4_runtime* const on = runtime();
    Handle plan = kUntouched;
    if (!made("q4_plan_create", q4_plan_create(on, from, given, result(plan)), plan)) return;
    plan_ = plan;
    q4_matrix_info info{};
    info.size = sizeof info;
    if (q4_matrix_get(on, from, &info) != Q4_OK) finding("q4_matrix_get", "the plan's matrix is gone");
    const bool all = given && o.size == sizeof o;  // of the options were read
    shapes_[plan] = {info.k, all && o.epilogue >= Q4_SILU_MUL ? info.n / 2 : info.n, 1, 1};
    shapes_[plan].element = all && o.activation != Q4_F32 ? 2 : 4;
    shapes_[plan].lora = given && o.lora_rank != 0, shapes_[plan].residual = given && o.residual != 0;
  }
  void make_experts() {
    const std::int64_t count = 1 + bytes_.byte() % 3, k = a_.k(), n = a_.n();
    q4_experts_options o{};
    o.size = a_.size(sizeof o), o.gate_up = bytes_.once_in(2);
    Handle e = kUntouched;
    const unsigned how = bytes_.byte() % 3;
    q4_status status;
    const char* name = how == 0 ? "q4_experts_from_stacked" : how == 1 ? "q4_experts_from_awq" : "q4_experts_from_gptq";
    if (how == 0) {
      const q4_tensors* stacked = a_.options(a_.tensors(false, k, n, count));
      status = q4_experts_from_stacked(runtime(), a_.device(), bytes_.near(count), stacked, a_.options(o), result(e));
    } else {
      const q4_tensors* list[4];
      for (auto& one : list) one = a_.options(a_.tensors(how == 1, k, n));
      const auto call = how == 1 ? q4_experts_from_awq : q4_experts_from_gptq;
      status = call(runtime(), a_.device(), bytes_.once_in(40) ? nullptr : list, static_cast<std::size_t>(count),
                    a_.options(o), result(e));
    }
    if (made(name, status, e)) experts_[1] = experts_[0], experts_[0] = e;
  }
  q4_moe_options moe_options(bool grouped) {
    q4_moe_options o{};
    o.size = a_.size(sizeof o), o.max_rows = max_rows(),
    o.topk = grouped ? bytes_.near(0) : bytes_.near(bytes_.byte() % 4);
    o.dtype = bytes_.choice(3), o.activation = bytes_.choice(5);
    if (bytes_.once_in(4)) o.alpha = 1, o.limit = static_cast<float>(bytes_.number());
    if (bytes_.once_in(6)) {
      o.expert_map_count = bytes_.byte() % 9;
      auto* map = static_cast<std::int32_t*>(a_.block(static_cast<std::int64_t>(o.expert_map_count) * 4, 1));
      for (std::size_t i = 0; i < o.expert_map_count; ++i)
        map[i] = static_cast<std::int32_t>(bytes_.near(bytes_.byte() % 4 - 1));
      o.expert_map = bytes_.once_in(16) ? nullptr : map;
    }
    o.batch_invariant = bytes_.once_in(4), o.caller_workspace = bytes_.once_in(8);
    if (bytes_.once_in(16)) o.tactic = a_.text({"", "cpu-direct", tactic_});
    return o;
  }
  void make_moe_plan(bool grouped) {
    const Handle w13 = handle(experts_[1]), w2 = handle(experts_[0]);
    const q4_moe_options o = moe_options(grouped);
    const q4_moe_options* given = a_.options(o);
    q4_runtime* const on = runtime();
    Handle plan = kUntouched;
    const q4_status status = grouped ? q4_grouped_plan_create(on, w2, given, result(plan))
                                     : q4_moe_plan_create(on, w13, w2, given, result(plan));
    if (!made(grouped ? "q4_grouped_plan_create" : "q4_moe_plan_create", status, plan)) return;
    (grouped ? grouped_ : moe_) = plan;
    q4_experts_info first{}, last{};
    first.size = last.size = sizeof first;
    if (q4_experts_get(on, w2, &last) != Q4_OK || (!grouped && q4_experts_get(on, w13, &first) != Q4_OK))
      finding("q4_experts_get", "the plan's experts are gone");
    shapes_[plan] = {grouped ? last.k : first.k, last.n, last.experts, given && o.topk ? o.topk : 1};
  }

  Bytes bytes_;
  const std::string folder_, nowhere_ = folder_ + "/none", file_ = folder_ + "/m.safetensors";
  Arguments a_{bytes_};
  std::vector<q4_runtime*> runtimes_;
  std::vector<Handle> handles_;
  std::map<Handle, Shape> shapes_;
  Handle matrix_ = 0, plan_ = 0, lora_ = 0, checkpoint_ = 0, experts_[2] = {}, moe_ = 0, grouped_ = 0;
  char tactic_[256] = "cpu-direct";  // what a plan said it runs
  unsigned made_ = 0, succeeded_ = 0;
  std::atomic<unsigned> allocations_ = 0;
};

}  // namespace q4::test
