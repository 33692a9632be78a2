// The tuner beside others: what is lacking of the processors, what NVML says of a GPU, and what a run says of it.
#include <doctest/doctest.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <q4/tuning.hpp>
#include <thread>

#include "autotune/neighbours.hpp"
#include "interpreted.hpp"
#include "report.hpp"
#include "sandbox.hpp"

namespace q4::autotune {
namespace {

using test::Environment;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Processors whose times are those; the first line is their sum.
std::string stat(double busy, double idle, int processors = 4) {
  const auto line = [&](const std::string& name, int times) {
    return name + " " + std::to_string(busy * times) + " 0 0 " + std::to_string(idle * times) + " 0 0 0 0 0 0\n";
  };
  std::string text = line("cpu ", processors);
  for (int i = 0; i < processors; ++i) text += line("cpu" + std::to_string(i), 1);
  return text + "intr 1 2 3\n";
}

TEST_CASE("neighbours: what is lacking of idle processors, by the times of /proc/stat") {
  CHECK(lacking_processors(stat(100, 100), stat(100, 110), 4) == 0);
  CHECK(lacking_processors(stat(100, 100), stat(105, 105), 4) == doctest::Approx(0.5));
  CHECK(lacking_processors(stat(100, 100), stat(105, 105), 2) == 0);  // two of four are enough
  CHECK(lacking_processors(stat(100, 100), stat(110, 100), 2) == 1);
  for (const std::string& nothing : {std::string(), std::string("cpu  1 2 3 4\n"), std::string("btime 7\n")}) {
    CHECK(lacking_processors(nothing, stat(1, 1), 2) < 0);
    CHECK(lacking_processors(stat(1, 1), nothing, 2) < 0);
  }
  CHECK(lacking_processors(stat(1, 1), stat(1, 1), 2) < 0);  // no time has passed
  CHECK_FALSE(Neighbours{}.disturb());
  CHECK(NeighbourWatch(DeviceInfo{}, "cpu", "none", "/none").look().share < 0);
}

TEST_CASE("neighbours: how busy others keep a GPU, and who they are, by NVML") {
  const std::string nvml = test::binary_dir() + "/lib/libq4-fake-nvml.so";
  DeviceInfo gpu;
  gpu.device = {BackendKind::kCuda, 0};
  const auto look = [&](const char* busy, int pid, const std::string& library, const std::string& address) {
    const Environment says({{"FAKE_NVML_BUSY", busy}, {"FAKE_NVML_PID", std::to_string(pid)}});
    return NeighbourWatch(gpu, address, library).look();
  };
  const std::string here = "0000:1b:00.0";
  const Neighbours one = look("37", ::getppid(), nvml, here);
  CHECK(one.disturb());
  CHECK(one.text() == "others use 37% of it (process " + std::to_string(::getppid()) + " holds 1.5 GB)");
  const Neighbours own = look("3", ::getpid(), nvml, here);
  CHECK_FALSE(own.disturb());
  CHECK(own.text() == "others use 3% of it");
  CHECK(look("37", 1, nvml, "0000:ff:00.0").share < 0);
  CHECK(look("37", 1, "none", here).share < 0);
}

TEST_CASE("q4-autotune: beside others it waits for a little, goes on, and the record says so") {
  const test::Sandbox box;
  std::atomic<bool> stop = false;
  std::vector<std::jthread> others;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i)
    others.emplace_back([&] {
      while (!stop) {}
    });
  const test::Ended ended = box.run(
      "q4-autotune --device cpu --shape 256x128 --group 32 --policy warm --m 1,16 --budget " +
          std::to_string(20 * test::kSlower) + " --out " + box.file("t.jsonl") + " --report " + box.file("r.html"),
      true);
  stop = true;
  REQUIRE(ended.status == 0);
  CHECK(contains(ended.out, "of it: waiting up to"));
  TuningDb db;
  db.load(box.file("t.jsonl"));
  REQUIRE(db.size() == 1);
  CHECK(contains(db.records()[0].provenance.at("others"), "others use "));
  CHECK(contains(box.read("r.html"), "measured beside others"));
}

}  // namespace
}  // namespace q4::autotune
