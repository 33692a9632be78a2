// Reads with the kernel read.h on a GPU, with the threads of a pool on the CPU.
#include "autotune/read_floor.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "autotune/statistics.hpp"
#include "autotune/stopwatch.hpp"
#include "kernels/read.h"
#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/base/check.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/device.hpp"

namespace q4::autotune {
namespace {

double of_gpu(gpu::GpuDevice& device, std::size_t bytes) {
  constexpr int kRuns = 15;
  gpu::Driver& driver = *device.driver();
  const DeviceInfo& info = device.info();
  const std::size_t piece = (bytes + 255) / 256 * 256;
  const std::size_t copies = std::max<std::size_t>(2, 5 * info.l2_bytes / piece + 1);  // each is cold in its turn
  const Buffer data(device.driver(), copies * piece + 256);
  driver.fill(data.get(), 0x5a, copies * piece);
  double best = 0;
  for (const int threads : {256, 512, 1024})
    for (const int loads : {4, 8, 16})
      for (const int blocks_per_unit : {1, 2, 4}) {
        if (threads * blocks_per_unit > 2048) continue;
        std::shared_ptr<const gpu::Function> function;
        try {
          function = device.kernels().get(choose::read_source(threads, loads));
        } catch (const Error& error) {
          if (error.code() != ErrorCode::kNotFound) throw;
          return 0;  // not prebuilt: no plan needs it
        }
        gpu::LaunchShape shape;
        shape.blocks = static_cast<std::int64_t>(info.compute_units) * blocks_per_unit, shape.threads = threads;
        const auto read_all = [&](void* stream) {
          for (std::size_t copy = 0; copy < copies; ++copy) {
            ReadArgs args{data.as<const u8>() + copy * piece, static_cast<i64>(bytes / 16 * 16),
                          reinterpret_cast<u32*>(data.as<u8>() + copies * piece)};
            void* parameters[] = {&args};
            driver.launch(*function, shape, stream, parameters);
          }
        };
        const double us = median(time_runs(device, read_all, kRuns)) / static_cast<double>(copies);
        if (best == 0 || us < best) best = us;
      }
  return best;
}

constexpr std::size_t kPiece = std::size_t{1} << 16;  // bytes that one task of the pool reads

/// Asks for what lies `ahead` bytes on: without that a plain loop reads at two thirds of the speed. The sum is returned,
/// so that the compiler keeps the reads.
std::uint64_t read_words(const std::uint64_t* words, std::size_t count, std::size_t ahead) {
  std::uint64_t sum = 0;
  for (std::size_t line = 0; line < count; line += 8) {
    __builtin_prefetch(words + line + ahead / 8);
    for (std::size_t i = line; i < std::min(line + 8, count); ++i) sum += words[i];
  }
  return sum;
}

/// Reads slices of a buffer that comes round as seldom as the weights that Rig rotates.
double of_cpu(const std::shared_ptr<DeviceBackend>& device, std::size_t bytes) {
  if (bytes == 0) return 0;
  constexpr std::size_t kMost = std::size_t{192} << 20;  // as there: a last cache may be a whole host's
  const std::size_t size = std::max(std::min(3 * device->info().l2_bytes, kMost), 4 * bytes) / bytes * bytes;
  const Buffer memory(device, size);
  auto* const data = memory.as<std::byte>();
  cpu::ThreadPool pool(device->info().compute_units);
  const auto tasks = [](std::size_t count) { return static_cast<std::int64_t>((count + kPiece - 1) / kPiece); };
  pool.run(tasks(size), [&](std::int64_t task, int) {
    const std::size_t at = static_cast<std::size_t>(task) * kPiece;
    std::memset(data + at, 1, std::min(kPiece, size - at));
  });
  double best = 0;
  std::atomic<std::uint64_t> sum{0};
  // The best distance depends on the processor and on how many threads read.
  for (const std::size_t ahead : {std::size_t{4} << 10, std::size_t{1} << 10, std::size_t{2} << 10}) {
    for (std::size_t slice = 0; slice < size; slice += bytes) {
      const auto read_slice = [&](void*) {
        pool.run(tasks(bytes), [&](std::int64_t task, int) {
          const std::size_t at = static_cast<std::size_t>(task) * kPiece;
          sum.fetch_add(read_words(reinterpret_cast<const std::uint64_t*>(data + slice / 8 * 8 + at),
                                   std::min(kPiece, bytes - at) / 8, ahead),
                        std::memory_order_relaxed);
        });
      };
      const double us = time_runs(*device, read_slice, 1)[0];
      if (best == 0 || us < best) best = us;
    }
  }
  return best;
}

}  // namespace

double read_floor_us(const std::shared_ptr<DeviceBackend>& device, std::size_t bytes) {
  if (auto* gpu = dynamic_cast<gpu::GpuDevice*>(device.get())) return of_gpu(*gpu, bytes);
  return of_cpu(device, bytes);
}

}  // namespace q4::autotune
