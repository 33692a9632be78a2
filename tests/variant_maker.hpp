// Every format in every layout, for tests in other languages.
#pragma once

#include <string>

namespace q4::test {

/// Writes into `folder`, which exists, a checkpoint of one matrix for each format of made_formats() in one file, in two
/// shards with a quantize_config.json, in a hub's cache folder, and under a prefix with a nested configuration; beside it
/// W.f32, W as float32 [k, n]; and variants.json, which lists them. Returns how many.
int make_variants(const std::string& folder);

}  // namespace q4::test
