// Loaded matrices as plain numbers, for tests that compare parts with the whole.
#pragma once

#include <cmath>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "reference.hpp"

namespace q4::test {

/// A Runtime that says nothing.
inline const Runtime& quiet() {
  static const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
  return runtime;
}

inline PlainMatrix plain_of(const QuantizedMatrix& matrix) {
  const UnpackedMatrix unpacked = matrix.unpack();
  return unpacked.is_awq ? unpack(unpacked.awq()) : unpack(unpacked.gptq());
}

/// x @ W on the CPU.
inline std::vector<double> multiplied(const Runtime& runtime, const QuantizedMatrix& matrix, const HostRows& x) {
  HostRows out(DType::kF32, x.rows(), matrix.n());
  MatmulPlan(runtime, matrix, {.max_m = x.rows(), .activation = DType::kF32})
      .run({}, {x.data()}, {out.data()}, x.rows());
  std::vector<double> values;
  for (std::int64_t r = 0; r < out.rows(); ++r)
    for (std::int64_t c = 0; c < out.cols(); ++c) values.push_back(out.at(r, c));
  return values;
}

inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) difference += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
  return a.size() == b.size() ? std::sqrt(difference / norm) : 1.0;
}

}  // namespace q4::test
