// kernels/layout.h: the drawing's own example, every place used once, and the pack kernel against a second packing.
#include "kernels/layout.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "epilogue_reference.hpp"
#include "kernels/pack.h"
#include "on_threads.hpp"
#include "packed.hpp"
#include "tests/emulation/emulation.hpp"

namespace q4::test {
namespace {

TEST_CASE("the drawing's word") {
  // Lane 4 g + t = 4 * 3 + 1 of word 0: c = 2; bits 3..0 are row c, column g; 7..4 row c, column g + 8; 11..8 row c +
  // 8; ...
  const int rows[8] = {2, 2, 10, 10, 3, 3, 11, 11}, columns[8] = {3, 11, 3, 11, 3, 11, 3, 11};
  for (int i = 0; i < 8; ++i) {
    CHECK(nibble_row(i, 1) == rows[i]);
    CHECK(nibble_column(i, 3) == columns[i]);
  }
  CHECK(codes_offset(256, 0, 0, 0, 1, 0) == 512);
  CHECK(codes_offset(256, 0, 0, 3, 1, 31) == 4096 - 16);
  CHECK(codes_offset(256, 1, 1, 0, 0, 0) == 3 * 4096);
  CHECK(meta_offset(256, 64, 1, 2) == 6 * 160);
  CHECK(scale_offset(0, 0) == 0);
  CHECK(scale_offset(3, 7) == 124);
  CHECK(zero_offset(0, 0) == 128);
  CHECK(zero_offset(3, 7) == 159);
}

TEST_CASE("index functions are bijections") {
  constexpr int k = 384, n = 136;
  std::vector<int> nibbles(static_cast<std::size_t>(codes_bytes(k, n)) * 2), elements(k * 192);
  for (int strip = 0; strip < strips(n); ++strip)
    for (int slab = 0; slab < slabs(k); ++slab)
      for (int tile = 0; tile < 4; ++tile)
        for (int half = 0; half < 2; ++half)
          for (int lane = 0; lane < 32; ++lane)
            for (int word = 0; word < 4; ++word)
              for (int i = 0; i < 8; ++i) {
                ++nibbles[(codes_offset(k, strip, slab, tile, half, lane) + 4 * word) * 2 + i];
                const int row = slab * 128 + half * 64 + word * 16 + nibble_row(i, lane & 3);
                ++elements[row * 192 + strip * 64 + tile * 16 + nibble_column(i, lane >> 2)];
              }
  for (const int count : nibbles) REQUIRE(count == 1);
  for (const int count : elements) REQUIRE(count == 1);
  for (int p = 0; p < k; ++p)
    for (int col = 0; col < n; ++col) {  // code_place() is the inverse
      const CodePlace place = code_place(k, p, col);
      const int block = static_cast<int>(place.word / 1024), inside = static_cast<int>(place.word % 1024);
      const int lane = inside / 4 % 32, half = inside / 128 % 2, tile = inside / 256;
      REQUIRE(block % 3 * 128 + half * 64 + inside % 4 * 16 + nibble_row(place.nibble, lane & 3) == p);
      REQUIRE(block / 3 * 64 + tile * 16 + nibble_column(place.nibble, lane >> 2) == col);
    }

  for (const int unit : {16, 32, 64, 128, 256, 512}) {
    std::vector<int> bytes(static_cast<std::size_t>(meta_bytes(k, n, unit)));
    for (int strip = 0; strip < strips(n); ++strip)
      for (int set = 0; set < sets(k, unit); ++set)
        for (int tile = 0; tile < 4; ++tile)
          for (int g = 0; g < 8; ++g) {
            const auto at = meta_offset(k, unit, strip, set);
            for (int i = 0; i < 4; ++i) ++bytes[at + scale_offset(tile, g) + i];
            ++bytes[at + zero_offset(tile, g)];
          }
    for (const int count : bytes) REQUIRE(count == 1);
  }
}

/// Runs the pack kernel and compares with the second packing, byte for byte.
template <PackConfig C>
void check_pack(const PlainMatrix& plain, const std::uint32_t* qweight, int unit) {
  const PackedMatrix expected = pack_reference(C.pairs ? paired(plain) : plain, unit);
  CAPTURE(unit);
  CAPTURE(plain.k);
  CAPTURE(plain.n);
  CHECK(expected.codes.size() == static_cast<std::size_t>(codes_bytes(expected.k, expected.n)));
  CHECK(expected.meta.size() == static_cast<std::size_t>(meta_bytes(expected.k, expected.n, unit)));
  std::vector<std::uint32_t> codes(expected.codes.size() / 4, 0xffffffffu);
  PackArgs args{};
  args.qweight = qweight, args.codes = codes.data();
  args.source = expected.identity ? nullptr : expected.x_map.data();
  args.source_k = expected.x_k, args.k = expected.k, args.n = expected.n;
  emulation::emulate(
      {.grid = pack_blocks(expected.k, expected.n), .threads = pack_threads(), .shared_bytes = pack_shared_bytes()},
      [&] { pack<C>(args); });
  CHECK(std::memcmp(codes.data(), expected.codes.data(), expected.codes.size()) == 0);

  std::vector<i32> packed(static_cast<std::size_t>(plain.k));
  for (int p = 0; p < expected.k && !expected.identity; ++p)
    if (args.source[p] >= 0) packed[static_cast<std::size_t>(args.source[p])] = p;
  const auto words = static_cast<std::size_t>(plain.k / 8 * plain.n);
  std::vector<u32> again(words, 0xffffffffu);
  for (std::size_t first = 0; first < words; first += words / 2 + 1) {  // in two parts
    const UnpackArgs back{codes.data(),
                          expected.identity ? nullptr : packed.data(),
                          again.data() + first,
                          static_cast<i64>(first),
                          static_cast<i64>(std::min(words / 2 + 1, words - first)),
                          expected.k,
                          expected.n};
    emulation::emulate({.grid = unpack_blocks(back.count), .threads = pack_threads()}, [&] { unpack<C>(back); });
  }
  CHECK(std::memcmp(again.data(), qweight, words * 4) == 0);
}

TEST_CASE("the pack kernel follows the drawing, and unpack undoes it") {
  const MatrixSpec specs[] = {{.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kUneven},
                              {.k = 264, .n = 72, .group_size = 128},
                              {.k = 128, .n = 8, .group_size = 24, .zeros = ZeroFormat::kV2},
                              {.k = 264, .n = 144, .group_size = 64},
                              {.k = 200, .n = 136, .group_size = 40, .act_order = ActOrder::kPermuted}};
  for (const auto& spec : specs) {
    const GptqMatrix gptq = make_gptq(spec);
    for (const int unit : {16, 32, 64, 128}) {
      check_pack<PackConfig{}>(unpack(gptq.tensors()), gptq.qweight.data(), unit);
      if (skipped_on_threads()) return;  // one case is enough there
    }
    if (spec.act_order != ActOrder::kNone) continue;
    const AwqMatrix awq = to_awq(gptq);
    check_pack<PackConfig{.awq = 1}>(unpack(awq.tensors()), awq.qweight.data(), 32);
    if (spec.n % 16 != 0) continue;
    check_pack<PackConfig{.pairs = 1}>(unpack(gptq.tensors()), gptq.qweight.data(), 64);
    check_pack<PackConfig{.awq = 1, .pairs = 1}>(unpack(awq.tensors()), awq.qweight.data(), 64);
  }
}

/// Packs scales and zeros over themselves, compares, and gives them back.
template <MetaConfig C>
void check_meta_in_place(const PlainMatrix& plain, std::vector<std::uint16_t> scales, std::vector<std::uint32_t> qzeros,
                         int add) {
  const PackedMatrix expected = pack_reference(plain, static_cast<int>(plain.k / plain.groups));
  const ApartMeta places = apart(expected);
  const auto scales_before = scales;
  const auto zeros_before = qzeros;
  MetaArgs args{};
  args.scales = scales.data(), args.zeros = reinterpret_cast<const u8*>(qzeros.data());
  args.meta = reinterpret_cast<u8*>(scales.data()), args.meta_zeros = reinterpret_cast<u8*>(qzeros.data());
  args.group = expected.group.data(), args.sets = static_cast<i32>(expected.group.size());
  args.n = expected.n, args.add = add;
  const emulation::Launch launch{.grid = meta_blocks(args.sets, args.n), .threads = pack_threads()};
  emulation::emulate(launch, [&] { pack_meta<C>(args); });
  REQUIRE(places.scales.size() == scales.size() * 2);
  REQUIRE(places.zeros.size() == qzeros.size() * 4);
  CHECK(std::memcmp(scales.data(), places.scales.data(), places.scales.size()) == 0);
  CHECK(std::memcmp(qzeros.data(), places.zeros.data(), places.zeros.size()) == 0);
  CHECK(scales != scales_before);
  emulation::emulate(launch, [&] { unpack_meta<C>(args); });
  CHECK(scales == scales_before);
  CHECK(qzeros == zeros_before);
}

TEST_CASE("scales and zeros are packed over themselves, and given back") {
  for (const auto zeros : {ZeroFormat::kV1, ZeroFormat::kV2}) {
    GptqMatrix gptq = make_gptq({.k = 640, .n = 192, .group_size = 128, .zeros = zeros});
    gptq.qzeros[0] = 0xf00ff1efu;  // a stored 15 is zero 0 in format v1
    const int add = zeros == ZeroFormat::kV1 ? 1 : 0;
    auto tensors = gptq.tensors();
    tensors.zeros = zeros;
    check_meta_in_place<MetaConfig{.words = 1, .apart = 1}>(unpack(tensors), gptq.scales, gptq.qzeros, add);
  }
  const AwqMatrix awq = to_awq(make_gptq({.k = 256, .n = 64, .group_size = 64, .zeros = ZeroFormat::kV2}));
  check_meta_in_place<MetaConfig{.words = 1, .awq = 1, .apart = 1}>(unpack(awq.tensors()), awq.scales, awq.qzeros, 0);
}

}  // namespace
}  // namespace q4::test
