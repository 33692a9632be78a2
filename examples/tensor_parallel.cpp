// A decoder block divided over the GPUs of one host, by one process: each GPU has its heads and its part of the MLP, and
// NCCL, opened at run time, adds up what the row-parallel layers give. Without several GPUs ranks are CPU ones and a loop
// adds. `example-tensor-parallel [RANKS [STEPS]]`; exit status 0: equal to the undivided block.
#include <dlfcn.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <q4/q4.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t kHidden = 4096, kHead = 128, kHeads = 32, kKvHeads = 8, kInner = 14336, kTokens = 4;

template <class F>
F symbol(void* library, const char* name) {
  void* found = library ? dlsym(library, name) : nullptr;
  if (!found) throw std::runtime_error(std::string(name) + " is missing");
  return reinterpret_cast<F>(found);
}

/// The few functions of the CUDA driver and of NCCL that this needs.
class Gpus {
 public:
  explicit Gpus(int count) : contexts(count), streams(count), comms(count) {
    void* cuda = dlopen("libcuda.so.1", RTLD_NOW);
    void* nccl = dlopen("libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);
    if (!nccl) throw std::runtime_error(std::string("no NCCL: ") + dlerror());
    const auto retain = symbol<int (*)(void**, int)>(cuda, "cuDevicePrimaryCtxRetain");
    use_ = symbol<int (*)(void*)>(cuda, "cuCtxSetCurrent");
    allocate_ = symbol<int (*)(void**, std::size_t)>(cuda, "cuMemAlloc_v2");
    to_ = symbol<int (*)(void*, const void*, std::size_t)>(cuda, "cuMemcpyHtoD_v2");
    from_ = symbol<int (*)(void*, const void*, std::size_t)>(cuda, "cuMemcpyDtoH_v2");
    synchronize_ = symbol<int (*)(void*)>(cuda, "cuStreamSynchronize");
    const auto stream = symbol<int (*)(void**, unsigned)>(cuda, "cuStreamCreate");
    start_ = symbol<int (*)()>(nccl, "ncclGroupStart");
    end_ = symbol<int (*)()>(nccl, "ncclGroupEnd");
    reduce_ = symbol<int (*)(const void*, void*, std::size_t, int, int, void*, void*)>(nccl, "ncclAllReduce");
    for (int i = 0; i < count; ++i) {
      check(retain(&contexts[i], i));
      check(use_(contexts[i]));
      check(stream(&streams[i], 1));
    }
    check(symbol<int (*)(void**, int, const int*)>(nccl, "ncclCommInitAll")(comms.data(), count, nullptr));
  }
  void* allocate(int rank, std::size_t bytes) {
    void* memory = nullptr;
    check(use_(contexts[rank]));
    check(allocate_(&memory, bytes));
    return memory;
  }
  void put(int rank, void* to, const std::vector<_Float16>& from) {
    check(use_(contexts[rank]));
    check(to_(to, from.data(), from.size() * 2));
  }
  void get(int rank, std::vector<_Float16>& to, const void* from) {
    check(use_(contexts[rank]));
    check(synchronize_(streams[rank]));
    check(from_(to.data(), from, to.size() * 2));
  }
  void sum(const std::vector<void*>& of_ranks, std::size_t count) {
    constexpr int kHalf = 6, kSum = 0;
    check(start_());
    for (std::size_t i = 0; i < of_ranks.size(); ++i)
      check(reduce_(of_ranks[i], of_ranks[i], count, kHalf, kSum, comms[i], streams[i]));
    check(end_());
  }
  std::vector<void*> contexts, streams, comms;

 private:
  static void check(int error) {
    if (error != 0) throw std::runtime_error("CUDA or NCCL: error " + std::to_string(error));
  }
  int (*use_)(void*);
  int (*allocate_)(void**, std::size_t);
  int (*to_)(void*, const void*, std::size_t);
  int (*from_)(void*, const void*, std::size_t);
  int (*synchronize_)(void*);
  int (*start_)();
  int (*end_)();
  int (*reduce_)(const void*, void*, std::size_t, int, int, void*, void*);
};

/// Random GPTQ tensors of a symmetric matrix, with act-order or without.
struct Weights {
  std::int64_t k, n;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<_Float16> scales;
  std::vector<std::int32_t> g_idx;

