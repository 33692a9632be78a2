// The few calls of oneDNN's C interface (version 3) that a matmul needs.
#include "tools/bench/onednn.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "tools/bench/timed.hpp"

namespace q4::tools {
namespace {

// As dnnl_types.h of oneDNN 3 has them.
using Handle = struct Opaque*;
using Dims = std::int64_t[12];
struct Version {
  int major, minor, patch;
};
struct Argument {
  int name;
  Handle memory;
};
constexpr int kCpu = 1, kInOrder = 1, kAnyLayout = 1, kQueryImplementation = 8, kQueryWeights = 131;
constexpr int kF16 = 1, kBf16 = 2, kF32 = 3, kU8 = 6, kU4 = 12;  // types
constexpr int kSource = 1, kResult = 17, kWeights = 33, kScales = 4096, kZeros = 8192;
constexpr int kMathBf16 = 1, kEachElement = 1 | 2;
void* const kAllocate = reinterpret_cast<void*>(~std::size_t{0});

struct Library {
  std::string name;
  bool available = false;
  const Version* (*version)() = nullptr;
  int (*engine_create)(Handle*, int, std::size_t) = nullptr;
  int (*stream_create)(Handle*, Handle, unsigned) = nullptr;
  int (*stream_wait)(Handle) = nullptr;
  int (*memory_desc_create_with_strides)(Handle*, int, const Dims, int, const Dims) = nullptr;
  int (*memory_desc_create_with_tag)(Handle*, int, const Dims, int, int) = nullptr;
  int (*memory_create)(Handle*, Handle, Handle, void*) = nullptr;
  int (*memory_get_data_handle)(Handle, void**) = nullptr;
  int (*matmul_primitive_desc_create)(Handle*, Handle, Handle, Handle, Handle, Handle, Handle) = nullptr;
  int (*reorder_primitive_desc_create)(Handle*, Handle, Handle, Handle, Handle, Handle) = nullptr;
  Handle (*primitive_desc_query_md)(Handle, int, int) = nullptr;
  int (*primitive_create)(Handle*, Handle) = nullptr;
  int (*primitive_execute)(Handle, Handle, int, const Argument*) = nullptr;
  int (*memory_destroy)(Handle) = nullptr;
  int (*primitive_destroy)(Handle) = nullptr;
  // From version 3.5 on, else null:
  int (*primitive_attr_create)(Handle*) = nullptr;
  int (*primitive_attr_set_fpmath_mode_v2)(Handle, int, int) = nullptr;
  int (*primitive_attr_set_scales)(Handle, int, int, int, const std::int64_t*, int) = nullptr;
  int (*primitive_attr_set_zero_points)(Handle, int, int, int, const std::int64_t*, int) = nullptr;
  int (*primitive_desc_query)(Handle, int, int, void*) = nullptr;
  bool u4 = false;
};

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* at, Library& l) {
  return find(at, "dnnl_engine_create", l.engine_create) && find(at, "dnnl_stream_create", l.stream_create) &&
         find(at, "dnnl_stream_wait", l.stream_wait) &&
         find(at, "dnnl_memory_desc_create_with_strides", l.memory_desc_create_with_strides) &&
         find(at, "dnnl_memory_desc_create_with_tag", l.memory_desc_create_with_tag) &&
         find(at, "dnnl_memory_create", l.memory_create) &&
         find(at, "dnnl_memory_get_data_handle", l.memory_get_data_handle) &&
         find(at, "dnnl_matmul_primitive_desc_create", l.matmul_primitive_desc_create) &&
         find(at, "dnnl_reorder_primitive_desc_create", l.reorder_primitive_desc_create) &&
         find(at, "dnnl_primitive_desc_query_md", l.primitive_desc_query_md) &&
         find(at, "dnnl_primitive_create", l.primitive_create) &&
         find(at, "dnnl_primitive_execute", l.primitive_execute) && find(at, "dnnl_memory_destroy", l.memory_destroy) &&
         find(at, "dnnl_primitive_destroy", l.primitive_destroy);
}

bool find_u4(void* at, Library& l) {
  return find(at, "dnnl_primitive_attr_create", l.primitive_attr_create) &&
         find(at, "dnnl_primitive_attr_set_fpmath_mode_v2", l.primitive_attr_set_fpmath_mode_v2) &&
         find(at, "dnnl_primitive_attr_set_scales", l.primitive_attr_set_scales) &&
         find(at, "dnnl_primitive_attr_set_zero_points", l.primitive_attr_set_zero_points) &&
         find(at, "dnnl_primitive_desc_query", l.primitive_desc_query);
}

Library open_library() {
  Library library;
  const std::string named = setting("Q4_ONEDNN");
  std::string file = named.empty() ? "libdnnl.so.3" : named;
  void* at = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!at && named.empty()) at = dlopen((file = "libdnnl.so.3.6").c_str(), RTLD_NOW | RTLD_LOCAL);  // Debian's name
  if (!at) {
    library.name = fmt::format("{} not found; install oneDNN 3 (Debian 13: libdnnl3.6) or set Q4_ONEDNN", file);
    return library;
  }
  if (!find(at, "dnnl_version", library.version) || library.version()->major != 3 || !find_all(at, library)) {
    library.name = fmt::format("{} is not oneDNN 3; install it (Debian 13: libdnnl3.6) or set Q4_ONEDNN", file);
    return library;
  }
  const Version& v = *library.version();
  library.u4 = v.minor >= 5 && find_u4(at, library);
  library.name = fmt::format("{} {}.{}.{}", file, v.major, v.minor, v.patch);
  library.available = true;
  return library;
}

