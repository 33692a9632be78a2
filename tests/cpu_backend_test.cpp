// The CPU backend against the fp64 reference: every path, shape, dtype and number of threads.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "cpu_device.hpp"

namespace q4::test {

TEST_CASE("cpu: every group size, with tails of k and n") {
  CpuDevice cpu;
  for (const std::int64_t group : {8, 16, 24, 32, 64, 128, 256, -1}) {
    MatrixSpec spec;
    spec.k = group == 24 ? 24 * 11 : 768;
    spec.n = 136;
    spec.group_size = group;
    spec.bias = true;
    spec.scale = 0.5;
    check_all(*cpu.device, spec, {1, 5, 17});
  }
}

TEST_CASE("cpu: odd shapes") {
  CpuDevice cpu;
  const struct {
    std::int64_t k, n, group;
  } shapes[] = {{8, 8, 8},        {8, 8, -1},       {2752, 40, 128}, {3456, 72, 128}, {1000, 8, -1},
                {29568, 24, 128}, {231 * 8, 64, 8}, {136, 200, 128}, {5504, 8, 64},   {128, 1032, 32}};
  for (const auto& shape : shapes) {
    MatrixSpec spec;
    spec.k = shape.k;
    spec.n = shape.n;
    spec.group_size = shape.group;
    check_all(*cpu.device, spec, {1, 3});
  }
}

TEST_CASE("cpu: act-order, even and uneven groups") {
  CpuDevice cpu;
  for (const ActOrder order : {ActOrder::kTrivial, ActOrder::kPermuted, ActOrder::kUneven}) {
    for (const std::int64_t group : {8, 32, 128}) {
      MatrixSpec spec;
      spec.k = 640;
      spec.n = 72;
      spec.group_size = group;
      spec.act_order = order;
      spec.zeros = group == 32 ? ZeroFormat::kV2 : ZeroFormat::kV1;
      check_all(*cpu.device, spec, {1, 4, 20});
    }
  }
}

TEST_CASE("cpu: AWQ codes, symmetric and stored zeros") {
  CpuDevice cpu;
  MatrixSpec spec;
  spec.k = 384;
  spec.n = 88;
  spec.group_size = 64;
  check_all(*cpu.device, spec, {1, 9}, true);
  spec.stored_zeros = StoredZeros::kSymmetric;
  check_all(*cpu.device, spec, {1, 9});
}

TEST_CASE("cpu: every number of rows up to and over each tile") {
  CpuDevice cpu;
  MatrixSpec spec;
  spec.k = 256;
  spec.n = 72;
  spec.group_size = 64;
  std::vector<std::int64_t> rows;
  for (std::int64_t m = 1; m <= 34; ++m) rows.push_back(m);
  for (const std::int64_t m : {127, 128, 129, 145, 511, 512, 513, 530}) rows.push_back(m);
  check_all(*cpu.device, spec, rows);
}

TEST_CASE("cpu: the same bits for every number of threads") {
  MatrixSpec spec;
  spec.k = 512;
  spec.n = 520;
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const std::int64_t m : {1, 6, 33, 300}) {
      const HostRows x = random_rows(type, m, spec.k);
      HostRows first;
      for (int threads = 1; threads <= 4; ++threads) {
        CpuDevice cpu(threads);
        const Packed packed = pack(*cpu.device, spec);
        HostRows out(type, m, spec.n);
        run(*cpu.device, packed, options_for(m, type), x, out);
        if (threads == 1) first = out;
        CHECK(same_bits(out, first));
      }
    }
  }
}

TEST_CASE("cpu: the tuner's choices of rows and threads change no bit") {
  CpuDevice cpu(3);
  MatrixSpec spec;
  spec.k = 256;
  spec.n = 136;
  const Packed packed = pack(*cpu.device, spec);
  for (const std::int64_t m : {3, 300}) {
    const HostRows x = random_rows(DType::kF16, m, spec.k);
    const auto names = cpu.device->plan(packed.matrix, options_for(m, DType::kF16), nullptr)->tactics(m);
    std::map<std::string, HostRows> first;  // of each path
    int variants = 0;
    for (const std::string& name : names) {
      HostRows out(DType::kF16, m, spec.n);
      run(*cpu.device, packed, options_for(m, DType::kF16, name), x, out);
      const std::string path = name.substr(0, name.find_first_of(' ', name.find("math=")));
      const auto [same, is_new] = first.try_emplace(path, out);
      CAPTURE(name);
      CHECK(same_bits(out, same->second));
      variants += !is_new;
    }
    CHECK(variants >= 2);
    TuningRecord record;
    record.buckets = {{m, names.back() == "reconstruct+blas" ? names[names.size() - 2] : names.back()}};
    CHECK(cpu.device->plan(packed.matrix, options_for(m, DType::kF16), &record)->tactic(m) == record.buckets[0].tactic);
  }
}

