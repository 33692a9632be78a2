// Runs a matmul kernel in emulation on one generated matrix, for every m of a list, against the fp64 reference.
#pragma once

#include <doctest/doctest.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "epilogue_reference.hpp"
#include "kernels/lora_mma.h"
#include "kernels/lora_plain.h"
#include "kernels/lora_shrink.h"
#include "kernels/problem.h"
#include "kernels/remap.h"
#include "lora_case.hpp"
#include "packed.hpp"
#include "reference.hpp"
#include "runtime/choose/epilogue.hpp"
#include "tests/emulation/emulation.hpp"

namespace q4::test {

/// One matrix and the Problem a kernel is compiled for; a structural type, so that tests name it as a template
/// argument.
struct EmulatedCase {
  int k = 256, n = 64, group = 128;  ///< of W; group -1: one
  int unit = 128;
  ActOrder act_order = ActOrder::kNone;
  bool fused = true;  ///< act-order by the kernel's own gather, else by the remap kernel
  bool bf16 = false, bias = false;
  bool apart = false;  ///< scales and zeros
  ZeroFormat zeros = ZeroFormat::kV1;
  int spare_rows = 0;       ///< packed rows beyond what a permuted g_idx needs: room for uneven groups
  int scale_divisor = 100;  ///< scales are up to 1 over it
  int x_size = 1;           ///< deviation of x
  /// Row 0 of x has an infinity, row 1 both, row 2 a NaN; then each element of out is looked at by itself. Where fp64
  /// gives an infinity, `kInfinityOrNan` lets a kernel give a NaN too.
  enum class Extremes { kNone, kAsFp64, kInfinityOrNan } extremes = Extremes::kNone;
  Activation activation = Activation::kNone;
  bool residual = false;  ///< in place where m is even, else apart
  bool norm = false;      ///< rows of x are normalized first
  bool lora = false;      ///< rows have adapters of ranks 5, 16 and 40, or none
  bool within = false;    ///< the launch's first blocks shrink, not a launch before

  constexpr int group_rows() const { return group < 0 ? k : group; }
  constexpr bool gather() const {
    return act_order != ActOrder::kNone || (group_rows() < k && group_rows() % unit != 0);
  }
  constexpr int packed_k() const {
    int rows = k;
    if (gather())
      rows = k / group_rows() * round_up(group_rows(), unit) + round_up(k % group_rows(), unit) + spare_rows;
    return round_up(rows, kSlabRows);
  }
  constexpr Problem problem() const {
    const bool fused_gather = gather() && fused;
    return {.k = packed_k(),
            .n = n,
            .unit = unit,
            .x_k = gather() && !fused ? packed_k() : k,
            .gather = fused_gather,
            .bf16 = bf16,
            .bias = bias,
            .apart = apart,
            .activation = choose::kind_of(activation),
            .gated = multiplies(activation),
            .residual = residual,
            .norm = norm,
            .lora = lora};
  }
  constexpr int outs() const { return multiplies(activation) ? n / 2 : n; }
};

/// Bytes at a 16-byte boundary, exactly as many as asked for, so that AddressSanitizer sees an overrun of one.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t size) : data_(static_cast<u8*>(::operator new (size, std::align_val_t{256}))) {}
  explicit DeviceBytes(const std::vector<std::uint8_t>& from) : DeviceBytes(from.size()) {
    std::memcpy(data_, from.data(), from.size());
  }
  ~DeviceBytes() { ::operator delete (data_, std::align_val_t{256}); }
  DeviceBytes(const DeviceBytes&) = delete;
  u8* data() const { return data_; }

 private:
  u8* data_;
};

/// 0 where every element of `out` is what `reference` rounds to, infinities and NaNs included; else infinity.
inline double extreme_error(const EmulatedCase& test, const HostRows& out, const std::vector<double>& reference) {
  const double largest = test.bf16 ? bf16_value(0x7f7f) : 65504;
  const bool or_nan = test.extremes == EmulatedCase::Extremes::kInfinityOrNan;
  int wrong = 0, infinite = 0;
  for (int r = 0; r < out.rows(); ++r)
    for (int c = 0; c < test.n; ++c) {
      const double got = out.at(r, c), want = reference[static_cast<std::size_t>(r) * test.n + c];
      if (std::isnan(want))
        wrong += !std::isnan(got);
      else if (std::fabs(want) > largest * 1.01)
        ++infinite, wrong += !(std::isinf(got) && (got < 0) == (want < 0)) && !(or_nan && r < 3 && std::isnan(got));
      else if (std::fabs(want) < largest * 0.99)  // fp32 sums of a row of this size
        wrong += !(std::fabs(got - want) <= 0.02 * std::fabs(want) + 1e-3 * test.x_size * std::sqrt(test.k));
    }
  CHECK((infinite > 0 || out.rows() == 0));
  return wrong == 0 ? 0 : INFINITY;
}