const Library& library() {
  static const Library instance = open_library();
  return instance;
}

void call(int status, const char* what) {
  if (status != 0)
    fail(ErrorCode::kUnsupported,
         "oneDNN: {} of {} failed with status {} (3: not implemented for this processor); time without it by "
         "Q4_ONEDNN=none",
         what, library().name, status);
}

Handle plain(std::int64_t rows, std::int64_t columns, int type = kBf16) {
  const Dims dims = {rows, columns}, strides = {columns, 1};
  Handle desc = nullptr;
  call(library().memory_desc_create_with_strides(&desc, 2, dims, type, strides), "a memory descriptor");
  return desc;
}

/// Of a product with 4-bit weights.
Handle u4_attributes() {
  const Library& l = library();
  Handle attributes = nullptr;
  constexpr std::int64_t kGroups[] = {OneDnnMatmul::kGroup, 1};
  call(l.primitive_attr_create(&attributes), "attributes");
  call(l.primitive_attr_set_fpmath_mode_v2(attributes, kMathBf16, 1), "bf16 products of integers");
  call(l.primitive_attr_set_scales(attributes, kWeights, kEachElement, 2, kGroups, kF16), "scales of groups");
  call(l.primitive_attr_set_zero_points(attributes, kWeights, 0, 0, nullptr, kU8), "a zero");
  return attributes;
}

/// W in row order, of bf16 or, for codes, of fp32: the library packs them (3.7 copies bytes as if they were codes).
void fill(void* memory, std::int64_t k, std::int64_t n, OneDnnWeights weights) {
  for (std::int64_t row = 0; row < k; ++row)
    for (std::int64_t column = 0; column < n; ++column) {
      const std::int64_t at = row * n + column;
      if (weights == OneDnnWeights::kU4) {
        static_cast<float*>(memory)[at] = float(OneDnnMatmul::whole(row, column) + 8);
      } else {
        const float value = OneDnnMatmul::weight(row, column);
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        static_cast<std::uint16_t*>(memory)[at] = std::uint16_t(bits >> 16);
      }
    }
}

}  // namespace

const std::string& onednn_name() { return library().name; }
bool onednn_available() { return library().available; }

struct OneDnnMatmul::State {
  Handle engine = nullptr, stream = nullptr, primitive = nullptr, x = nullptr, out = nullptr, scales = nullptr,
         zero = nullptr;
  std::vector<Handle> weights;

  Handle memory(Handle desc) const {
    Handle result = nullptr;
    call(library().memory_create(&result, desc, engine, kAllocate), "memory");
    return result;
  }
  template <class T = std::uint16_t>
  static T* data(Handle memory) {
    void* at = nullptr;
    call(library().memory_get_data_handle(memory, &at), "memory's address");
    return static_cast<T*>(at);
  }
  ~State() {
    for (const Handle memory : weights) library().memory_destroy(memory);
    for (const Handle memory : {x, out, scales, zero})
      if (memory) library().memory_destroy(memory);
    if (primitive) library().primitive_destroy(primitive);
  }
};

