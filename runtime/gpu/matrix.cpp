// Packs a matrix on its device, packs others into its place, and gives back what it was made of.
#include "runtime/gpu/matrix.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/choose/sources.hpp"

namespace q4::gpu {
namespace {

/// Device memory that unpack() takes for a time.
constexpr std::int64_t kUnpackBytes = 64 << 20;

/// Set i is of group i.
bool in_order(const std::vector<std::int32_t>& groups) {
  for (std::size_t set = 0; set < groups.size(); ++set)
    if (groups[set] != static_cast<std::int32_t>(set)) return false;
  return true;
}

/// What is packed in place must begin where the driver's own memory would.
bool aligned(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory) % 256 == 0; }

/// What the host brings, in device memory until the end of this: qweight, and zeros and scales, plain or as stored.
/// Copies may be on their way when it is made.
class Brought {
 public:
  Brought(const std::shared_ptr<Driver>& driver, Scratch& scratch, const MatrixSource& s, std::size_t words_bytes)
      : driver_(*driver), scratch_(scratch) {
    constexpr std::size_t kKept = 32 << 20;  // more is not kept for the next loads, which take turns with two
    const bool codes = !s.qweight_on_device, stored = s.device_scales != nullptr;
    if (!codes && stored) return;
    const auto columns = static_cast<std::size_t>(s.groups * s.n);
    StagedBytes small[] = {
        {stored ? static_cast<const void*>(s.device_qzeros) : s.zeros.data(), stored ? columns / 2 : columns, nullptr},
        {stored ? s.device_scales : s.scales.data(), columns * 2, nullptr}};
    std::size_t total = 0;
    const auto take = [&](std::size_t bytes) { return std::exchange(total, total + (bytes + 255) / 256 * 256); };
    const std::size_t words_at = take(codes ? words_bytes : 0), zeros_at = take(small[0].bytes),
                      scales_at = take(small[1].bytes);
    std::uint8_t* memory;
    if (codes && total <= kKept) {
      landing_ = &scratch.land(driver, total, lock_);
      memory = landing_->buffer.as<std::uint8_t>();
    } else {
      own_ = Buffer(driver, total);
      memory = own_.as<std::uint8_t>();
    }
    small[0].to = memory + zeros_at, small[1].to = memory + scales_at;
    zeros = memory + zeros_at, scales = reinterpret_cast<u16*>(memory + scales_at);
    if (codes) {
      qweight = memory + words_at;
      under_way_ = true;
      scratch.staging.upload(driver, s, memory + words_at, small);
    } else {
      for (const auto& [from, bytes, to] : small) driver->copy(to, from, bytes, CopyKind::kToDevice);
    }
  }
  explicit operator bool() const { return scales != nullptr; }
  ~Brought() {
    if (!under_way_) return;
    try {
      driver_.synchronize();  // nobody will wait for the copies
    } catch (...) {           // nothing can be done about it here
    }
  }
  /// The kernels that read it are launched. Returns whether they may still run after the end of this: it stays.
  bool read() {
    under_way_ = false;
    if (landing_) landing_->read = scratch_.crossings;
    return landing_ != nullptr;
  }

  const void* qweight = nullptr;
  const u8* zeros = nullptr;
  const u16* scales = nullptr;

 private:
  Driver& driver_;
  Scratch& scratch_;
  bool under_way_ = false;
  Buffer own_;
  Scratch::Landing* landing_ = nullptr;
  std::unique_lock<std::mutex> lock_;
};

}  // namespace

void Loading::wait() {
  if (done_) return;
  driver_->synchronize();
  done_ = true;
}

Loading::~Loading() {
  try {
    wait();
  } catch (...) {  // nothing can be done about it here
  }
}

void Matrix::wait() const {
  if (loading_) loading_->wait();
}

Matrix::Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixSource& s, Scratch& scratch)
    : MatrixShape(s),
      driver_(std::move(driver)),
      kernels_(&kernels),
      scratch_(&scratch),
      scratch_bytes_(s.scratch_bytes) {
  if (packed_k > INT32_MAX || n > INT32_MAX)
    fail(ErrorCode::kUnsupported, "QuantizedMatrix: k = {} (packed {}) or n = {} exceeds {}: split the matrix", k,
         packed_k, n, INT32_MAX);
  const auto weights = [&](std::size_t bytes) { return Buffer(driver_, bytes, MemoryKind::kWeights); };
  in_place_ = s.reuse && s.reuse == s.qweight && s.qweight_on_device && codes_shape().fits() && aligned(s.reuse);
  codes = in_place_ ? Buffer::borrowed(s.reuse) : weights(codes_shape().packed_bytes());
  apart = in_place_ && s.device_scales && aligned(s.device_scales) && aligned(s.device_qzeros) &&
          can_be_apart(*this, s.order);
  if (apart)
    meta = Buffer::borrowed(const_cast<std::uint16_t*>(s.device_scales)),
    zeros = Buffer::borrowed(const_cast<std::uint32_t*>(s.device_qzeros));
  else
    meta = weights(
        static_cast<std::size_t>(meta_bytes(static_cast<int>(packed_k), static_cast<int>(n), static_cast<int>(unit))));
  if (mapped) x_map = weights(s.order.source.size() * 4);
  sets_ = static_cast<i32>(s.order.group.size());
  if (!in_order(s.order.group) || (act_order && !apart)) unit_group_ = weights(s.order.group.size() * 4);
  for (auto& buffer : bias16_)
    if (has_bias) buffer = weights(static_cast<std::size_t>(n) * 2);
  if (put(s, nullptr)) loading_ = std::make_unique<Loading>(driver_);
}

