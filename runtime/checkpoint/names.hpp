// Names of tensors: their order, the ones that a typing error meant, and how they are printed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace q4::checkpoint {

/// "layers.9" before "layers.10": runs of digits compare as numbers, everything else byte by byte. A strict total
/// order.
bool natural_less(std::string_view a, std::string_view b);

/// Up to `count` of `names` that need the fewest edits to become `name`, nearest first.
std::vector<std::string> nearest(std::string_view name, const std::vector<std::string>& names, std::size_t count);

/// In quotation marks, control characters escaped, cut to about 120 bytes: safe in a message whatever the file holds.
std::string quote(std::string_view text);

}  // namespace q4::checkpoint