OneDnnMatmul::OneDnnMatmul(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t copies, OneDnnWeights weights)
    : state_(std::make_unique<State>()) {
  const Library& l = library();
  const bool u4 = weights == OneDnnWeights::kU4;
  if (!l.available) fail(ErrorCode::kUnsupported, "oneDNN: {}", l.name);
  if (u4 && !l.u4) fail(ErrorCode::kUnsupported, "oneDNN: {} has no 4-bit weights; install 3.5 or newer", l.name);
  if (u4 && k % kGroup != 0)
    fail(ErrorCode::kUnsupported, "oneDNN: k = {}: 4-bit weights need a multiple of {}", k, kGroup);
  State& s = *state_;
  call(l.engine_create(&s.engine, kCpu, 0), "an engine");
  call(l.stream_create(&s.stream, s.engine, kInOrder), "a stream");
  const int type = u4 ? kU4 : kBf16;
  const Handle x = plain(m, k), w = plain(k, n, u4 ? kF32 : kBf16), out = plain(m, n),
               attributes = u4 ? u4_attributes() : nullptr;
  const Dims dims = {k, n};
  Handle any = nullptr, product = nullptr, reorder = nullptr, packing = nullptr;
  call(l.memory_desc_create_with_tag(&any, 2, dims, type, kAnyLayout), "a memory descriptor");
  call(l.matmul_primitive_desc_create(&product, s.engine, x, any, nullptr, out, attributes), "a matmul");
  if (u4) {
    const char* implementation = "";
    call(l.primitive_desc_query(product, kQueryImplementation, 0, &implementation), "a matmul's name");
    if (std::string_view(implementation).starts_with("ref"))
      fail(ErrorCode::kUnsupported, "oneDNN: {} multiplies by 4-bit weights with {} here", l.name, implementation);
    s.scales = s.memory(plain(k / kGroup, n, kF16)), s.zero = s.memory(plain(1, 1, kU8));
    for (std::int64_t group = 0; group < k / kGroup; ++group)
      for (std::int64_t column = 0; column < n; ++column)
        State::data(s.scales)[group * n + column] = scale(group, column) == 1 ? 0x3C00 : 0x3800;
    *State::data<std::uint8_t>(s.zero) = 8;
  }
  call(l.primitive_create(&s.primitive, product), "a matmul");
  s.x = s.memory(x), s.out = s.memory(out);
  const Handle best = l.primitive_desc_query_md(product, kQueryWeights, 0), source = s.memory(w);
  fill(State::data<void>(source), k, n, weights);
  call(l.reorder_primitive_desc_create(&reorder, w, s.engine, best, s.engine, nullptr), "a reorder");
  call(l.primitive_create(&packing, reorder), "a reorder");
  for (std::size_t copy = 0; copy < copies; ++copy) {
    s.weights.push_back(s.memory(best));
    const Argument arguments[] = {{kSource, source}, {kResult, s.weights.back()}};
    call(l.primitive_execute(packing, s.stream, 2, arguments), "a reorder");
  }
  call(l.stream_wait(s.stream), "a reorder");
  l.memory_destroy(source);
  l.primitive_destroy(packing);
}

OneDnnMatmul::~OneDnnMatmul() = default;

void OneDnnMatmul::run(std::size_t copy) const {
  const State& s = *state_;
  const Argument arguments[] = {{kSource, s.x},
                                {kWeights, s.weights[copy % s.weights.size()]},
                                {kResult, s.out},
                                {kScales | kWeights, s.scales},
                                {kZeros | kWeights, s.zero}};
  call(library().primitive_execute(s.primitive, s.stream, s.scales ? 5 : 3, arguments), "a matmul");
  call(library().stream_wait(s.stream), "a matmul");
}

double time_onednn(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t cold_bytes, double seconds,
                   OneDnnWeights weights) {
  const bool u4 = weights == OneDnnWeights::kU4;
  if (u4 && !library().u4) return 0;
  const std::size_t bytes = std::size_t(u4 ? k * n / 2 : 2 * k * n);
  const auto made = [&]() -> std::unique_ptr<OneDnnMatmul> {
    try {
      return std::make_unique<OneDnnMatmul>(k, n, m, std::max<std::size_t>(2, cold_bytes / bytes), weights);
    } catch (const Error&) {
      if (!u4) throw;
      return nullptr;
    }
  }();
  if (!made) return 0;
  const OneDnnMatmul& matmul = *made;
  for (std::int64_t i = 0; i < m * k; ++i) matmul.x()[i] = std::uint16_t(0x3F00 + i % 255);  // 0.5 to 2
  std::size_t copy = 0;
  const auto sample = [&] {
    const auto start = std::chrono::steady_clock::now();
    matmul.run(copy++ % matmul.copies());
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  };
  return timed(sample, seconds).value;
}

std::size_t OneDnnMatmul::copies() const { return state_->weights.size(); }
std::uint16_t* OneDnnMatmul::x() const { return State::data(state_->x); }
const std::uint16_t* OneDnnMatmul::out() const { return State::data(state_->out); }

}  // namespace q4::tools