  Weights(std::int64_t k, std::int64_t n, bool act_order, unsigned seed) : k(k), n(n) {
    std::mt19937 random(seed);
    qweight.resize(k / 8 * n), qzeros.assign(k / 128 * n / 8, 0x77777777);
    for (auto& word : qweight) word = random();
    for (std::int64_t i = 0; i < k / 128 * n; ++i)
      scales.push_back(
          static_cast<_Float16>((0.5 + random() % 1024 / 1024.0) / 4.6 / std::sqrt(static_cast<double>(k))));
    for (std::int64_t r = 0; act_order && r < k; ++r) g_idx.push_back(static_cast<std::int32_t>(r / 128));
    for (std::size_t r = g_idx.size(); r > 1; --r) std::swap(g_idx[r - 1], g_idx[random() % r]);
  }
  q4::GptqTensors tensors() const {
    q4::GptqTensors t;
    t.qweight = {qweight.data(), q4::DType::kI32, k / 8, n};
    t.qzeros = {qzeros.data(), q4::DType::kI32, k / 128, n / 8};
    t.scales = {scales.data(), q4::DType::kF16, k / 128, n};
    if (!g_idx.empty()) t.g_idx = q4::TensorView{g_idx.data(), q4::DType::kI32, 1, k};
    t.group_size = 128;
    return t;
  }
};

struct Block {
  Weights q{kHidden, kHeads*kHead, false, 1}, k{kHidden, kKvHeads*kHead, false, 2},
      v{kHidden, kKvHeads*kHead, false, 3};
  Weights o{kHeads * kHead, kHidden, true, 4}, gate{kHidden, kInner, false, 5}, up{kHidden, kInner, false, 6};
  Weights down{kInner, kHidden, true, 7};  // o and down have act-order: ranks need no more than their own rows
};

/// A plan with memory for its input and output where it runs.
struct Layer {
  Gpus* gpus;
  int rank;
  q4::MatmulPlan plan;
  std::vector<_Float16> host_x, host_out;
  void *x, *out;

  Layer(const q4::Runtime& runtime, Gpus* gpus, int rank, const q4::QuantizedMatrix& w)
      : gpus(gpus),
        rank(rank),
        plan(runtime, w, {.max_m = kTokens}),
        host_x(kTokens * w.k()),
        host_out(kTokens * w.n()) {
    x = gpus ? gpus->allocate(rank, host_x.size() * 2) : host_x.data();
    out = gpus ? gpus->allocate(rank, host_out.size() * 2) : host_out.data();
  }
  void start() {
    if (gpus) gpus->put(rank, x, host_x);
    plan.run({gpus ? gpus->streams[rank] : nullptr}, {x}, {out}, kTokens);
  }
  const std::vector<_Float16>& result() {
    if (gpus) gpus->get(rank, host_out, out);
    return host_out;
  }
};

/// What one rank has of the block.
struct Rank {
  Layer qkv, o, gate_up, down;

