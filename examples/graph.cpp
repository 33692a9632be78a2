// A CUDA graph of two multiplications on a stream of the caller: captured once, replayed at will. Exit 77: no GPU.
#include <cuda_runtime_api.h>
#include <cstdio>
#include <q4/q4.hpp>
#include <stdexcept>
#include <vector>

static void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

int main() try {
  const q4::Runtime runtime;
  const q4::Device gpu = runtime.best_device();
  if (gpu.kind != q4::BackendKind::kCuda) {
    std::puts("no CUDA device");
    return 77;
  }
  const std::int64_t k = 4096, n = 4096, groups = k / 128;
  std::vector<std::uint32_t> qweight(k / 8 * n, 0x99999999), qzeros(groups * n / 8, 0x77777777);  // W is all 9 - 8 = 1
  std::vector<std::uint16_t> scales(groups * n, 0x1c00);                                          // times fp16 2^-8
  q4::GptqTensors tensors;
  tensors.qweight = {qweight.data(), q4::DType::kI32, k / 8, n};
  tensors.qzeros = {qzeros.data(), q4::DType::kI32, groups, n / 8};
  tensors.scales = {scales.data(), q4::DType::kF16, groups, n};
  const q4::MatmulPlan plan(runtime, q4::QuantizedMatrix::from_gptq(runtime, gpu, tensors), {.max_m = 1});

  std::vector<std::uint16_t> host(k, 0x3c00);  // fp16 1
  void *a = nullptr, *b = nullptr;
  check(cudaMalloc(&a, k * 2));
  check(cudaMalloc(&b, n * 2));
  check(cudaMemcpy(a, host.data(), k * 2, cudaMemcpyHostToDevice));

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t step;
  check(cudaStreamCreate(&stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  plan.run({stream}, {a}, {b}, 1);
  plan.run({stream}, {b}, {a}, 1);  // one stream: the launches are in order and may share the plan's workspace
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&step, graph, 0));
  check(cudaGraphLaunch(step, stream));
  check(cudaStreamSynchronize(stream));

  check(cudaMemcpy(host.data(), a, k * 2, cudaMemcpyDeviceToHost));  // 1 * (4096 / 256)^2
  std::printf("%s: after one replay of two multiplications a[0] is fp16 %#06x\n", plan.tactic(1).c_str(), host[0]);
  return host[0] == 0x5c00 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