TEST_CASE("cpu: k too long for the second-level cache goes in parts, with the same bits") {
  MatrixSpec spec;
  spec.k = 8320;
  spec.n = 264;
  for (const int threads : {1, 3}) {  // five tiles are too few for three threads: k in one part
    CpuDevice cpu(threads);
    check_all(*cpu.device, spec, {140});
    const Packed packed = pack(*cpu.device, spec);
    for (const std::int64_t m : {20, 140}) {
      const HostRows x = random_rows(DType::kF32, m, spec.k);
      HostRows parts(DType::kF32, m, spec.n), whole = parts;
      PlanOptions options = options_for(m, DType::kF32);
      options.reconstruct_from = -1;
      const std::string tactic = cpu.device->plan(packed.matrix, options, nullptr)->tactic(m);
      if (!tactic.starts_with("cpu-amx")) return skip("no AMX: nothing else takes k in parts");
      run(*cpu.device, packed, options_for(m, DType::kF32, tactic), x, parts);
      run(*cpu.device, packed, options_for(520, DType::kF32, tactic + " rows=512"), x, whole);
      CHECK(same_bits(parts, whole));
    }
  }
}

TEST_CASE("cpu: batch_invariant rows have the same bits in every batch") {
  for_each_isa([](CpuDevice& cpu) {
    MatrixSpec spec;
    spec.k = 384;
    spec.n = 72;
    const Packed packed = pack(*cpu.device, spec);
    for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
      const HostRows x = random_rows(type, 200, spec.k);
      const std::size_t row_bytes = static_cast<std::size_t>(spec.n) * size_of(type);
      PlanOptions options = options_for(200, type);
      options.batch_invariant = true;
      options.reconstruct_from = 8;  // must not matter
      const auto plan = cpu.device->plan(packed.matrix, options, nullptr);
      HostRows all(type, 200, spec.n), some(type, 200, spec.n);
      plan->run(nullptr, x.data(), spec.k, all.data(), spec.n, 200, nullptr);
      for (const std::int64_t m : {1, 2, 7, 12, 13, 31, 64, 129}) {
        plan->run(nullptr, x.data(), spec.k, some.data(), spec.n, m, nullptr);
        CHECK(std::memcmp(some.data(), all.data(), row_bytes * static_cast<std::size_t>(m)) == 0);
      }
      const auto* last =
          static_cast<const std::byte*>(x.data()) + 199 * static_cast<std::size_t>(spec.k) * size_of(type);
      plan->run(nullptr, last, spec.k, some.data(), spec.n, 1, nullptr);
      CHECK(std::memcmp(some.data(), static_cast<std::byte*>(all.data()) + 199 * row_bytes, row_bytes) == 0);
    }
  });
}

TEST_CASE("cpu: NaN scales reach their column alone; large values do not overflow inside") {
  CpuDevice cpu;
  MatrixSpec spec;
  spec.k = 256;
  spec.n = 72;
  const GptqMatrix gptq = make_gptq(spec);
  const PlainMatrix plain = unpack(gptq.tensors());
  MatrixSource source = source_of(plain, gptq.qweight.data(), 128, false, {});
  source.scales[static_cast<std::size_t>(spec.n + 3)] = 0x7E00;  // group 1, column 3
  const Packed packed{plain, cpu.device->pack(source)};
  for (const std::string& tactic : tactics(*cpu.device, packed, DType::kF16)) {
    const HostRows x = random_rows(DType::kF16, 5, spec.k);
    HostRows out(DType::kF16, 5, spec.n);
    run(*cpu.device, packed, options_for(5, DType::kF16, tactic), x, out);
    CAPTURE(tactic);
    for (std::int64_t row = 0; row < 5; ++row)
      for (std::int64_t col = 0; col < spec.n; ++col) CHECK(std::isnan(out.at(row, col)) == (col == 3));
  }

  // Sums of 60000 q exceed fp16 by far; the scales bring them back.
  spec.scale = 1;
  const Packed large = pack(*cpu.device, spec);
  HostRows x(DType::kF16, 3, spec.k);
  for (std::int64_t row = 0; row < 3; ++row)
    for (std::int64_t col = 0; col < spec.k; ++col) x.set(row, col, col % 2 == 0 ? 60000 : 1e-7);
  PlainMatrix tiny = large.plain;
  for (double& scale : tiny.scales) scale = half_value(half_bits(scale / 4096));
  const GptqMatrix codes = make_gptq(spec);
  const Packed scaled{tiny, cpu.device->pack(source_of(tiny, codes.qweight.data(), 128, false, {}))};
  const auto expected = product(x, tiny);
  for (const std::string& tactic : tactics(*cpu.device, scaled, DType::kF16)) {
    HostRows out(DType::kF16, 3, spec.n);
    run(*cpu.device, scaled, options_for(3, DType::kF16, tactic), x, out);
    CAPTURE(tactic);
    CHECK(relative_error(out, expected) <= tolerance(DType::kF16));
  }
}

