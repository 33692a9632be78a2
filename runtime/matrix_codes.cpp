// Finds the words of each piece, and copies them where that cannot be avoided.
#include "runtime/matrix_codes.hpp"

#include <cstring>

#include "runtime/base/check.hpp"

namespace q4 {

void CodesJoin::add(const TensorReader& reader, const TensorView& qweight, const Extent& columns,
                    std::int64_t first_row) {
  const bool on_device = TensorReader::on_device(qweight);
  check(on_device_.value_or(on_device) == on_device,
        "{}: qweight is {}, that of the first is not: put them into one memory", reader.call(),
        on_device ? "on " + qweight.device->str() : "in host memory");
  on_device_ = on_device;
  device_ = reader.device();
  const std::int64_t per_word = awq_ ? 8 : 1, stride = TensorReader::stride(qweight);
  const auto* words = static_cast<const std::uint32_t*>(qweight.data);
  pieces_.push_back({words + word_rows(first_row) * stride + columns.first / per_word, columns.count / per_word,
                     columns.padding / per_word, stride});
  padded_ |= columns.padding > 0 || rows_.count != rows_.k;
  n_ += columns.count + columns.padding;
  width_ += (columns.count + columns.padding) / per_word;
}

template <class Copy>
void CodesJoin::gather(std::uint32_t* to, const Copy& copy) const {
  for (const Piece& piece : pieces_) {
    for (std::int64_t r = 0; r < word_rows(rows_.count) && piece.width > 0; ++r)
      copy(to + r * width_, piece.words + r * piece.row_stride, static_cast<std::size_t>(piece.width) * 4);
    to += piece.width + piece.padding;
  }
}

void CodesJoin::place(CheckedSource& to) const {
  MatrixSource& s = to.source;
  const Piece& first = pieces_[0];
  const auto bytes = static_cast<std::size_t>(word_rows(rows_.k) * width_) * 4;
  s.qweight_on_device = *on_device_;
  if (pieces_.size() == 1 && !padded_ && first.row_stride == width_) {
    s.qweight = first.words;
  } else if (*on_device_) {
    to.device_codes = Buffer(device_, bytes);
    auto* const memory = to.device_codes.as<std::uint32_t>();
    if (padded_) device_->fill(memory, 0, bytes);
    gather(memory, [&](void* into, const void* from, std::size_t count) {
      device_->copy(into, from, count, CopyKind::kOnDevice);
    });
    s.qweight = memory;
  } else if (padded_) {
    to.host_codes.resize(bytes);
    auto* words = reinterpret_cast<std::uint32_t*>(to.host_codes.data());
    gather(words, [](void* into, const void* from, std::size_t count) { std::memcpy(into, from, count); });
    s.qweight = words;
  } else {
    for (const Piece& piece : pieces_) s.pieces.push_back({piece.words, piece.width, piece.row_stride});
  }
}

}  // namespace q4