namespace {

/// Where the parts of a matrix stand in one memory.
struct Parts {
  explicit Parts(const MatrixShape& s) {
    const auto take = [&](std::size_t bytes) {
      const std::size_t at = total;
      total += (bytes + 255) / 256 * 256;
      return at;
    };
    const int k = static_cast<int>(s.packed_k), n = static_cast<int>(s.n), unit = static_cast<int>(s.unit);
    codes = take(static_cast<std::size_t>(codes_bytes(k, n)));
    meta = take(static_cast<std::size_t>(meta_bytes(k, n, unit)));
    x_map = take(s.mapped ? static_cast<std::size_t>(s.packed_k) * 4 : 0);
    for (auto& place : bias) place = take(s.has_bias ? static_cast<std::size_t>(s.n) * 2 : 0);
    unit_group = take(static_cast<std::size_t>(sets(k, unit)) * 4);
  }
  std::size_t codes, meta, x_map, bias[2], unit_group, total = 0;
};

}  // namespace

std::size_t Matrix::placed_bytes(const MatrixShape& shape) { return Parts(shape).total; }

Matrix::Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixShape& shape, Scratch& scratch,
               void* memory)
    : MatrixShape(shape), driver_(std::move(driver)), kernels_(&kernels), scratch_(&scratch) {
  const Parts parts(shape);
  const auto place = [&](std::size_t at) { return Buffer::borrowed(static_cast<std::uint8_t*>(memory) + at); };
  codes = place(parts.codes), meta = place(parts.meta), unit_group_ = place(parts.unit_group);
  sets_ = sets(static_cast<int>(packed_k), static_cast<int>(unit));
  if (mapped) x_map = place(parts.x_map);
  for (int i = 0; i < 2; ++i)
    if (has_bias) bias16_[i] = place(parts.bias[i]);
}

MetaArgs Matrix::meta_args() const {
  MetaArgs args{};
  args.group = unit_group_.as<const i32>(), args.meta = meta.as<u8>(), args.meta_zeros = zeros.as<u8>();
  args.sets = sets_, args.n = static_cast<i32>(n), args.add = zero_add_;
  return args;
}

void Matrix::launch_meta(const Function& function, const MetaArgs& args, void* stream) const {
  MetaArgs given = args;
  void* parameters[] = {&given};
  LaunchShape shape;
  shape.blocks = meta_blocks(args.sets, args.n), shape.threads = pack_threads();
  driver_->launch(function, shape, stream, parameters);
}

void Matrix::update(const MatrixSource& s, void* stream) {
  wait();
  if (put(s, stream)) driver_->synchronize();
}

bool Matrix::put(const MatrixSource& s, void* stream) {
  PackedGroups groups(s);
  const Repacker repacker(driver_, *kernels_, codes_shape());
  // Compiled, if they must be, before anything is on its way.
  const auto pack = kernels_->keep(choose::pack_source(awq, false, gate_up));
  const auto function = kernels_->keep(choose::meta_source(s.device_scales != nullptr, awq, apart, gate_up));
  Brought brought(driver_, *scratch_, s, codes_shape().words_bytes());  // before the first write
  const bool same_groups = groups_.units() == s.order.group || (!unit_group_.get() && in_order(s.order.group));
  const bool over_itself = in_place_ && s.qweight == codes.get();
  const bool from_host = brought || !same_groups || x_map.get() || has_bias || over_itself;
  const bool fresh = groups_.units().empty();
  if ((from_host && !fresh) || (brought && stream != nullptr))
    driver_->synchronize();  // earlier work of any stream may read what is overwritten here, and copies be on their way
  if (x_map.get()) driver_->copy(x_map.get(), s.order.source.data(), map_bytes(), CopyKind::kToDevice);
  if (!same_groups)
    driver_->copy(unit_group_.get(), s.order.group.data(), s.order.group.size() * 4, CopyKind::kToDevice);
  put_bias(s.bias);
  if (brought) scratch_->cross(*driver_);
  if (over_itself)
    repacker.pack_in_place(codes.get(), x_map.as<const i32>(), *scratch_, scratch_bytes_);
  else
    repacker.pack(s.qweight_on_device ? s.qweight : brought.qweight, x_map.as<const i32>(), codes.get(), stream);

  groups_ = std::move(groups), zero_add_ = s.zero_add;
  MetaArgs args = meta_args();
  args.scales = brought ? brought.scales : s.device_scales;
  args.zeros = brought ? brought.zeros : reinterpret_cast<const u8*>(s.device_qzeros);
  launch_meta(*function, args, stream);
  const bool stays = brought.read();
  if (!from_host && !fresh) return false;
  // No tensor is anywhere else, or none is needed any more; other streams wait.
  if (fresh && stream == nullptr && ((over_itself && apart) || stays)) return true;
  driver_->synchronize();  // tensors may go, and other streams come
  return false;
}

