// Affinity masks and cgroups.
#include "runtime/base/processors.hpp"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

namespace q4 {
namespace {

/// CPUs that a quota of `folder` and its parents allows, rounded up; `limit` when there is none.
double quota_limit(const std::string& root, std::string folder, bool v2, double limit) {
  for (;;) {
    double quota = 0, period = 0;
    if (v2) {
      std::ifstream(root + folder + "/cpu.max") >> quota >> period;  // "max 100000": quota stays 0
    } else {
      std::ifstream(root + folder + "/cpu.cfs_quota_us") >> quota;
      std::ifstream(root + folder + "/cpu.cfs_period_us") >> period;
    }
    if (quota > 0 && period > 0) limit = std::min(limit, quota / period);
    const std::size_t slash = folder.rfind('/');
    if (slash == std::string::npos) return limit;
    folder.resize(slash);
  }
}

}  // namespace

double cgroup_cpus(const std::string& root, double limit) {
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/path" or "0::/path"
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(std::getline(std::getline(fields, id, ':'), controllers, ':'), path);
    if (path == "/") path.clear();
    const bool cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (controllers.empty()) limit = quota_limit(root + "/sys/fs/cgroup", path, true, limit);
    if (cpu) limit = quota_limit(root + "/sys/fs/cgroup/cpu", path, false, limit);
  }
  return limit;
}

int usable_threads() {
  double limit = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) limit = CPU_COUNT(&set);
  limit = cgroup_cpus("", limit);
#endif
  return std::max(1, int(limit + 0.999));
}

}  // namespace q4
