// Arguments of the C ABI, drawn from bytes: mostly those of calls that succeed, now and then each kind of wrong one. Memory is
// exactly as large as the arguments say, as the ABI asks of its callers.
#pragma once

#include <q4/epilogue.h>
#include <q4/moe.h>
#include <q4/q4.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace q4::test {

/// What the bytes decide, one after the other; zeros behind their end.
class Bytes {
 public:
  explicit Bytes(std::string_view bytes) : rest_(bytes) {}
  bool empty() const { return rest_.empty(); }
  unsigned byte() {
    if (rest_.empty()) return 0;
    const auto value = static_cast<unsigned char>(rest_.front());
    rest_.remove_prefix(1);
    return value;
  }
  bool once_in(unsigned n) { return byte() % n == n - 1; }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[byte() % list.size()];
  }
  std::int64_t number() {
    constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
    const std::int64_t odd[] = {-1,        0,         1,     2,         7, 9, 1 << 20, std::int64_t{1} << 32,
                                kMost / 8, kMost - 6, kMost, -kMost - 1};
    return odd[byte() % std::size(odd)];
  }
  /// Usually `value`.
  std::int64_t near(std::int64_t value) { return once_in(24) ? number() : value; }
  std::int32_t choice(std::int32_t count) {
    if (once_in(40)) return static_cast<std::int32_t>(number());
    return static_cast<std::int32_t>(byte()) % count;
  }

 private:
  std::string_view rest_;
};

struct Arguments {
  Bytes& bytes;
  std::deque<std::unique_ptr<unsigned char[]>> memory = {};
  std::deque<q4_tensor> optional = {};

  /// As much memory as that, filled from the bytes; null where nobody has so much.
  void* block(std::int64_t size, std::uint32_t fill) {
    if (size < 0 || size > (1 << 19)) return nullptr;
    memory.emplace_back(new unsigned char[static_cast<std::size_t>(size)]);
    std::uint32_t state = fill * 2654435761u + 1;
    for (std::int64_t i = 0; i < size; ++i) {
      state = state * 1664525u + 1013904223u;
      memory.back()[static_cast<std::size_t>(i)] = static_cast<unsigned char>(state >> 24);
    }
    return memory.back().get();
  }
  static int size_of(q4_dtype type) {
    return type == Q4_I64 ? 8 : type == Q4_U8 ? 1 : type == Q4_F32 || type == Q4_I32 ? 4 : 2;
  }
  /// Rows of `cols` elements; what no memory can hold is null, or, where its size is no number, any address.
  void* rows(std::int64_t rows, std::int64_t cols, std::int64_t stride, int element, std::uint32_t fill) {
    if (stride == 0 || stride == -1) stride = cols;
    __int128 elements = rows <= 0 || cols <= 0 ? 0 : static_cast<__int128>(rows - 1) * stride + cols;
    if (elements < 0 || elements > std::numeric_limits<std::int64_t>::max() / element) return block(16, fill);
    return block(static_cast<std::int64_t>(elements) * element, fill);
  }

  q4_device device() {
    if (bytes.once_in(16)) return {bytes.choice(3), static_cast<std::int32_t>(bytes.near(0))};
    return {Q4_CPU, 0};
  }
  /// A tensor near this one.
  q4_tensor tensor(std::int64_t r, std::int64_t c, q4_dtype type) {
    q4_tensor t{};
    t.rows = bytes.near(r), t.cols = bytes.near(c);
    t.dtype = bytes.once_in(16) ? bytes.choice(6) : type;
    if (bytes.once_in(8)) t.row_stride = bytes.of<std::int64_t>({c, c + 1, c + 8, c - 1, bytes.number()});
    if (bytes.once_in(40)) t.device = device();
    t.data = bytes.once_in(60) ? nullptr : rows(t.rows, t.cols, t.row_stride, size_of(t.dtype), bytes.byte());
    return t;
  }
  std::int64_t k() { return bytes.of<std::int64_t>({128, 8, 16, 64, 72, 200, 256}); }
  std::int64_t n() { return bytes.of<std::int64_t>({64, 8, 16, 24, 136}); }

