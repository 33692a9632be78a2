// Normalizes rows of x before they are packed.
#include "runtime/backends/cpu/norm.hpp"

#include <cmath>
#include <cstring>

#include "runtime/base/convert.hpp"

namespace q4::cpu {
namespace {

template <class T>
T at(const std::byte* from, std::int64_t i) {
  T value;
  std::memcpy(&value, from + i * std::int64_t(sizeof(T)), sizeof(T));
  return value;
}

template <class T, class Read, class Write>
void normalize(const NormJob& job, Read read, Write write) {
  constexpr std::int64_t kLanes = 16;  // sums side by side, which a compiler makes vectors of
  float sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= job.k; i += kLanes)
    for (std::int64_t j = 0; j < kLanes; ++j) {
      const float v = read(at<T>(job.x, i + j));
      sums[j] += v * v;
    }
  for (; i < job.k; ++i) {
    const float v = read(at<T>(job.x, i));
    sums[i % kLanes] += v * v;
  }
  float sum = 0;
  for (const float s : sums) sum += s;
  const float scale = 1.0f / std::sqrt(sum / float(job.k) + job.epsilon);
  for (i = 0; i < job.k; ++i) {
    const T value = write(read(at<T>(job.x, i)) * scale * read(at<T>(job.weight, i)));
    std::memcpy(job.out + i * std::int64_t(sizeof(T)), &value, sizeof(T));
  }
}

}  // namespace

void normalize(const NormJob& job) {
  const auto same = [](float v) { return v; };
  if (job.element == Element::kF32) normalize<float>(job, same, same);
  if (job.element == Element::kF16) normalize<std::uint16_t>(job, float_from_half, half_from_float);
  if (job.element == Element::kBF16) normalize<std::uint16_t>(job, float_from_bf16, bf16_from_float);
}

}  // namespace q4::cpu
