// Multiplies ones by a matrix of a checkpoint, on the CPU: checkpoint MODEL NAME
#include <cstdio>
#include <q4/q4.hpp>
#include <vector>

int main(int count, char** arguments) try {
  if (count != 3) return std::fprintf(stderr, "usage: checkpoint MODEL NAME\n"), 2;
  const q4::Runtime runtime;
  const q4::Device cpu = q4::Device::parse("cpu");  // "cuda:0": x and out are then device memory
  const auto W = q4::Checkpoint::open(arguments[1]).load(runtime, cpu, arguments[2]);
  const q4::MatmulPlan plan(runtime, W, {.max_m = 16, .activation = q4::DType::kF32});
  std::vector<float> x(16 * W.k(), 1.0f), out(16 * W.n());
  plan.run(q4::Stream(), {x.data()}, {out.data()}, 16);  // on a GPU a launch and nothing else
  std::printf("%zu bytes of weights, %s: out = %g\n", W.bytes(), plan.tactic(16).c_str(), out[0]);
} catch (const q4::Error& error) {
  return std::fprintf(stderr, "%s: %s\n", q4::to_string(error.code()), error.what()), 1;
}
