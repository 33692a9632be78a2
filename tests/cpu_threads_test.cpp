// The CPU backend's threads: how many there are, whose they are, and that they wait for nobody who waits for them.
#include <doctest/doctest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "cpu_device.hpp"
#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/base/processors.hpp"
#include "temp_folder.hpp"

namespace q4::test {
namespace {

namespace fs = std::filesystem;

/// A tree that stands before /proc and /sys.
struct Root {
  TempFolder folder;
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(folder / name).parent_path());
    std::ofstream(folder / name) << text;
  }
  double cpus(double limit) const { return cgroup_cpus(folder.path(), limit); }
};

int allowed_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

/// The calling thread on one of its CPUs, for as long as this lives.
struct OnOneCpu {
  cpu_set_t before;
  OnOneCpu() {
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &before)) ++first;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  }
  ~OnOneCpu() { sched_setaffinity(0, sizeof before, &before); }
};

void in_turn(int tasks, const std::function<void(int)>& task) {
  for (int i = tasks - 1; i >= 0; --i) task(i);
}
void on_threads(int tasks, const std::function<void(int)>& task) {
  std::vector<std::thread> threads;
  for (int i = 0; i < tasks; ++i) threads.emplace_back([&task, i] { task(i); });
  for (std::thread& thread : threads) thread.join();
}
void not_at_all(int, const std::function<void(int)>&) {}

}  // namespace

TEST_CASE("cpu threads: cgroup limits, v1 and v2, of the process and of its parents") {
  Root root;
  CHECK(root.cpus(8) == 8);  // no cgroups at all
  root.write("proc/self/cgroup", "0::/a/b\n");
  root.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(root.cpus(8) == 8);
  root.write("sys/fs/cgroup/a/cpu.max", "300000 100000\n");
  CHECK(root.cpus(8) == 3);
  CHECK(root.cpus(2) == 2);
  root.write("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n");
  CHECK(root.cpus(8) == 1.5);

  root.write("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/c\n0::/\n");
  root.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
  root.write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
  CHECK(root.cpus(8) == 8);
  root.write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "250000\n");
  CHECK(root.cpus(8) == 2.5);
}

