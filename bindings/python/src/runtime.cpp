// Devices, options, tuning and checkpoints.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {

namespace {

using namespace nb::literals;

using Strings = std::vector<std::string>;

/// Several paths: a list or tuple of them, or one alone.
Strings paths_of(nb::handle object) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) return {path_text(object)};
  Strings paths;
  for (nb::handle path : object) paths.push_back(path_text(path));
  return paths;
}

void configure_runtime(nb::handle cache_dir, nb::handle given_mode, nb::handle tuning_files, int cpu_threads,
                       nb::handle cache_folders, nb::handle packs, const std::string& pack_public_key,
                       std::uint64_t cache_max_bytes, nb::handle dump_dir, nb::handle record_untuned) {
  RuntimeOptions options;
  options.cache_dir = path_text(cache_dir);
  options.tuning_files = paths_of(tuning_files);
  options.cpu_threads = cpu_threads;
  options.cache_folders = paths_of(cache_folders), options.packs = paths_of(packs);
  options.pack_public_key = pack_public_key;
  options.cache_max_bytes = cache_max_bytes, options.dump_dir = path_text(dump_dir);
  options.record_untuned = path_text(record_untuned);
  const auto cache_mode = word("configure", "cache_mode", given_mode);
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

nb::dict describe(const CacheEvent& event) {
  nb::dict d;
  d["key"] = event.key, d["kernel"] = event.kernel, d["target"] = event.target;
  d["layer"] = to_string(event.layer), d["from"] = event.from, d["missed"] = event.missed, d["error"] = event.error;
  d["lookup_ms"] = event.lookup_ms, d["compile_ms"] = event.compile_ms, d["load_ms"] = event.load_ms;
  return d;
}

nb::dict describe(const WarmupReport& report) {
  nb::dict d;
  nb::list kernels;
  for (const auto& event : report.kernels) kernels.append(describe(event));
  d["kernels"] = kernels, d["complete"] = report.complete(), d["skipped"] = report.skipped;
  d["cancelled"] = report.cancelled, d["past_deadline"] = report.past_deadline, d["ms"] = report.ms;
  return d;
}

/// Shapes of a list of (k, n), or the checkpoint that was opened.
std::optional<Checkpoint> checkpoint_or_shapes(const char* call, nb::handle what, bool act_order, bool bias,
                                               std::int64_t group_size, std::vector<WarmupShape>& shapes) {
  if (nb::isinstance<Checkpoint>(what)) return nb::cast<Checkpoint>(what);
  if (PyUnicode_Check(what.ptr()) || nb::hasattr(what, "__fspath__")) return open_checkpoint(what);
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  if (!nb::try_cast(what, pairs))
    throw nb::type_error(
        fmt::format("{}: what must be a Checkpoint, a path of one, or a list of shapes (k, n)", call).c_str());
  for (const auto& [k, n] : pairs) shapes.push_back({k, n, group_size, act_order, bias});
  return std::nullopt;
}

std::string numerics_id(nb::object what, int max_m, nb::handle dtype, nb::handle device, bool act_order, bool bias,
                        std::int64_t group_size) {
  constexpr const char* kCall = "numerics_id";
  PlanOptions options;
  options.max_m = max_m, options.activation = activation(kCall, dtype);
  std::vector<WarmupShape> shapes;
  const auto opened = checkpoint_or_shapes(kCall, what, act_order, bias, group_size, shapes);
  const auto named = read_device(kCall, device);
  const GilRelease release;
  const Device on = named ? *named : runtime().best_device();
  return opened ? runtime().numerics_id(on, *opened, options) : runtime().numerics_id(on, shapes, options);
}

/// `progress` runs here with the GIL; True from it ends the warm-up, and what it raises is raised when that has ended.
nb::dict warmup(nb::object what, int max_m, nb::handle dtype, nb::handle device, bool act_order, bool bias,
                std::int64_t group_size, int threads, double deadline, nb::object progress, bool in_place) {
  WarmupOptions options;
  options.plan.max_m = max_m, options.plan.activation = activation("warmup", dtype);
  options.threads = threads, options.deadline_s = deadline;
  const bool unnamed = PyUnicode_Check(device.ptr()) && nb::cast<std::string>(device).empty();
  if (const auto named = unnamed ? std::nullopt : read_device("warmup", device)) options.device = *named;
  bool stop = false;
  std::optional<nb::python_error> raised;
  if (!progress.is_none())
    options.progress = [&](std::size_t done, std::size_t total, const CacheEvent& event) {
      const GilAcquire gil;
      try {
        if (!raised) stop |= nb::cast<bool>(nb::bool_(progress(done, total, describe(event))));
      } catch (nb::python_error& error) { raised.emplace(std::move(error)), stop = true; }
    };
  options.cancel = [&] { return stop; };
  std::vector<WarmupShape> shapes;
  const auto opened = checkpoint_or_shapes("warmup", what, act_order, bias, group_size, shapes);
  for (WarmupShape& shape : shapes) shape.in_place = in_place;
  WarmupReport report;
  {
    const GilRelease release;
    report = opened ? runtime().warmup(*opened, options) : runtime().warmup(shapes, options);
  }
  if (raised) throw std::move(*raised);
  return describe(report);
}

nb::dict cache_counters() {
  const auto c = runtime().cache_counters();
  nb::dict d;
  d["memory"] = c.memory, d["user_folder"] = c.user_folder, d["folder"] = c.folder;
  d["beside_library"] = c.beside_library, d["pack"] = c.pack, d["compiled"] = c.compiled, d["failed"] = c.failed;
  d["problems"] = c.problems;
  d["lookup_ms"] = c.lookup_ms, d["compile_ms"] = c.compile_ms, d["load_ms"] = c.load_ms;
  return d;
}

nb::dict describe(const TuningRecord& record) {
  nb::dict d;
  const auto& key = record.key;
  d["device"] = key.fingerprint, d["arch"] = key.arch, d["k"] = key.k, d["n"] = key.n, d["group_size"] = key.group;
  d["act_order"] = key.act_order, d["dtype"] = to_string(key.activation);
  d["reconstruct_from"] = record.reconstruct_from, d["policy"] = key.policy;
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
    const GilRelease release;
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
      .def_ro("bits", &MatrixEntry::bits, "Bits of a weight; 4 if it can be loaded.")
      .def_ro("bytes", &MatrixEntry::bytes, "Of its tensors in the files.")
      .def_ro("unsupported", &MatrixEntry::unsupported, "Why it cannot be loaded; empty if it can.")
      .def("__repr__", [](const MatrixEntry& e) {
        return fmt::format("q4.MatrixEntry('{}', k={}, n={}, group_size={})", e.name, e.k, e.n, e.group_size);
      });
  nb::class_<Checkpoint> checkpoint(m, "Checkpoint",
                                    "A GPTQ or AWQ checkpoint: a safetensors file or a folder with some.");
  bind_loads(checkpoint);
  checkpoint
      .def(
          "__init__", [](Checkpoint* self, nb::handle path) { new (self) Checkpoint(open_checkpoint(path)); }, "path"_a,
          "Opens and maps it; shapes are checked now, contents when a matrix is loaded.")
      .def_prop_ro("matrices", &Checkpoint::matrices,
                   "Every matrix, sorted by name; one with a text in .unsupported cannot be loaded.")
      .def("find", &Checkpoint::find, "name"_a, "The entry of a name; LookupError with the nearest names.")
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
  using Release = nb::call_guard<GilRelease>;
  m.def(
      "devices", [] { return runtime().devices(); }, Release(), "Every usable device, best first.");
  m.def(
      "backends", [] { return runtime().backends(); }, Release(), "Each backend and what it found or lacks.");
  m.def(
      "best_device", [] { return runtime().best_device().str(); }, Release(),
      "A GPU where there is one, else \"cpu\".");
  m.def(
      "cache_dir",
      [] {
        std::string folder;
        {
          const GilRelease release;
          folder = runtime().cache_dir();
        }
        return nb::steal<nb::str>(PyUnicode_DecodeFSDefault(folder.c_str()));
      },
      "Folder of compiled kernels, \"\" if there is none.");
  m.def("configure", &configure_runtime, nb::kw_only(), "cache_dir"_a.none() = "", "cache_mode"_a.none() = "read-write",
        "tuning_files"_a = nb::make_tuple(), "cpu_threads"_a = 0, "cache_folders"_a = nb::make_tuple(),
        "packs"_a = nb::make_tuple(), "pack_public_key"_a = "", "cache_max_bytes"_a = RuntimeOptions().cache_max_bytes,
        "dump_dir"_a.none() = "", "record_untuned"_a.none() = "",
        "Options for matrices that are made from now on; call it first.");
  m.def("warmup", &warmup, "what"_a, "max_m"_a, "dtype"_a.none() = "float16", nb::kw_only(), "device"_a = nb::none(),
        "act_order"_a = false, "bias"_a = false, "group_size"_a = 128, "threads"_a = 0, "deadline"_a = 0.0,
        "progress"_a = nb::none(), "in_place"_a = false,
        "Finds or compiles, and loads, every kernel that plans of a Checkpoint (or the path of one) or of a list of "
        "(k, n) need. "
        "progress(done, total, kernel) may return True to stop. in_place: of shapes, for matrices that are loaded with "
        "reuse. Returns what came of each kernel.");
  m.def("numerics_id", &numerics_id, "what"_a, "max_m"_a, "dtype"_a.none() = "float16", nb::kw_only(),
        "device"_a = nb::none(), "act_order"_a = false, "bias"_a = false, "group_size"_a = 128,
        "16 hex digits of what decides the bits of results for a Checkpoint (or the path of one) or a list of (k, n): "
        "the "
        "kind of device, the device code, the tactics. Ranks compare it (q4.torch.check_ranks_agree).");
  m.def("cache_counters", &cache_counters, "Where kernels came from since configure(), and the time it took.");
  m.def("tuning", &tuning, "The tuning records in use, as dicts.");
  m.attr("version") = Q4_VERSION;
  bind_checkpoint(m);
}

}  // namespace q4::python