/// Adapters as kernels have them, and low of rows of x by lora_shrink: on tensor cores, or for m odd without.
struct EmulatedAdapters {
  static constexpr int kStride = 48;
  static constexpr u16 kDirt = 0xffc5;  // what is in memory that other plans have written
  LoraCase source;
  std::vector<std::vector<u16>> a, b;
  std::vector<LoraEntry> table;

  EmulatedAdapters(const EmulatedCase& test, DType type) : source(test.k, test.n, type, {5, 16, 40}) {
    for (std::size_t i = 0; i < source.a.size(); ++i) {
      const int rank = static_cast<int>(source.a[i].rows()), chunks = lora_chunks(rank);
      const auto bits = [&](const HostRows& rows, int row, int column) {
        return static_cast<const u16*>(rows.data())[row * rows.row_stride() + column];
      };
      a.emplace_back(lora_a_elements(test.k, rank)), b.emplace_back(lora_b_elements(test.n, rank));
      for (int r = 0; r < rank; ++r) {
        for (int k = 0; k < test.k; ++k) a[i][lora_a_place(test.k, k, r)] = bits(source.a[i], r, k);
        for (int c = 0; c < test.n; ++c) {
          const int half = test.n / 2, place = c % half / 8 * 16 + c / half * 8 + c % 8;
          b[i][lora_b_place(chunks, r, multiplies(test.activation) ? place : c)] = bits(source.b[i], c, r);
        }
      }
      table.push_back({a[i].data(), b[i].data(), chunks, source.scales[i]});
    }
  }
  void shrink(MatmulArgs& args, const HostRows& x, const std::vector<i32>& rows, std::vector<u16>& low,
              bool within) const {
    const bool bf16 = source.type == DType::kBF16;
    const auto maker = args.m % 4 == 0 ? kLoraBeside : kLoraBefore;
    if (within) {  // kept from one m to the next, as a workspace is
      if (low.empty()) low.assign(1 << 20, kDirt);
      args.lora = {table.data(), rows.data(), low.data(), kStride, source.adapters(), kLoraWithin, kLoraParts};
      return;
    }
    low.assign(static_cast<std::size_t>(args.m * kStride), bf16 ? 0x7fff : 0x7e00);
    args.lora = {table.data(), rows.data(), low.data(), kStride, source.adapters(), maker, 0};
    const int cut = args.m % 4 ? 1 : args.m % 16 ? 2 : 4;  // of k, over a cluster
    const LoraShrinkArgs shrink_args{args.lora,
                                     low.data(),
                                     static_cast<const u16*>(x.data()),
                                     x.row_stride(),
                                     args.m,
                                     static_cast<i32>(x.cols()),
                                     3,
                                     {args.m % 5 + 1, cut}};
    const auto run = [&]<LoraShrinkConfig C> {
      emulation::emulate({.grid = C.mma ? grid(C, args.m, shrink_args.split) : args.m * 3,
                          .threads = threads(C),
                          .shared_bytes = shared_bytes(C),
                          .cluster = C.mma ? cut : 1},
                         [&] {
                           if constexpr (C.mma != 0)
                             lora_shrink<C>(shrink_args);
                           else
                             lora_shrink_plain<C>(shrink_args);
                         });
    };
    if (args.m == 0) return;
    if (args.m % 2) return bf16 ? run.operator()<{.bf16 = 1, .mma = 0}>() : run.operator()<{.mma = 0}>();
    if (args.m > 8)
      return bf16 ? run.operator()<{.bf16 = 1, .ring = 65536, .cuts = 4}>()
                  : run.operator()<{.ring = 131072, .cuts = 4}>();
    return bf16 ? run.operator()<{.bf16 = 1, .rows = 8, .octets = 1, .ring = 49152, .cuts = 4}>()
                : run.operator()<{.rows = 8, .octets = 1, .ring = 49152, .cuts = 4}>();
  }
};

/// x / sqrt(mean(x^2) + epsilon) * weight of each row.
inline HostRows normed(const HostRows& x, const HostRows& weight, double epsilon) {
  HostRows result(DType::kF32, x.rows(), x.cols());
  for (int r = 0; r < x.rows(); ++r) {
    double sum = 0;
    for (int c = 0; c < x.cols(); ++c) sum += x.at(r, c) * x.at(r, c);
    for (int c = 0; c < x.cols(); ++c)
      result.set(r, c, x.at(r, c) / std::sqrt(sum / x.cols() + epsilon) * weight.at(0, c));
  }
  return result;
}

