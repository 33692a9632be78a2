// Between the C ABI's structures and the C++ API's.
#pragma once

#include <q4/q4.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <q4/q4.hpp>

#include "runtime/base/check.hpp"

namespace q4::capi {

static_assert(Q4_INVALID_ARGUMENT == int(ErrorCode::kInvalidArgument) &&
              Q4_UNSUPPORTED == int(ErrorCode::kUnsupported) && Q4_OUT_OF_MEMORY == int(ErrorCode::kOutOfMemory) &&
              Q4_DEVICE_ERROR == int(ErrorCode::kDevice) && Q4_COMPILE_ERROR == int(ErrorCode::kCompile) &&
              Q4_IO_ERROR == int(ErrorCode::kIo) && Q4_CORRUPT == int(ErrorCode::kCorrupt) &&
              Q4_NOT_FOUND == int(ErrorCode::kNotFound) && Q4_INTERNAL == int(ErrorCode::kInternal));
static_assert(Q4_LAYER_COMPILER == int(CacheLayer::kCompiler) && Q4_LAYER_PACK == int(CacheLayer::kPack) &&
              Q4_LAYER_NONE == int(CacheLayer::kNone));
static_assert(Q4_F32 == int(DType::kF32) && Q4_U8 == int(DType::kU8) && Q4_HIP == int(BackendKind::kHip) &&
              Q4_ZEROS_V2 == int(ZeroFormat::kV2) && Q4_MATH_INT8 == int(Math::kInt8) &&
              Q4_GATHER_SEPARATE == int(Gather::kSeparate) && Q4_GATHER_GIVEN == int(Gather::kGiven) &&
              Q4_CACHE_REQUIRE_PREBUILT == int(CacheMode::kRequirePrebuilt) && Q4_LOG_DEBUG == int(LogLevel::kDebug));

template <class T>
T& required(T* pointer, const char* argument) {
  check(pointer != nullptr, "{} is null: pass the address of one", argument);
  return *pointer;
}

template <class E>
E enumerated(std::int32_t value, E last, const char* argument) {
  check(value >= 0 && value <= static_cast<std::int32_t>(last), "{} is {}: it must be 0 to {}, see q4.h", argument,
        value, static_cast<int>(last));
  return static_cast<E>(value);
}

inline Device device_of(q4_device device, const char* argument) {
  check(device.backend >= 0 && device.backend <= Q4_HIP, "{}.backend is {}: it must be Q4_CPU, Q4_CUDA or Q4_HIP",
        argument, device.backend);
  return {static_cast<BackendKind>(device.backend), device.ordinal};
}

inline q4_device device_of(Device device) { return {static_cast<q4_backend>(device.kind), device.ordinal}; }

// Structures begin with their size: callers may have been compiled with an older q4.h, or with a newer one.

/// How much of a structure both sides know.
inline std::size_t known_size(std::size_t given, std::size_t ours, const char* argument) {
  check(given > sizeof(given) && given <= 4096, "{}.size is {}: set it to sizeof, which is {} here", argument, given,
        ours);
  return std::min(given, ours);
}

/// A copy with defaults (zeros) where the caller's structure ends; null is all defaults.
template <class T>
T options_of(const T* given, const char* argument) {
  T options{};
  if (!given) return options;
  std::memcpy(&options, given, known_size(given->size, sizeof(T), argument));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < given->size; ++i)
    check(bytes[i] == 0,
          "{}.size is {}, of a newer q4.h than this library's ({}), and byte {} is used: update the library", argument,
          given->size, sizeof(T), i);
  return options;
}

/// Writes as much of a result as the caller's structure holds.
template <class T>
void give(T& result, T value, const char* argument) {
  value.size = known_size(result.size, sizeof(T), argument);
  std::memcpy(&result, &value, value.size);
}

inline void give_text(const std::string& value, char* text, std::size_t size, std::size_t* length) {
  check(text != nullptr || size == 0, "text is null, but size is {}: pass 0 to ask for the length", size);
  if (length) *length = value.size();
  if (size == 0) return;
  const std::size_t count = std::min(size - 1, value.size());
  std::memcpy(text, value.data(), count);
  text[count] = '\0';
}

template <std::size_t kSize>
void give_text(const std::string& value, char (&text)[kSize]) {
  give_text(value, text, kSize, nullptr);
}

inline TensorView view_of(const q4_tensor& t, const char* argument) {
  TensorView view;
  view.data = t.data;
  view.dtype = enumerated(t.dtype, DType::kU8, fmt::format("{}.dtype", argument).c_str());
  view.rows = t.rows, view.cols = t.cols;
  view.row_stride = t.row_stride == 0 ? -1 : t.row_stride;
  if (t.device.backend != Q4_CPU) view.device = device_of(t.device, fmt::format("{}.device", argument).c_str());
  return view;
}

inline std::optional<TensorView> optional_view(const q4_tensor* t, const char* argument) {
  return t ? std::optional(view_of(*t, argument)) : std::nullopt;
}