void Matrix::put_bias(const std::vector<float>& values) {
  bias = values;
  for (const bool bf16 : {false, true}) {
    if (!bias16_[bf16].get()) continue;
    std::vector<std::uint16_t> converted;
    for (std::size_t packed = 0; packed < values.size(); ++packed) {
      const float v = values[static_cast<std::size_t>(source_column(static_cast<int>(packed)))];
      converted.push_back(bf16 ? bf16_from_float(v) : half_from_float(v));
    }
    driver_->copy(bias16_[bf16].get(), converted.data(), converted.size() * 2, CopyKind::kToDevice);
  }
}

std::vector<std::int32_t> Matrix::host_map() const {
  std::vector<std::int32_t> source(map_bytes() / 4);
  if (!source.empty()) driver_->copy(source.data(), x_map.get(), map_bytes(), CopyKind::kToHost);
  return source;
}

Buffer Matrix::inverse_map(const std::vector<std::int32_t>& source) const {
  if (source.empty()) return {};
  std::vector<std::int32_t> inverse(static_cast<std::size_t>(k));
  for (std::size_t p = 0; p < source.size(); ++p)
    if (source[p] >= 0) inverse[static_cast<std::size_t>(source[p])] = static_cast<std::int32_t>(p);
  return upload(driver_, inverse.data(), inverse.size() * 4);
}

void Matrix::restore() {
  const Buffer packed = inverse_map(host_map());
  std::shared_ptr<const Function> function;
  if (apart) function = kernels_->keep(choose::unmeta_source(awq));
  driver_->synchronize();  // earlier work may still read what is overwritten here
  Repacker(driver_, *kernels_, codes_shape())
      .unpack_in_place(codes.get(), packed.as<const i32>(), *scratch_, scratch_bytes_);
  if (apart) launch_meta(*function, meta_args(), nullptr);
  driver_->synchronize();
}

std::vector<std::uint32_t> Matrix::unpack_codes(const std::vector<std::int32_t>& source) const {
  const std::int64_t words = k / 8 * n, together = std::min(words, kUnpackBytes / 4);
  std::vector<std::uint32_t> out(static_cast<std::size_t>(words));
  const Buffer packed = inverse_map(source), scratch(driver_, static_cast<std::size_t>(together) * 4);
  const Repacker repacker(driver_, *kernels_, codes_shape());
  for (std::int64_t first = 0; first < words; first += together) {
    const auto count = std::min(together, words - first);
    repacker.unpack(codes.get(), packed.as<const i32>(), scratch.get(), first, count);
    driver_->copy(out.data() + first, scratch.get(), static_cast<std::size_t>(count) * 4, CopyKind::kToHost);
  }
  return out;
}

UnpackedSource Matrix::unpack() const {
  driver_->synchronize();
  const auto source = host_map();
  const int rows = static_cast<int>(packed_k), columns = static_cast<int>(n), set_rows = static_cast<int>(unit);
  const Problem problem{.k = rows, .n = columns, .unit = set_rows, .apart = apart};
  const auto all = static_cast<std::size_t>(meta_bytes(rows, columns, set_rows));
  std::vector<std::uint8_t> packed(apart ? all / kMetaBytes * kScaleBytes : all), packed_zeros(all - packed.size());
  driver_->copy(packed.data(), meta.get(), packed.size(), CopyKind::kToHost);
  if (apart) driver_->copy(packed_zeros.data(), zeros.get(), packed_zeros.size(), CopyKind::kToHost);
  MatmulArgs args{};
  args.meta = packed.data(), args.zeros = packed_zeros.data();
  UnpackedSource to;
  groups_.begin(to, n);
  for (int set = 0; set < sets(rows, set_rows); ++set) {
    const std::int64_t group = groups_.of_unit(set);
    if (group < 0) continue;
    for (int col = 0; col < columns; ++col) {
      const int tile = col % kStripColumns / kTileColumns, g = col % 8, second = col / 8 % 2;
      const SetPlace from = set_place(problem, args, col / kStripColumns, set);
      const auto at = static_cast<std::size_t>(group * n + source_column(col));
      std::memcpy(&to.scales[at], from.scales + scale_offset(tile, g) + 2 * second, 2);
      to.zeros[at] = from.zeros[zero_place(tile, g)] >> (4 * second) & 15;
    }
  }
  if (act_order) to.g_idx = groups_.g_idx(source, unit, k);
  to.qweight = unpack_codes(source);
  to.bias = bias;
  return to;
}

}  // namespace q4::gpu