TEST_CASE("cpu threads: the affinity mask bounds them, and they keep the mask of the pool's maker") {
  const int allowed = allowed_cpus();
  CHECK(usable_threads() <= allowed);
  cpu::ThreadPool pool(allowed + 1);
  const OnOneCpu pinned;
  CHECK(usable_threads() == 1);
  std::atomic<int> arrived{0}, others_cpus{0};
  pool.run(
      2,
      [&](std::int64_t, int worker) {
        if (worker == 1) others_cpus = allowed_cpus();
        ++arrived;  // wait for the other, so that each takes one
        for (int i = 0; i < 5000 && arrived < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      },
      2);
  CHECK(others_cpus == allowed);
}

TEST_CASE("cpu threads: as many as there are processors have one each, but for the caller") {
  const int allowed = allowed_cpus();
  if (allowed < 2) return skip("one processor: one thread");
  cpu::ThreadPool pool(allowed);
  std::atomic<int> arrived{0}, wrong{0};
  std::vector<std::atomic<int>> threads(CPU_SETSIZE);
  pool.run(allowed, [&](std::int64_t, int worker) {
    if (worker > 0) wrong += allowed_cpus() != 1 || threads[std::size_t(sched_getcpu())]++ > 0;
    ++arrived;
    for (int i = 0; i < 5000 && arrived < allowed; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  CHECK(wrong == 0);
  CHECK(allowed_cpus() == allowed);  // the caller's mask stays its own
}

TEST_CASE("cpu threads: a job that starts a job does not wait for itself") {
  for (const ParallelFor& hook : {ParallelFor(), ParallelFor(on_threads)}) {
    cpu::ThreadPool pool(3, hook);
    std::atomic<int> inner{0};
    pool.run(5, [&](std::int64_t, int) { pool.run(7, [&](std::int64_t, int) { ++inner; }); });
    CHECK(inner == 35);
  }
}

TEST_CASE("cpu threads: two jobs run at once, and each index is run once") {
  cpu::ThreadPool pool(3);
  std::atomic<int> running[2] = {0, 0}, met[2] = {0, 0};
  on_threads(2, [&](int user) {
    pool.run(8, [&](std::int64_t, int) {
      ++running[user];
      for (int i = 0; i < 5000 && running[1 - user] == 0; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      met[user] += running[1 - user] > 0;
    });
  });
  for (const int user : {0, 1}) {
    CHECK(running[user] == 8);
    CHECK(met[user] > 0);
  }
  std::atomic<int> wrong{0};
  on_threads(4, [&](int user) {  // more callers than places
    for (int round = 0; round < 200; ++round) {
      std::atomic<int> taken[37] = {};
      pool.run(
          37, [&](std::int64_t index, int) { ++taken[index]; }, 1 + (user + round) % 3);
      for (const auto& times : taken) wrong += times != 1;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("cpu threads: grains and their halves begin at their multiples, and what others take comes one by one") {
  for (const ParallelFor& hook : {ParallelFor(), ParallelFor(on_threads)}) {
    for (const int threads : {1, 2, 3}) {
      cpu::ThreadPool pool(threads, hook);
      for (const std::int64_t count : {1, 4, 30, 37}) {
        std::vector<std::atomic<int>> taken(static_cast<std::size_t>(count));
        std::atomic<int> wrong{0}, grains{0};
        pool.run_grains(count, 4, [&](std::int64_t begin, std::int64_t end, int) {
          wrong += begin >= end || end > count || end - begin > 4 || begin % (end - begin) != 0;
          grains += end - begin == 4;
          if (threads > 1 && !hook && end - begin > 1)  // at most half of what is left of its range
            for (int i = 0; i < threads; ++i)
              if (begin >= i * count / threads && begin < (i + 1) * count / threads)
                wrong += 2 * (end - begin) > (i + 1) * count / threads - begin;
          for (; begin < end; ++begin) ++taken[static_cast<std::size_t>(begin)];
        });
        for (const auto& times : taken) wrong += times != 1;
        CHECK(wrong == 0);
        CHECK(grains <= count / 4);
        if (threads == 1) CHECK(grains == count / 4);
      }
    }
  }
}

TEST_CASE("cpu threads: any number of them gives the same bits, also where k goes in parts") {
  MatrixSpec spec;
  spec.k = 8192;
  spec.n = 72;
  for (const std::int64_t m : {1, 5, 16, 64, 70}) {
    const HostRows x = random_rows(DType::kF16, m, spec.k);
    std::vector<HostRows> outs;
    for (const int threads : {1, 2, 5, 16}) {
      CpuDevice cpu(threads);
      HostRows& out = outs.emplace_back(DType::kF16, m, spec.n);
      run(*cpu.device, pack(*cpu.device, spec), options_for(m, DType::kF16), x, out);
      CAPTURE(m);
      CAPTURE(threads);
      CHECK(same_bits(out, outs.front()));
    }
  }
}

TEST_CASE("cpu threads: an embedder's pool gets every task, and the bits are the same") {
  MatrixSpec spec;
  spec.k = 512;
  spec.n = 520;
  constexpr std::int64_t kM = 20;  // so few that no BLAS takes them, which an embedder's pool does without
  const HostRows x = random_rows(DType::kF16, kM, spec.k);
  HostRows expected(DType::kF16, kM, spec.n);
  {
    CpuDevice own(3);
    run(*own.device, pack(*own.device, spec), options_for(kM, DType::kF16), x, expected);
  }
  for (const auto hook : {in_turn, on_threads, not_at_all}) {
    int calls = 0, most = 0;
    CpuDevice cpu(3, {}, [&](int tasks, const std::function<void(int)>& task) {
      ++calls;
      most = std::max(most, tasks);
      hook(tasks, task);
    });
    const Packed packed = pack(*cpu.device, spec);
    HostRows out(DType::kF16, kM, spec.n);
    run(*cpu.device, packed, options_for(kM, DType::kF16), x, out);
    CHECK(same_bits(out, expected));
    CHECK(calls >= 2);  // packing W, the product
    CHECK(most == 3);
  }
}

TEST_CASE("cpu threads: plans run at once from an embedder's own threads, with its pool or with none") {
  MatrixSpec spec;
  spec.k = 256;
  spec.n = 264;
  for (const bool hooked : {false, true}) {
    CpuDevice cpu(hooked ? 2 : 1, {}, hooked ? ParallelFor(on_threads) : ParallelFor());
    const Packed packed = pack(*cpu.device, spec);
    const HostRows x = random_rows(DType::kF16, 20, spec.k);
    HostRows expected(DType::kF16, 20, spec.n);
    run(*cpu.device, packed, options_for(20, DType::kF16), x, expected);
    std::vector<HostRows> outs(4, HostRows(DType::kF16, 20, spec.n));
    on_threads(4, [&](int user) {
      const auto plan = cpu.device->plan(packed.matrix, options_for(20, DType::kF16), nullptr);
      HostRows& out = outs[static_cast<std::size_t>(user)];
      for (int i = 0; i < 5; ++i) plan->run(nullptr, x.data(), spec.k, out.data(), spec.n, 20, nullptr);
    });
    for (const HostRows& out : outs) CHECK(same_bits(out, expected));
  }
}

}  // namespace q4::test