template <class Tensors>
Tensors tensors_of(const q4_tensors& given) {
  Tensors tensors;
  tensors.qweight = view_of(given.qweight, "tensors.qweight");
  tensors.qzeros = view_of(given.qzeros, "tensors.qzeros");
  tensors.scales = view_of(given.scales, "tensors.scales");
  tensors.bias = optional_view(given.bias, "tensors.bias");
  tensors.group_size = given.group_size;
  return tensors;
}

inline q4_cache_event event_of(const CacheEvent& event) {
  return {sizeof(q4_cache_event), static_cast<q4_cache_layer>(event.layer),
          event.key.c_str(),      event.kernel.c_str(),
          event.target.c_str(),   event.from.c_str(),
          event.missed.c_str(),   event.error.c_str(),
          event.lookup_ms,        event.compile_ms,
          event.load_ms};
}

inline std::vector<std::string> strings(const char* const* list, std::size_t count, const char* argument) {
  check(list != nullptr || count == 0, "{} is null, but its count is {}", argument, count);
  std::vector<std::string> all;
  for (std::size_t i = 0; i < count; ++i) {
    check(list[i] != nullptr, "{}[{}] is null", argument, i);
    all.emplace_back(list[i]);
  }
  return all;
}

inline RuntimeOptions runtime_options(const q4_runtime_options& given) {
  RuntimeOptions options;
  if (given.cache_dir) options.cache_dir = given.cache_dir;
  options.cache_mode = enumerated(given.cache_mode, CacheMode::kRequirePrebuilt, "options.cache_mode");
  options.cpu_threads = given.cpu_threads;
  if (given.cpu_isa) options.cpu_isa = given.cpu_isa;
  if (given.parallel_for) {
    options.parallel_for = [run = given.parallel_for, user = given.parallel_for_user](
                               int tasks, const std::function<void(int)>& task) {
      const auto call = [](void* state, std::int32_t index) {
        (*static_cast<const std::function<void(int)>*>(state))(index);
      };
      run(user, tasks, call, const_cast<void*>(static_cast<const void*>(&task)));
    };
  }
  options.tuning_files = strings(given.tuning_files, given.tuning_file_count, "options.tuning_files");
  options.cache_folders = strings(given.cache_folders, given.cache_folder_count, "options.cache_folders");
  options.packs = strings(given.packs, given.pack_count, "options.packs");
  if (given.pack_public_key) options.pack_public_key = given.pack_public_key;
  if (given.cache_max_bytes) options.cache_max_bytes = given.cache_max_bytes == UINT64_MAX ? 0 : given.cache_max_bytes;
  if (given.dump_dir) options.dump_dir = given.dump_dir;
  if (given.cache_event)
    options.cache_event = [callback = given.cache_event, user = given.cache_event_user](const CacheEvent& event) {
      const q4_cache_event c = event_of(event);
      callback(user, &c);
    };
  if (given.record_untuned) options.record_untuned = given.record_untuned;
  check(!given.allocate == !given.release, "options.{} is null, options.{} is not: set both or neither",
        given.allocate ? "release" : "allocate", given.allocate ? "allocate" : "release");
  if (given.allocate)
    options.allocator = {[call = given.allocate, user = given.allocator_user](std::size_t bytes, std::size_t alignment,
                                                                              Device device, void* stream) {
                           return call(user, bytes, alignment, device_of(device), stream);
                         },
                         [call = given.release, user = given.allocator_user](void* memory, std::size_t bytes,
                                                                             Device device, void* stream) {
                           call(user, memory, bytes, device_of(device), stream);
                         }};
  if (given.log) {
    options.log = [log = given.log, user = given.log_user](LogLevel level, const std::string& text) {
      log(user, static_cast<q4_log_level>(level), text.c_str());
    };
  }
  return options;
}

inline PlanOptions plan_options(const q4_plan_options& given) {
  PlanOptions options;
  if (given.max_m != 0) options.max_m = given.max_m;
  options.activation = enumerated(given.activation, DType::kU8, "options.activation");
  options.math = enumerated(given.math, Math::kInt8, "options.math");
  options.gather = enumerated(given.gather, Gather::kGiven, "options.gather");
  options.reconstruct_from = given.reconstruct_from;
  options.batch_invariant = given.batch_invariant != 0;
  options.overlap_previous = given.overlap_previous != 0;
  if (given.tactic) options.tactic = given.tactic;
  options.own_workspace = given.caller_workspace == 0;
  options.epilogue.activation = enumerated(given.epilogue, Activation::kRelu2Mul, "options.epilogue");
  options.epilogue.residual = given.residual != 0;
  options.epilogue.lora = given.lora_rank != 0;
  if (given.lora_rank != 0) options.lora_rank = given.lora_rank;
  options.norm = given.norm != 0;
  options.spare_units = given.spare_units;
  if (given.norm_epsilon != 0) options.norm_epsilon = given.norm_epsilon < 0 ? 0 : given.norm_epsilon;
  return options;
}

