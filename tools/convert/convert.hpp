// q4-convert's work: from one packing to another, exactly, and read back.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/convert/target.hpp"

namespace q4::tools::convert {

struct Request {
  std::string in, out;
  Format format = Format::kGptqV2;
  std::uint64_t shard_bytes = 5'000'000'000;  ///< a file holds no more, unless one tensor does
  bool force = false;                         ///< replace the folder of a checkpoint at `out`
};

struct Converted {
  std::string from;  ///< packing of what was read
  std::size_t matrices = 0, copied = 0, files = 0;
  std::uint64_t bytes = 0;                 ///< of all tensors written
  std::vector<std::string> left_out = {};  ///< files of weights in other formats that were not copied
};

/// Writes the checkpoint, reads it back, compares every number and every copied byte, then puts it into its place.
/// `progress` is told the share that is done and of what; what it throws ends the work, and nothing is left of it.
/// Throws kUnsupported for what `format` cannot hold exactly, before anything is written; kIo, kInvalidArgument and what
/// Checkpoint::open does.
Converted convert(const Request& request, const std::function<void(double, const std::string&)>& progress);

}  // namespace q4::tools::convert