TEST_CASE("cpu: plans of several threads at once") {
  CpuDevice cpu(3);
  MatrixSpec spec;
  spec.k = 512;
  spec.n = 264;
  const Packed packed = pack(*cpu.device, spec);
  const HostRows x = random_rows(DType::kF16, 40, spec.k);
  HostRows first(DType::kF16, 40, spec.n);
  run(*cpu.device, packed, options_for(40, DType::kF16), x, first);
  std::vector<HostRows> outs(4, HostRows(DType::kF16, 40, spec.n));
  std::vector<std::thread> users;
  for (HostRows& out : outs) {
    users.emplace_back([&] {
      const auto plan = cpu.device->plan(packed.matrix, options_for(40, DType::kF16), nullptr);
      for (int i = 0; i < 50; ++i) plan->run(nullptr, x.data(), spec.k, out.data(), spec.n, 40, nullptr);
    });
  }
  for (std::thread& user : users) user.join();
  for (const HostRows& out : outs) CHECK(same_bits(out, first));
}

TEST_CASE("cpu: tactics can be forced, unknown ones are refused, tuned ones are used") {
  CpuDevice cpu;
  const Packed packed = pack(*cpu.device, MatrixSpec{});
  for (const std::string& tactic : tactics(*cpu.device, packed, DType::kF16))
    CHECK(cpu.device->plan(packed.matrix, options_for(64, DType::kF16, tactic), nullptr)->tactic(64) == tactic);
  CHECK_THROWS_AS(cpu.device->plan(packed.matrix, options_for(1, DType::kF16, "gpu"), nullptr), Error);
  CHECK_THROWS_AS(cpu.device->plan(packed.matrix, options_for(1, DType::kI32), nullptr), Error);

  TuningRecord record;
  record.buckets = {{4, "cpu-panel math=fp32"},
                    {8, "cpu-direct math=fp32"},
                    {64, "no such thing"}};  // a tactic of another machine is ignored
  const auto plan = cpu.device->plan(packed.matrix, options_for(64, DType::kF16), &record);
  const auto untuned = cpu.device->plan(packed.matrix, options_for(64, DType::kF16), nullptr);
  CHECK(plan->tactic(3) == "cpu-panel math=fp32");
  CHECK(plan->tactic(5) == "cpu-direct math=fp32");
  for (const std::int64_t m : {2, 16, 64})  // the record says that reconstructing never wins
    if (!untuned->tactic(m).starts_with("reconstruct")) CHECK(plan->tactic(m) == untuned->tactic(m));
}

TEST_CASE("cpu: column_remap") {
  CpuDevice cpu;
  const HostRows x = random_rows(DType::kF16, 5, 24, 7, 32);
  HostRows out(DType::kF16, 5, 13, 16);
  std::vector<std::int32_t> map;
  for (std::int32_t i = 0; i < 13; ++i) map.push_back((i * 7 + 3) % 24);
  cpu.device->column_remap(nullptr, x.data(), 32, 24, out.data(), 16, map.data(), 13, 5);
  for (std::int64_t row = 0; row < 5; ++row)
    for (std::int64_t col = 0; col < 13; ++col)
      CHECK(out.at(row, col) == x.at(row, map[static_cast<std::size_t>(col)]));
  CHECK(out.padding_intact());
}

}  // namespace q4::test