inline MatrixOptions matrix_options(const q4_tensors& given) {
  MatrixOptions options;
  options.storage = enumerated(given.storage, Storage::kReuse, "tensors.storage");
  options.gate_up = given.gate_up != 0;
  if (given.scratch_bytes) options.scratch_bytes = given.scratch_bytes;
  return options;
}

inline q4_device_info info_of(const DeviceInfo& info) {
  q4_device_info result{};
  result.device = device_of(info.device);
  result.compute_units = info.compute_units;
  result.memory_bytes = info.memory_bytes;
  result.l2_bytes = info.l2_bytes;
  give_text(info.name, result.name);
  give_text(info.arch, result.arch);
  give_text(info.driver, result.driver);
  return result;
}

inline q4_matrix_info info_of(const QuantizedMatrix& matrix) {
  q4_matrix_info result{};
  result.k = matrix.k(), result.n = matrix.n();
  result.group_size = matrix.group_size(), result.groups = matrix.groups();
  result.act_order = matrix.act_order(), result.has_bias = matrix.has_bias();
  result.zeros_detected = matrix.zeros_detected();
  result.zeros = static_cast<q4_zeros>(matrix.zeros());
  result.device = device_of(matrix.device());
  result.bytes = matrix.bytes();
  result.in_place = matrix.in_place(), result.scales_in_place = matrix.scales_in_place();
  result.gate_up = matrix.gate_up();
  return result;
}

/// Copies what is wanted; `of` is the matrix, or the experts, that it was made of.
template <class Of>
void give_unpacked(const Of& of, UnpackedMatrix u, const q4_unpacked& wanted) {
  check(!wanted.g_idx || !of.is_awq(), "to.g_idx is set: AWQ matrices have none, pass null");
  check(!wanted.bias || of.has_bias(), "to.bias is set: the matrix has none, pass null");
  if (u.g_idx.empty())
    for (std::int64_t r = 0; wanted.g_idx && r < u.k; ++r)
      u.g_idx.push_back(static_cast<std::int32_t>(r / u.group_size));
  const auto copy = [](auto* into, const auto& from) {
    if (into) std::copy(from.begin(), from.end(), into);
  };
  copy(wanted.qweight, u.qweight), copy(wanted.qzeros, u.qzeros), copy(wanted.scales, u.scales);
  copy(wanted.g_idx, u.g_idx), copy(wanted.bias, u.bias);
}

inline q4_checkpoint_info info_of(const Checkpoint& checkpoint) {
  const QuantConfig& config = checkpoint.config();
  q4_checkpoint_info result{};
  result.awq = config.format == QuantFormat::kAwq;
  result.group_size = config.group_size;
  result.desc_act = config.desc_act, result.symmetric = config.sym;
  result.zeros = static_cast<q4_zeros>(config.zeros);
  result.matrices = checkpoint.matrices().size();
  return result;
}

inline q4_checkpoint_matrix entry_of(const MatrixEntry& entry) {
  q4_checkpoint_matrix result{};
  result.awq = entry.format == QuantFormat::kAwq;
  result.supported = entry.unsupported.empty();
  result.k = entry.k, result.n = entry.n, result.groups = entry.groups, result.group_size = entry.group_size;
  result.has_g_idx = entry.has_g_idx, result.has_bias = entry.has_bias;
  give_text(entry.name, result.name);
  return result;
}

inline q4_cache_counts counts_of(const CacheCounters& c) {
  return {sizeof(q4_cache_counts),
          c.memory,
          c.user_folder,
          c.folder,
          c.beside_library,
          c.pack,
          c.compiled,
          c.failed,
          c.problems,
          c.lookup_ms,
          c.compile_ms,
          c.load_ms};
}

inline WarmupOptions warmup_options(q4_device device, const q4_plan_options* plan, const q4_warmup_options* given) {
  const q4_warmup_options c = options_of(given, "options");
  WarmupOptions options;
  options.device = device_of(device, "device");
  options.plan = plan_options(options_of(plan, "plan"));
  options.threads = c.threads, options.deadline_s = c.deadline_s;
  if (c.progress)
    options.progress = [c](std::size_t done, std::size_t total, const CacheEvent& event) {
      const q4_cache_event kernel = event_of(event);
      c.progress(c.user, done, total, &kernel);
    };
  if (c.cancel) options.cancel = [c] { return c.cancel(c.user) != 0; };
  return options;
}

inline q4_warmup_report report_of(const WarmupReport& r) {
  return {sizeof(q4_warmup_report),
          r.kernels.size(),
          r.count(CacheLayer::kCompiler),
          r.count(CacheLayer::kNone),
          r.skipped,
          r.complete(),
          r.cancelled,
          r.past_deadline,
          r.ms};
}

}  // namespace q4::capi