/// The largest relative error over `rows`; out starts as NaN and the padding between its rows must stay so.
/// `launch(args)` runs the kernel with the given arguments. `workspace` bytes are zeroed once, then reused.
template <class LaunchKernel>
double largest_error(const EmulatedCase& test, const std::vector<int>& rows, std::size_t workspace,
                     const LaunchKernel& launch) {
  const GptqMatrix gptq = make_gptq({.k = test.k,
                                     .n = test.n,
                                     .group_size = test.group,
                                     .act_order = test.act_order,
                                     .zeros = test.zeros,
                                     .bias = test.bias,
                                     .scale = 1.0 / test.scale_divisor});
  const PlainMatrix plain = unpack(gptq.tensors());
  const bool pairs = multiplies(test.activation);
  const PlainMatrix in_order = pairs ? paired(plain) : plain;
  const PackedMatrix packed = pack_reference(in_order, test.unit, test.packed_k());
  REQUIRE(packed.k == test.packed_k());
  REQUIRE(packed.identity == !test.gather());
  const DType dtype = test.bf16 ? DType::kBF16 : DType::kF16;
  const ApartMeta pieces = apart(packed);
  const DeviceBytes codes(packed.codes), meta(test.apart ? pieces.scales : packed.meta), zeros(pieces.zeros),
      scratch(workspace);
  std::memset(scratch.data(), 0, workspace);
  std::vector<u16> bias;
  for (const double b : in_order.bias) bias.push_back(test.bf16 ? bf16_bits(b) : half_bits(b));
  PlainMatrix exact = plain;  // with the bias as the kernel gets it
  for (auto& b : exact.bias) b = test.bf16 ? bf16_value(bf16_bits(b)) : half_value(half_bits(b));

  const EmulatedAdapters adapters(test, dtype);
  std::vector<u16> low;
  double worst = 0;
  for (const int m : rows) {
    const int x_stride = test.k + 8, out_stride = test.outs() + 16;
    HostRows x(dtype, m, test.k, x_stride), remapped(dtype, m, packed.k), out(dtype, m, test.outs(), out_stride);
    Random random(static_cast<std::uint64_t>(m) + 5);
    for (int r = 0; r < m; ++r)
      for (int c = 0; c < test.k; ++c) x.set(r, c, test.x_size * random.normal());
    if (test.extremes != EmulatedCase::Extremes::kNone) {
      if (m > 0) x.set(0, test.k / 2, INFINITY);
      if (m > 1) x.set(1, 3, INFINITY), x.set(1, test.k - 1, -INFINITY);
      if (m > 2) x.set(2, 7, NAN);
    }
    MatmulArgs args{};
    args.codes = codes.data(), args.meta = meta.data(), args.bias = bias.data(), args.m = m;
    if (test.apart) args.zeros = zeros.data();
    args.x = static_cast<const u16*>(x.data()), args.x_stride = x_stride;
    args.out = static_cast<u16*>(out.data()), args.out_stride = out_stride;
    args.workspace = scratch.data();
    const HostRows residual = random_rows(dtype, m, test.outs(), 11, test.outs() + 24);
    if (test.residual) {
      const bool in_place = m % 2 == 0;
      for (int r = 0; r < m && in_place; ++r)
        for (int c = 0; c < test.outs(); ++c) out.set(r, c, residual.at(r, c));
      args.residual = in_place ? args.out : static_cast<const u16*>(residual.data());
      args.residual_stride = in_place ? out_stride : residual.row_stride();
    }
    const std::vector<i32> rows_adapters = adapters.source.rows(m);
    if (test.lora) adapters.shrink(args, x, rows_adapters, low, test.within);
    const HostRows weight = random_rows(dtype, 1, test.k, 21);
    if (test.norm) {
      for (int r = 0; r < m; ++r)  // rows of many sizes
        for (int c = 0; c < test.k; ++c) x.set(r, c, x.at(r, c) * std::pow(3.0, r % 5 - 2));
      args.norm = static_cast<const u16*>(weight.data()), args.norm_epsilon = 0.01f;
    }
    if (test.gather()) args.x_map = packed.x_map.data();
    if (test.gather() && !test.fused) {
      constexpr RemapConfig kRemap{.threads = 64, .staged = 1};
      const RemapArgs remap_args{
          args.x, static_cast<u16*>(remapped.data()), args.x_map, x_stride, packed.k, m, packed.k, test.k, 2};
      emulation::emulate({.grid = 3, .threads = kRemap.threads, .shared_bytes = test.k * 2},
                         [&] { remap<kRemap>(remap_args); });
      args.x = remap_args.x_new, args.x_stride = packed.k, args.x_map = nullptr;
    }
    launch(args);
    CAPTURE(m);
    if (test.within) {  // no tag is left for the next launch
      int tags = 0;
      for (std::size_t i = 0; i + 1 < low.size(); i += 2) tags += low[i] == 0xa3e1 && low[i + 1] == 0xffc5;
      CHECK(tags == 0);
    }
    CHECK(out.padding_intact());
    auto sums = product(test.norm ? normed(x, weight, args.norm_epsilon) : x, exact);
    if (test.lora) adapters.source.add(sums, x, rows_adapters);
    const auto expected = finished(sums, m, test.n, test.activation, test.residual ? &residual : nullptr);
    const bool plain_numbers = test.extremes == EmulatedCase::Extremes::kNone;
    const double error = plain_numbers ? relative_error(out, expected) : extreme_error(test, out, expected);
    if (!(error <= worst)) worst = error;  // a NaN stays
  }
  return worst;
}

}  // namespace q4::test
