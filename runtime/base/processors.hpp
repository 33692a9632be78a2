// How many processors there are for this process.
#pragma once

#include <string>

namespace q4 {

/// Threads that this process may use: the calling thread's affinity mask, bounded by the cgroup's CPU quota.
int usable_threads();
/// CPUs that the cgroups of this process allow (v1 and v2, their parents too), `limit` where they do not. `root` stands
/// before /proc and /sys, for tests.
double cgroup_cpus(const std::string& root, double limit);

}  // namespace q4
