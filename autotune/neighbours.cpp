// NVML's utilization and processes, and the times of /proc/stat.
#include "autotune/neighbours.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "runtime/backends/traits.hpp"

namespace q4::autotune {
namespace {

struct Utilization {  // nvmlUtilization_t, percent
  unsigned gpu, memory;
};
struct Process {  // nvmlProcessInfo_t of nvmlDeviceGetComputeRunningProcesses_v2 and _v3
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};

std::string read(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Times {
  double idle = 0, all = 0;  ///< of all processors together
  int processors = 0;
};

std::optional<Times> times_of(const std::string& stat) {
  std::istringstream lines(stat);
  Times times;
  for (std::string line; std::getline(lines, line) && line.starts_with("cpu");) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name != "cpu") {
      ++times.processors;
      continue;
    }
    double value = 0;
    for (int i = 0; i < 8 && words >> value; ++i) {  // user nice system idle iowait irq softirq steal
      times.all += value;
      if (i == 3 || i == 4) times.idle += value;
    }
  }
  return times.processors > 0 && times.all > 0 ? std::optional(times) : std::nullopt;
}

bool is_parent(int process, int child) {
  std::istringstream words(read(fmt::format("/proc/{}/stat", child)));
  std::string word;
  while (words >> word && !word.ends_with(")")) {}
  int parent = 0;
  return words >> word >> parent && parent == process;
}

/// Those that this process can see and that are neither it nor its children. In a container NVML may give other numbers.
std::string others(const std::vector<Process>& all) {
  std::string text;
  for (const Process& p : all) {
    const int pid = static_cast<int>(p.pid);
    struct stat there {};
    if (pid == ::getpid() || is_parent(::getpid(), pid) || ::stat(fmt::format("/proc/{}", pid).c_str(), &there) != 0)
      continue;
    text += fmt::format("{}process {}", text.empty() ? "" : ", ", pid);
    if (p.bytes != ~0ull) text += fmt::format(" holds {:.1f} GB", static_cast<double>(p.bytes) / 1e9);
  }
  return text;
}

}  // namespace

std::string Neighbours::text() const {
  if (share < 0) return "unknown";
  return fmt::format("others use {:.0f}% of it{}", 100 * share, who.empty() ? "" : " (" + who + ")");
}

double lacking_processors(const std::string& before, const std::string& after, int units) {
  const auto first = times_of(before), last = times_of(after);
  if (!first || !last || units <= 0 || last->all <= first->all) return -1;
  const double idle = last->processors * std::max(last->idle - first->idle, 0.0) / (last->all - first->all);
  return std::clamp((units - idle) / units, 0.0, 1.0);
}

NeighbourWatch::NeighbourWatch(const DeviceInfo& device, const std::string& address, const std::string& nvml,
                               const std::string& stat)
    : device_(device), stat_(stat) {
  if (device.device.kind == BackendKind::kCuda) nvml_ = Nvml(address, nvml);
}

Neighbours NeighbourWatch::look() const {
  return traits_of(device_.device).host_addressable ? on_cpu() : nvml_.device() ? on_gpu() : Neighbours{};
}

Neighbours NeighbourWatch::on_cpu() const {
  const std::string before = read(stat_);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  return {lacking_processors(before, read(stat_), device_.compute_units), {}};
}

Neighbours NeighbourWatch::on_gpu() const {
  Neighbours found;
  const auto rates = nvml_.function<int(void*, Utilization*)>("nvmlDeviceGetUtilizationRates");
  for (int i = 0; i < 2 && rates; ++i) {  // each is that of up to a second before: the least is not what just ended
    if (i) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    Utilization now{};
    if (rates(nvml_.device(), &now) != 0) break;
    const double share = now.gpu / 100.0;
    found.share = found.share < 0 ? share : std::min(found.share, share);
  }
  for (const char* name : {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"}) {
    const auto list = nvml_.function<int(void*, unsigned*, Process*)>(name);
    std::vector<Process> processes(64);
    unsigned count = 64;
    if (!list || list(nvml_.device(), &count, processes.data()) != 0) continue;
    processes.resize(std::min<std::size_t>(count, processes.size()));
    found.who = others(processes);
    break;
  }
  return found;
}

}  // namespace q4::autotune
