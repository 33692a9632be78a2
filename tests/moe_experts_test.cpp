// QuantizedExperts: every way to make them gives the tensors back, updates, and reads checkpoints by pattern.
#include <q4/moe.hpp>

#include "checkpoint_maker.hpp"
#include "moe_case.hpp"

namespace q4::test {
namespace {

GptqMatrix one(std::int64_t expert, MatrixSpec spec = {.k = 264, .n = 80, .group_size = 32}) {
  spec.seed = 40 + static_cast<std::uint64_t>(expert);
  return make_gptq(spec);
}

std::vector<GptqTensors> all_tensors(const std::vector<GptqMatrix>& matrices) { return MoeWeights::tensors(matrices); }

void check_same(const UnpackedMatrix& again, const GptqMatrix& source) {
  CHECK(again.qweight == source.qweight);
  CHECK(again.qzeros == source.qzeros);
  CHECK(again.scales == source.scales);
  const bool ordered = source.spec.act_order == ActOrder::kPermuted || source.spec.act_order == ActOrder::kUneven;
  CHECK(again.g_idx == (ordered ? source.g_idx : std::vector<std::int32_t>{}));
  REQUIRE(again.bias.size() == source.bias.size());
  for (std::size_t i = 0; i < again.bias.size(); ++i) CHECK(again.bias[i] == half_value(source.bias[i]));
}

TEST_CASE("experts: unpack gives every expert's tensors back, gate_up or not") {
  for (const Device device : moe_devices())
    for (const bool gate_up : {false, true})
      for (const auto order : {ActOrder::kNone, ActOrder::kTrivial, ActOrder::kPermuted, ActOrder::kUneven})
        for (const auto zeros : {ZeroFormat::kV1, ZeroFormat::kV2}) {
          INFO(device.str(), " gate_up=", gate_up, " order=", int(order), " zeros=", int(zeros));
          MatrixSpec spec{.k = 256, .n = 176, .group_size = 64, .act_order = order, .zeros = zeros, .bias = true};
          if (order == ActOrder::kUneven) spec.group_size = 16;
          std::vector<GptqMatrix> matrices;
          for (std::int64_t e = 0; e < 5; ++e) matrices.push_back(one(e, spec));
          if (order == ActOrder::kPermuted) {  // the first ones are simpler: memory is laid out again
            spec.act_order = ActOrder::kNone;
            matrices[0] = one(7, spec), matrices[4] = one(8, spec);
          }
          const auto experts =
              QuantizedExperts::from_gptq(shared_runtime(), device, all_tensors(matrices), {.gate_up = gate_up});
          CHECK(experts.experts() == 5);
          CHECK(experts.k() == 256);
          CHECK(experts.n() == 176);
          CHECK(experts.gate_up() == gate_up);
          CHECK(experts.has_bias());
          CHECK(experts.device() == device);
          CHECK(experts.act_order() == (order == ActOrder::kPermuted || order == ActOrder::kUneven));
          CHECK(experts.bytes() >= 5 * 256 * 176 / 2);
          for (std::size_t e = 0; e < matrices.size(); ++e)
            check_same(experts.unpack(static_cast<std::int64_t>(e)), matrices[e]);
        }
}

TEST_CASE("experts: one allocation, whatever their number") {
  const Runtime runtime;
  std::vector<GptqMatrix> matrices;
  for (std::int64_t e = 0; e < 20; ++e) matrices.push_back(one(e));
  const auto experts = QuantizedExperts::from_gptq(runtime, {}, all_tensors(matrices));
  CHECK(runtime.memory().front().allocations == 1);
  CHECK(runtime.memory().front().weights > 0);
  CHECK(runtime.memory().front().weights <= experts.bytes());
}

TEST_CASE("experts: AWQ, and tensors [E, ...]") {
  for (const Device device : moe_devices()) {
    std::vector<GptqMatrix> matrices;
    std::vector<AwqMatrix> awq;
    std::vector<AwqTensors> awq_tensors;
    for (std::int64_t e = 0; e < 4; ++e) matrices.push_back(one(e)), awq.push_back(to_awq(matrices.back()));
    for (const auto& m : awq) awq_tensors.push_back(m.tensors());
    const auto experts = QuantizedExperts::from_awq(shared_runtime(), device, awq_tensors, {.gate_up = true});
    CHECK(experts.is_awq());
    for (std::size_t e = 0; e < 4; ++e) {
      const UnpackedMatrix again = experts.unpack(static_cast<std::int64_t>(e));
      CHECK(again.qweight == awq[e].qweight);
      CHECK(again.qzeros == awq[e].qzeros);
      CHECK(again.scales == awq[e].scales);
    }

    for (auto& m : matrices)
      m = one(&m - matrices.data(),
              {.k = 256, .n = 80, .group_size = 32, .act_order = ActOrder::kPermuted, .bias = true});
    GptqMatrix joined;
    for (const auto& m : matrices) {
      joined.qweight.insert(joined.qweight.end(), m.qweight.begin(), m.qweight.end());
      joined.qzeros.insert(joined.qzeros.end(), m.qzeros.begin(), m.qzeros.end());
      joined.scales.insert(joined.scales.end(), m.scales.begin(), m.scales.end());
      joined.g_idx.insert(joined.g_idx.end(), m.g_idx.begin(), m.g_idx.end());
      joined.bias.insert(joined.bias.end(), m.bias.begin(), m.bias.end());
    }
    GptqTensors stacked;
    stacked.qweight = {joined.qweight.data(), DType::kI32, 4 * 32, 80};
    stacked.qzeros = {joined.qzeros.data(), DType::kI32, 4 * 8, 10};
    stacked.scales = {joined.scales.data(), DType::kF16, 4 * 8, 80};
    stacked.g_idx = TensorView{joined.g_idx.data(), DType::kI32, 4, 256};
    stacked.bias = TensorView{joined.bias.data(), DType::kF16, 4, 80};
    stacked.zeros = ZeroFormat::kV1;
    const auto again = QuantizedExperts::from_stacked(shared_runtime(), device, 4, stacked);
    for (std::size_t e = 0; e < 4; ++e) check_same(again.unpack(static_cast<std::int64_t>(e)), matrices[e]);
  }
}

TEST_CASE("experts: update changes one expert, and plans compute with it") {
  for (const Device device : moe_devices()) {
    MoeWeights w(MoeSpec{.experts = 3, .topk = 2, .act_order = ActOrder::kPermuted});
    MoeExperts experts(shared_runtime(), device, w);
    const MoePlan plan(shared_runtime(), experts.w13, experts.w2, moe_options(w.spec, DType::kF16, 6));
    MatrixSpec other = w.w13[1].spec;
    other.seed = 999;
    w.w13[1] = make_gptq(other), w.dense13[1] = MoeWeights::dense(w.w13[1]);
    auto tensors = w.w13[1].tensors();
    tensors.zeros = ZeroFormat::kV1;
    experts.w13.update(1, tensors);
    for (std::int64_t e = 0; e < 3; ++e) check_same(experts.w13.unpack(e), w.w13[static_cast<std::size_t>(e)]);
    const HostRows x = random_rows(DType::kF16, 6, w.spec.k);
    const Routing routing = random_routing(6, 2, 3);
    HostRows out(DType::kF16, 6, w.spec.n);
    run_moe(shared_runtime(), device, plan, x, routing, out);
    CHECK(relative_error(out, moe_reference(w, x, routing, DType::kF16)) <= tolerance(DType::kF16));
  }
}

/// Three experts of a layer in a checkpoint: w1, w3 and w2 of Mixtral.
struct MixtralFiles {
  MixtralFiles() {
    std::vector<FileTensor> all;
    for (int e = 0; e < 3; ++e)
      for (int part = 0; part < 3; ++part) {
        MatrixSpec spec{.k = part == 2 ? 48 : 128, .n = part == 2 ? 128 : 48, .group_size = 16};
        spec.seed = static_cast<std::uint64_t>(10 * e + part);
        matrices.push_back(make_gptq(spec));
        const auto tensors = file_tensors(fmt_name(e, part), matrices.back());
        all.insert(all.end(), tensors.begin(), tensors.end());
      }
    write_safetensors(folder / "model.safetensors", all);
    write_file(folder / "config.json",
               R"({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}})");
  }
  static std::string fmt_name(int expert, int part) {
    const char* names[] = {"w1", "w3", "w2"};
    return "model.layers.0.block_sparse_moe.experts." + std::to_string(expert) + "." + names[part];
  }
  TempFolder folder;
  std::vector<GptqMatrix> matrices;  ///< [expert][part]
  const std::string experts = "model.layers.0.block_sparse_moe.experts.{}.";
};

TEST_CASE("experts: a checkpoint's are found by pattern, gate and up joined") {
  const MixtralFiles files;
  const Checkpoint checkpoint = Checkpoint::open(files.folder.path());
  for (const Device device : moe_devices()) {
    const auto w13 = QuantizedExperts::load(shared_runtime(), device, checkpoint,
                                            {.patterns = {files.experts + "w1", files.experts + "w3"}});
    const auto w2 = QuantizedExperts::load(shared_runtime(), device, checkpoint, {.patterns = {files.experts + "w2"}});
    CHECK(w13.experts() == 3);
    CHECK(w13.n() == 96);
    CHECK(w13.gate_up());
    CHECK(!w2.gate_up());
    for (std::int64_t e = 0; e < 3; ++e) {
      const UnpackedMatrix joined = w13.unpack(e);
      const PlainMatrix plain = unpack(joined.gptq());
      const auto at = static_cast<std::size_t>(3 * e);
      const PlainMatrix gate = unpack(files.matrices[at].tensors()), up = unpack(files.matrices[at + 1].tensors());
      for (std::int64_t r = 0; r < 128; r += 7)
        for (std::int64_t c = 0; c < 48; ++c) {
          CHECK(plain.weight(r, c) == gate.weight(r, c));
          CHECK(plain.weight(r, 48 + c) == up.weight(r, c));
        }
      check_same(w2.unpack(e), files.matrices[at + 2]);
    }
    const auto last = QuantizedExperts::load(shared_runtime(), device, checkpoint,
                                             {.patterns = {files.experts + "w2"}, .first = 1, .count = 2});
    CHECK(last.experts() == 2);
    check_same(last.unpack(0), files.matrices[5]);
  }
}

TEST_CASE("experts: the slices of two ranks add up to the layer") {
  for (const Device device : moe_devices()) {
    const MoeWeights w(MoeSpec{.experts = 3, .topk = 2, .k = 64, .width = 64, .n = 64, .bias = true});
    const HostRows x = random_rows(DType::kF16, 5, 64);
    const Routing routing = random_routing(5, 2, 3);
    HostRows total(DType::kF32, 5, 64);
    for (std::int64_t i = 0; i < 5 * 64; ++i) total.set(i / 64, i % 64, 0);
    for (const int rank : {0, 1}) {
      const auto w13 = QuantizedExperts::from_gptq(shared_runtime(), device, MoeWeights::tensors(w.w13),
                                                   {.gate_up = true, .slice = Slice::columns(rank, 2)});
      const auto w2 = QuantizedExperts::from_gptq(shared_runtime(), device, MoeWeights::tensors(w.w2),
                                                  {.slice = Slice::rows(rank, 2)});
      CHECK(w13.n() == 64);
      CHECK(w2.k() == 32);
      const MoePlan plan(shared_runtime(), w13, w2, moe_options(w.spec, DType::kF16, 5));
      HostRows out(DType::kF16, 5, 64);
      run_moe(shared_runtime(), device, plan, x, routing, out);
      for (std::int64_t i = 0; i < 5 * 64; ++i)
        total.set(i / 64, i % 64, total.at(i / 64, i % 64) + out.at(i / 64, i % 64));
    }
    CHECK(relative_error(total, moe_reference(w, x, routing, DType::kF16)) <= tolerance(DType::kF16));
  }
}

}  // namespace
}  // namespace q4::test
