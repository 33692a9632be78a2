// What q4-convert writes into config.json: the quantization_config of the new format.
#pragma once

#include <string>

#include "tools/convert/target.hpp"

namespace q4::tools::convert {

/// Why the configuration of `format` cannot describe these matrices together (AWQ: several group sizes); empty: it can.
std::string config_refusal(Format format, const Source& source);
/// config.json of the source (or an empty one) with the quantization_config of the new format in the place of every one
/// that there was; everything else as it was. Throws kCorrupt or kIo.
std::string config_text(Format format, const Source& source);

}  // namespace q4::tools::convert
