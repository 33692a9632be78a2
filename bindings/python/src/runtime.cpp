// Devices, options, tuning and checkpoints.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/check.hpp"

namespace q4::python {

namespace {

using namespace nb::literals;

void configure_runtime(const std::string& cache_dir, const std::string& cache_mode,
                       const std::vector<std::string>& tuning_files, int cpu_threads) {
  RuntimeOptions options;
  options.cache_dir = cache_dir;
  options.tuning_files = tuning_files;
  options.cpu_threads = cpu_threads;
  const std::pair<const char*, CacheMode> modes[] = {{"read-write", CacheMode::kReadWrite},
                                                     {"read-only", CacheMode::kReadOnly},
                                                     {"off", CacheMode::kOff},
                                                     {"require-prebuilt", CacheMode::kRequirePrebuilt}};
  bool known = false;
  for (const auto& [name, mode] : modes)
    if (cache_mode == name) options.cache_mode = mode, known = true;
  check(known, "configure: cache_mode = '{}'; it must be read-write, read-only, off or require-prebuilt", cache_mode);
  configure(std::move(options));
}

nb::dict describe(const TuningRecord& record) {
  nb::dict d;
  const auto& key = record.key;
  d["device"] = key.fingerprint, d["arch"] = key.arch, d["k"] = key.k, d["n"] = key.n, d["group_size"] = key.group;
  d["act_order"] = key.act_order, d["dtype"] = to_string(key.activation);
  d["reconstruct_from"] = record.reconstruct_from, d["policy"] = record.policy;
  nb::list buckets;
  for (const auto& bucket : record.buckets) {
    nb::dict b;
    b["m"] = bucket.m, b["tactic"] = bucket.tactic, b["us"] = bucket.us, b["default_us"] = bucket.default_us;
    buckets.append(b);
  }
  d["buckets"] = buckets;
  return d;
}

nb::list tuning() {
  const TuningDb* db;
  {
    const nb::gil_scoped_release release;
    db = &runtime().tuning();
  }
  nb::list records;
  for (const auto& record : db->records()) records.append(describe(record));
  return records;
}

void bind_checkpoint(nb::module_& m) {
  nb::class_<MatrixEntry>(m, "MatrixEntry", "A quantized matrix of a checkpoint, before it is loaded.")
      .def_ro("name", &MatrixEntry::name)
      .def_ro("k", &MatrixEntry::k)
      .def_ro("n", &MatrixEntry::n)
      .def_ro("groups", &MatrixEntry::groups)
      .def_ro("group_size", &MatrixEntry::group_size)
      .def_ro("has_g_idx", &MatrixEntry::has_g_idx)
      .def_ro("has_bias", &MatrixEntry::has_bias)
      .def("__repr__", [](const MatrixEntry& e) {
        return fmt::format("q4.MatrixEntry('{}', k={}, n={}, group_size={})", e.name, e.k, e.n, e.group_size);
      });
  nb::class_<Checkpoint>(m, "Checkpoint", "A GPTQ or AWQ checkpoint: a safetensors file or a folder with some.")
      .def(
          "__init__", [](Checkpoint* self, nb::handle path) { new (self) Checkpoint(open_checkpoint(path)); }, "path"_a,
          "Opens and maps it; shapes are checked now, contents when a matrix is loaded.")
      .def_prop_ro("matrices", &Checkpoint::matrices, "Every matrix, sorted by name.")
      .def("find", &Checkpoint::find, "name"_a, "The entry of a name; LookupError with the nearest names.")
      .def("load", &load_matrix, "name"_a, "device"_a = nb::none(), nb::kw_only(), "zeros"_a = nb::none(),
           "Loads a matrix to a device (None: the best one). zeros: overrides the checkpoint's claim.")
      .def_prop_ro("format",
                   [](const Checkpoint& c) { return c.config().format == QuantFormat::kGptq ? "gptq" : "awq"; })
      .def_prop_ro("group_size", [](const Checkpoint& c) { return c.config().group_size; })
      .def("__repr__",
           [](const Checkpoint& c) { return fmt::format("q4.Checkpoint({} matrices)", c.matrices().size()); });
}

}  // namespace

void bind_runtime(nb::module_& m) {
  nb::class_<DeviceInfo>(m, "DeviceInfo", "What a device is; sizes in bytes.")
      .def_prop_ro(
          "device", [](const DeviceInfo& d) { return d.device.str(); }, "\"cpu\", \"cuda:0\".")
      .def_ro("name", &DeviceInfo::name)
      .def_ro("arch", &DeviceInfo::arch)
      .def_ro("compute_units", &DeviceInfo::compute_units)
      .def_ro("memory_bytes", &DeviceInfo::memory_bytes)
      .def_ro("l2_bytes", &DeviceInfo::l2_bytes)
      .def_ro("driver", &DeviceInfo::driver)
      .def_ro("fingerprint", &DeviceInfo::fingerprint, "Identity for tuning.")
      .def("__repr__", [](const DeviceInfo& d) {
        return fmt::format("q4.DeviceInfo('{}', {}, {})", d.device.str(), d.name, d.arch);
      });
  nb::class_<BackendStatus>(m, "BackendStatus", "Whether a backend can be used, and why not.")
      .def_prop_ro("kind", [](const BackendStatus& b) { return to_string(b.kind); })
      .def_ro("available", &BackendStatus::available)
      .def_ro("reason", &BackendStatus::reason)
      .def_ro("components", &BackendStatus::components)
      .def("__repr__", [](const BackendStatus& b) {
        return fmt::format("q4.BackendStatus('{}', {})", to_string(b.kind), b.available ? "available" : b.reason);
      });
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def(
      "devices", [] { return runtime().devices(); }, Release(), "Every usable device, best first.");
  m.def(
      "backends", [] { return runtime().backends(); }, Release(), "Each backend and what it found or lacks.");
  m.def(
      "best_device", [] { return runtime().best_device().str(); }, Release(),
      "A GPU where there is one, else \"cpu\".");
  m.def(
      "cache_dir", [] { return runtime().cache_dir(); }, Release(),
      "Folder of compiled kernels, \"\" if there is none.");
  m.def("configure", &configure_runtime, nb::kw_only(), "cache_dir"_a = "", "cache_mode"_a = "read-write",
        "tuning_files"_a = std::vector<std::string>{}, "cpu_threads"_a = 0,
        "Options for matrices that are made from now on; call it first.");
  m.def("tuning", &tuning, "The tuning records in use, as dicts.");
  m.attr("version") = Q4_VERSION;
  bind_checkpoint(m);
}

}  // namespace q4::python
