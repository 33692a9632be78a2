// What q4-convert writes: the tensors of a matrix in each format, and what a format cannot say.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/convert/source.hpp"

namespace q4::tools::convert {

enum class Format : std::uint8_t { kGptq, kGptqV2, kCompressedTensors, kAwq };
constexpr const char* kFormatNames[] = {"gptq", "gptq_v2", "compressed-tensors", "awq"};
inline const char* to_string(Format format) { return kFormatNames[static_cast<std::size_t>(format)]; }

/// A tensor of a matrix, or one that is copied.
struct OutTensor {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::size_t bytes = 0;
  std::size_t matrix = 0;  ///< of Source::matrices(), where `part` is not empty
  std::string part = {};   ///< "qweight"; empty: copied
};

/// Why `format` cannot hold this matrix exactly, with a remedy; empty: it can.
std::string refusal(Format format, const Plan& plan);
/// The tensors that `format` stores the matrix in.
std::vector<OutTensor> tensors_of(Format format, const Plan& plan, const std::string& name, std::size_t matrix);
/// Their bytes.
std::vector<std::uint8_t> bytes_of(Format format, const Plan& plan, const Numbers& numbers, const std::string& part);

}  // namespace q4::tools::convert
