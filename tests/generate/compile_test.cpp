// The kernels of examples/generate compile for GPUs that are not here. Exit 77: no NVRTC.
#include <cstdio>

#include "cuda.hpp"
#include "kernels.hpp"

int main() {
  if (!generate::can_compile()) {
    std::puts("no NVRTC");
    return 77;
  }
  struct Case {
    int hidden, heads, kv_heads, head_dim, capability;
  };
  for (const Case& c : {Case{4096, 32, 8, 128, 90}, Case{576, 9, 3, 64, 80}, Case{64, 4, 1, 32, 75},
                        Case{3072, 32, 32, 96, 90}, Case{2048, 8, 4, 256, 90}, Case{8192, 64, 8, 128, 90}}) {
    generate::Config config;
    config.hidden = c.hidden, config.heads = c.heads, config.kv_heads = c.kv_heads, config.head_dim = c.head_dim;
    config.intermediate = 3 * c.hidden, config.vocab = 49152, config.norm_epsilon = 1e-5f;
    const generate::KernelSource source = generate::kernel_source(config);
    try {
      const std::size_t bytes = generate::compile(source.text, c.capability, source.options).size();
      std::printf("head_dim %d, sm_%d: %zu bytes\n", c.head_dim, c.capability, bytes);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }
}
