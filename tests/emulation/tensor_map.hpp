// The emulator's own content of a TensorMap: a row-major 16-bit matrix seen in
// boxes of box_rows x box_cols.
#pragma once

#include <cstring>

#include "kernels/hopper.h"

namespace q4::emulation {

struct MatrixView {
  u16* data;
  i64 rows, cols, row_stride;
  int box_rows, box_cols = 64;
};

inline TensorMap map_of(const MatrixView& view) {
  TensorMap map{};
  std::memcpy(map.opaque, &view, sizeof view);
  return map;
}
inline MatrixView view_of(const TensorMap& map) {
  MatrixView view;
  std::memcpy(&view, map.opaque, sizeof view);
  return view;
}

}  // namespace q4::emulation