  /// The tensors of a matrix of k x n; `copies` of them one below the other.
  q4_tensors tensors(bool awq, std::int64_t k, std::int64_t n, std::int64_t copies = 1) {
    const std::int64_t group = bytes.of<std::int64_t>({32, -1, 8, 64, 128, 24, 0});
    const std::int64_t length = group <= 0 ? k : group, groups = (k + length - 1) / length;
    q4_tensors t{};
    t.size = size(sizeof t);
    t.qweight = awq ? tensor(copies * k, n / 8, Q4_I32) : tensor(copies * k / 8, n, Q4_I32);
    t.qzeros = tensor(copies * groups, n / 8, Q4_I32), t.scales = tensor(copies * groups, n, scale_type());
    if (!awq && bytes.once_in(3)) t.g_idx = order(copies, k, length);
    if (bytes.once_in(3)) {
      optional.push_back(tensor(copies, n, scale_type()));
      t.bias = &optional.back();
    }
    t.group_size = bytes.near(group), t.zeros = awq ? (bytes.once_in(16) ? bytes.choice(3) : 0) : bytes.choice(3);
    if (bytes.once_in(8)) t.scratch_bytes = static_cast<std::uint64_t>(bytes.number());
    if (bytes.once_in(8)) t.storage = bytes.choice(2);
    if (bytes.once_in(8)) t.gate_up = 1;
    return t;
  }
  q4_dtype scale_type() { return bytes.once_in(4) ? bytes.of<q4_dtype>({Q4_BF16, Q4_F32}) : Q4_F16; }

  /// The size of a structure that has this one.
  std::size_t size(std::size_t right) {
    if (!bytes.once_in(40)) return right;
    return bytes.of<std::size_t>({0, 8, right / 2, right - 8, right + 8, 4096, 4104, ~std::size_t{0}});
  }
  /// A copy of an options structure with zeros behind it, or null.
  template <class T>
  const T* options(const T& value) {
    if (bytes.once_in(24)) return nullptr;
    auto* copy = static_cast<unsigned char*>(block(4200, 0));
    std::memset(copy, 0, 4200);
    std::memcpy(copy, &value, sizeof value);
    if (bytes.once_in(40)) copy[sizeof value] = 1;  // of a newer header, and used
    return reinterpret_cast<const T*>(copy);
  }
  /// A result structure, whose size is set.
  template <class T>
  T* result() {
    if (bytes.once_in(40)) return nullptr;
    auto* made = reinterpret_cast<T*>(block(4200, 7));
    made->size = size(sizeof(T));
    return made;
  }
  std::size_t* size_result() { return bytes.once_in(40) ? nullptr : static_cast<std::size_t*>(block(8, 1)); }
  const char* text(std::initializer_list<const char*> usual) {
    if (bytes.once_in(24)) return nullptr;
    if (!bytes.once_in(8)) return bytes.of<const char*>(usual);
    auto* any = static_cast<char*>(block(17, bytes.byte()));
    any[16] = '\0';
    return any;
  }

 private:
  const q4_tensor* order(std::int64_t copies, std::int64_t k, std::int64_t length) {
    q4_tensor t = tensor(copies, k, bytes.once_in(4) ? Q4_I64 : Q4_I32);
    const unsigned kind = bytes.byte() % 4;
    for (std::int64_t i = 0; t.data && t.rows == copies && t.cols == k && i < copies * k && kind != 3; ++i) {
      const std::int64_t row = i % k, value = (kind == 0 ? row : k - 1 - row) / length + (kind == 2 && i == 5 ? 99 : 0);
      auto* data = static_cast<unsigned char*>(const_cast<void*>(t.data));
      if (t.row_stride != 0 && t.row_stride != k) break;
      if (t.dtype == Q4_I64) std::memcpy(data + i * 8, &value, 8);
      if (t.dtype == Q4_I32) std::memcpy(data + i * 4, &value, 4);
    }
    optional.push_back(t);
    return &optional.back();
  }
};

}  // namespace q4::test
