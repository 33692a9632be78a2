// What q4-autotune and the worker process that measures for it tell one another: JSON, one message a line.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "autotune/tuner.hpp"

namespace q4::autotune {

using Json = nlohmann::ordered_json;

/// One shape to tune.
struct Job {
  Problem problem;
  TuneOptions options;  ///< its callbacks do not travel
};

/// What a worker says first: its device, and what its tuning depends on.
struct Hello {
  DeviceInfo info;
  std::string kernels;  ///< tuning_digest()
  std::string address;  ///< the same in every process that uses this device
  std::map<std::string, std::string> versions;
};

Json to_json(const Job& job);
Job job_of(const Json& j);
Json to_json(const Hello& hello);
Hello hello_of(const Json& j);
Json to_json(const MeasuredBucket& bucket);
MeasuredBucket bucket_of(const Json& j);
Json to_json(const TuneProgress& progress);
TuneProgress progress_of(const Json& j);
Json to_json(const Tuned& tuned);
Tuned tuned_of(const Json& j);

}  // namespace q4::autotune
