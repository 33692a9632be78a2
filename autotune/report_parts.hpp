// The parts of the HTML report that are about one thing each.
#pragma once

#include <string>

#include "autotune/report.hpp"

namespace q4::autotune {

std::string title_of(const TunedShape& shape);  ///< "gate_up  4096 × 28672, group 128", as HTML
std::string kernel_map(const TuningRun& run);   ///< the kernel that each shape uses at each m, as a figure
/// Two plots side by side and the table of one shape; `index` makes their ids unique. Of a shape without times: why.
std::string shape_card(const TunedShape& shape, std::size_t index, const ArithmeticUnit& unit);

}  // namespace q4::autotune