  Rank(const q4::Runtime& runtime, q4::Device device, Gpus* gpus, int rank, int world, const Block& block)
      : qkv(runtime, gpus, rank,
            q4::QuantizedMatrix::fuse_gptq(runtime, device,
                                           std::vector{block.q.tensors(), block.k.tensors(), block.v.tensors()},
                                           {.slice = q4::Slice::heads(rank, world, kHead)})),
        o(runtime, gpus, rank,
          q4::QuantizedMatrix::from_gptq(runtime, device, block.o.tensors(), {.slice = q4::Slice::rows(rank, world)})),
        gate_up(runtime, gpus, rank,
                q4::QuantizedMatrix::fuse_gptq(runtime, device, std::vector{block.gate.tensors(), block.up.tensors()},
                                               {.slice = q4::Slice::columns(rank, world)})),
        down(runtime, gpus, rank,
             q4::QuantizedMatrix::from_gptq(runtime, device, block.down.tensors(),
                                            {.slice = q4::Slice::rows(rank, world)})) {}
};

/// Runs one layer of every rank and adds up the results of all.
template <class Member>
std::vector<_Float16> summed(std::vector<std::unique_ptr<Rank>>& ranks, Gpus* gpus, Member member) {
  std::vector<void*> outs;
  for (auto& rank : ranks) ((*rank).*member).start(), outs.push_back(((*rank).*member).out);
  if (gpus) gpus->sum(outs, kTokens * kHidden);
  std::vector<_Float16> sum = ((*ranks[0]).*member).result();
  for (std::size_t r = 1; !gpus && r < ranks.size(); ++r) {
    const auto& part = ((*ranks[r]).*member).result();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = static_cast<_Float16>(float(sum[i]) + float(part[i]));
  }
  return sum;
}

/// Each token attends to itself alone, as the first of a sequence does: attention gives the values.
std::vector<_Float16> run(std::vector<std::unique_ptr<Rank>>& ranks, Gpus* gpus, const std::vector<_Float16>& x) {
  const auto world = static_cast<std::int64_t>(ranks.size());
  const std::int64_t heads = kHeads / world, kv = std::max<std::int64_t>(kKvHeads / world, 1);
  const std::int64_t row = (heads + 2 * kv) * kHead, inner = kInner / world;
  for (auto& rank : ranks) rank->qkv.host_x = x, rank->qkv.start();
  for (auto& rank : ranks) {
    const auto& qkv = rank->qkv.result();
    for (std::int64_t t = 0; t < kTokens; ++t)
      for (std::int64_t c = 0; c < heads * kHead; ++c)
        rank->o.host_x[t * heads * kHead + c] =
            qkv[t * row + (heads + kv) * kHead + c / kHead / (heads / kv) * kHead + c % kHead];
  }
  std::vector<_Float16> h = summed(ranks, gpus, &Rank::o);
  for (std::size_t i = 0; i < h.size(); ++i) h[i] = static_cast<_Float16>(float(h[i]) + float(x[i]));
  for (auto& rank : ranks) rank->gate_up.host_x = h, rank->gate_up.start();
  for (auto& rank : ranks) {
    const auto& both = rank->gate_up.result();
    for (std::int64_t t = 0; t < kTokens; ++t)
      for (std::int64_t c = 0; c < inner; ++c) {
        const float gate = both[t * 2 * inner + c], up = both[t * 2 * inner + inner + c];
        rank->down.host_x[t * inner + c] = static_cast<_Float16>(gate / (1 + std::exp(-gate)) * up);
      }
  }
  std::vector<_Float16> y = summed(ranks, gpus, &Rank::down);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = static_cast<_Float16>(float(y[i]) + float(h[i]));
  return y;
}

std::vector<std::unique_ptr<Rank>> make_ranks(const q4::Runtime& runtime, Gpus* gpus, int world, const Block& block) {
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int r = 0; r < world; ++r) {
    const q4::Device device = gpus ? q4::Device{q4::BackendKind::kCuda, r} : q4::Device{};
    ranks.push_back(std::make_unique<Rank>(runtime, device, gpus, r, world, block));
  }
  return ranks;
}

}  // namespace

int main(int argc, char** argv) try {
  const q4::Runtime runtime;
  int found = 0;
  for (const auto& info : runtime.devices()) found += info.device.kind == q4::BackendKind::kCuda;
  const int world = argc > 1 ? std::atoi(argv[1]) : found > 1 ? found : 2, steps = argc > 2 ? std::atoi(argv[2]) : 3;
  if (world < 1 || kHeads % world != 0 || (kKvHeads % world != 0 && world % kKvHeads != 0) || steps < 1) {
    std::fprintf(stderr, "RANKS must divide %lld heads, STEPS be at least 1\n", static_cast<long long>(kHeads));
    return 2;
  }
  std::unique_ptr<Gpus> gpus;
  if (found >= world && world > 1) gpus = std::make_unique<Gpus>(world);

  const Block block;
  std::vector<_Float16> x;
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < kTokens * kHidden; ++i) x.push_back(static_cast<_Float16>(normal(random)));
  auto one = make_ranks(runtime, gpus.get(), 1, block), all = make_ranks(runtime, gpus.get(), world, block);
  const auto expected = run(one, nullptr, x);
  double worst = 0, seconds = 0;
  for (int step = 0; step < steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const auto y = run(all, gpus.get(), x);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      difference += std::pow(double(y[i]) - double(expected[i]), 2), norm += std::pow(double(expected[i]), 2);
    }
    worst = std::max(worst, std::sqrt(difference / norm));
  }
  std::printf("%d %s, %d steps of %lld tokens, %.2f ms the last: error against the undivided block %.1e\n", world,
              gpus ? "GPUs with NCCL" : "ranks on the CPU", steps, static_cast<long long>(kTokens), seconds * 1e3,
              worst);
  return worst < 1e-3 ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
