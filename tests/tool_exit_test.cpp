// How the tools end: the output stream checked at the end, one meaning of each exit status, and what q4-info,
// q4-cache doctor and q4-cache build say of files and folders that are not as they should be.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>

#include "cache_support.hpp"
#include "checkpoint_maker.hpp"
#include "report.hpp"
#include "sandbox.hpp"

namespace q4::tools {
namespace {

using cache::contains;
using cache::run_tool;
using test::Ended;
using test::Sandbox;
using test::TempFolder;
using Json = nlohmann::json;

const std::string kTools[] = {"q4-info", "q4-verify", "q4-autotune", "q4-bench", "q4-cache", "q4-convert"};

TEST_CASE("tools: output that cannot be written is an error, whatever wrote it") {
  if (!std::filesystem::exists("/dev/full")) return test::skip("no /dev/full here");
  const Sandbox box;
  const std::string full = "sh -c '\"$@\" 2>&1 >/dev/full' sh ";  // stderr comes through the pipe
  std::vector<std::string> commands = {"q4-info", "q4-info --json", "q4-cache doctor",
                                       "q4-bench --device cpu --untuned --shape 64x64 --m 1 --seconds 0.01"};
  for (const std::string& tool : kTools)
    for (const char* option : {" --help", " --version"}) commands.push_back(tool + option);
  for (const std::string& command : commands) {
    CAPTURE(command);
    const Ended ended = box.run(command, true, full);
    CHECK(ended.status == 1);
    CHECK(contains(ended.out, command.substr(0, command.find(' ')) + ": error: the output could not be written: No "));
  }
}

TEST_CASE("tools: a reader that has gone is nothing to report") {
  const Sandbox box;
  for (const char* ignored : {"trap \"\" PIPE; ", ""}) {
    const Ended ended = box.run("q4-info --json", true,
                                std::string("sh -c '") + ignored + "{ sleep 0.3; \"$@\" 3>&1 2>&3; } | true' sh ");
    CHECK(ended.out == "");
    const std::string said = box.file("said");
    box.run(
        "q4-info", false,
        std::string("sh -c '") + ignored + "{ sleep 0.3; \"$@\" 2>" + said + "; echo $? >>" + said + "; } | true' sh ");
    std::ifstream in(said);
    std::string line;
    std::getline(in, line);
    CHECK((line == "1" || line == "141"));  // nothing before the status
  }
}

TEST_CASE("tools: one meaning of each exit status, also of q4-autotune") {
  const Sandbox box;
  const test::TempFolder checkpoint;
  test::make_checkpoint(checkpoint.path(), {.matrix = {.k = 64, .n = 64, .group_size = 32}});
  const std::string none = box.file("none"), folder = box.file(""), name = " " + checkpoint.path();
  test::write_file(box.file("damaged.jsonl"), "{\n");
  test::write_file(box.file("damaged.safetensors"), "nonsense");
  test::write_file(box.file("empty.jsonl"), "");
  const std::string damaged = box.file("damaged.jsonl"), empty = box.file("empty.jsonl");
  const std::vector<std::string> usage = {
      "q4-info surplus", "q4-cache", "q4-cache nothing", "q4-verify",
      // names that do not exist
      "q4-bench --device cpu --model nope", "q4-autotune --device cpu --model nope",
      "q4-cache build --target sm_90a --model nope", "q4-cache warmup --device cpu --model nope",
      "q4-bench --device cuda:77", "q4-autotune --device cuda:77", "q4-bench --device tpu",
      "q4-verify" + name + " --device cuda:77", "q4-verify" + name + " --tensor nope",
      "q4-bench --device cpu --shape 64x64 --m 1 --seconds 0.01 --tactic nope",
      // values
      "q4-bench --m 0", "q4-autotune --m 0", "q4-verify" + name + " --m 0", "q4-bench --shape 12x8 --device cpu",
      "q4-cache build --target sm_90a --max-m 0", "q4-cache build --target sm_1", "q4-cache prune --max-bytes -1",
      "q4-bench --moe a,b,c,d", "q4-bench --routing zipf", "q4-bench --peak 0",
      // what an unset variable of a shell leaves
      "q4-info ''", "q4-info --config ''", "q4-bench --device cpu --checkpoint ''", "q4-autotune --device ''",
      "q4-verify ''", "q4-cache verify ''", "q4-cache verify --public-key ''", "q4-cache keygen --out ''",
      // devices without an end
      "q4-autotune --device cpu --shape 64x64 --out /dev/full", "q4-bench --device cpu --shapes /dev/zero",
      "q4-cache verify --public-key /dev/zero",
      // inputs that cannot be read
      "q4-verify " + none, "q4-verify " + box.file("damaged.safetensors"), "q4-bench --device cpu --checkpoint " + none,
      "q4-bench --device cpu --checkpoint " + box.file("damaged.safetensors"), "q4-bench --device cpu --shapes " + none,
      "q4-bench --device cpu --shapes " + folder, "q4-bench --device cpu --shapes " + damaged,
      "q4-bench --device cpu --baseline " + none, "q4-autotune --device cpu --shapes " + none,
      "q4-autotune --device cpu --shape 64x64 --out " + damaged,
      "q4-verify" + name + " --tensor model.layers.0.mlp.up_proj --x " + none + " --out " + box.file("y.npy"),
      "q4-cache diff " + none + " " + empty, "q4-cache diff " + empty + " " + damaged,
      "q4-cache diff " + empty + " " + folder, "q4-cache merge --out " + box.file("m.jsonl") + " " + none,
      "q4-cache merge --out " + box.file("m.jsonl") + " " + damaged, "q4-cache verify " + none,
      "q4-cache merge --out " + box.file("m.q4pack") + " " + none + ".q4pack",
      "q4-cache build --target sm_90a --tuning " + none, "q4-cache build --target sm_90a --tuning " + damaged,
      "q4-cache export " + none + " --out " + box.file("e"), "q4-cache import " + none};
  for (const std::string& command : usage) {
    const Ended ended = box.run(command, true);
    CHECK_MESSAGE(ended.status == 2, command, ": ", ended.out);
    CHECK_MESSAGE(contains(ended.out, ": error: "), command, ": ", ended.out);
  }
  CHECK(contains(box.run("q4-cache nothing", true).out, "there is no subcommand \"nothing\""));

  CHECK(box.run("q4-cache diff " + empty + " " + empty).status == 0);
  CHECK(box.run("q4-verify" + name + " --device cpu").status == 0);
  TuningRecord record;
  record.key.fingerprint = "x", record.key.arch = "y", record.key.units = 1, record.key.kernels = "z";
  record.key.k = record.key.n = 64, record.key.group = 32;
  record.buckets.resize(1);
  record.buckets[0].m = 1, record.buckets[0].tactic = "t", record.buckets[0].us = 1;
  TuningDb db;
  db.add(record);
  db.save(box.file("one.jsonl"));
  CHECK(box.run("q4-cache diff " + empty + " " + box.file("one.jsonl")).status == 1);
  CHECK(box.run("q4-cache merge --out /proc/none.jsonl " + empty).status == 1);  // the work fails
  const std::string tune = "q4-autotune --device cpu --shape 64x64 --m 1 --budget 20 ";
  CHECK(box.run(tune + "--out /proc/none.jsonl").status == 1);
  const Ended unreported = box.run(tune + "--report /dev/full", true);
  CHECK(unreported.status == 1);
  CHECK_MESSAGE(contains(unreported.out, "tuned us"), unreported.out);  // the table is shown all the same
  const std::string bench = "q4-bench --device cpu --shape 64x64 --m 1 --seconds 0.01 ";
  CHECK(box.run(bench + "--csv /proc/none.csv").status == 1);
  const Ended full = box.run(bench + "--csv /dev/full", true);
  CHECK(full.status == 1);
  CHECK_MESSAGE(contains(full.out, "64x64"), full.out);  // what was measured is shown all the same
  CHECK_MESSAGE(contains(full.out, "No space left"), full.out);
  test::write_file(box.file("shapes.csv"), "k,n\n64,64\n");
  const std::string shapes = box.file("shapes.csv");
  CHECK(box.run("q4-bench --device cpu --shapes " + shapes + " --csv " + shapes).status == 2);
  CHECK(test::read_file(shapes) == "k,n\n64,64\n");
}

TEST_CASE("q4-info: what is wrong with a tuning file is its exit status too") {
  const Sandbox box;
  test::write_file(box.file("damaged.jsonl"), "{\n");
  test::write_file(box.file("fine.jsonl"), "");
  const auto info = [&](const std::string& files, const char* option) {
    return run_tool(std::string("q4-info") + option, "Q4_CACHE_DIR=" + box.file("cache") + " Q4_TUNING=" + files);
  };
  for (const char* option : {"", " --json"}) {
    CHECK(info(box.file("fine.jsonl"), option).status == 0);
    for (const char* file : {"damaged.jsonl", "none.jsonl", ""}) {
      const auto ran = info(box.file("fine.jsonl") + ":" + box.file(file), option);
      CAPTURE(ran.out);
      CHECK(ran.status == 2);
      CHECK(contains(ran.out, "q4-info: error: TuningDb::load: "));
      CHECK(contains(ran.out, box.file(file)));
    }
  }
  CHECK(contains(info(box.file("damaged.jsonl"), "").out, "every plan fails"));
}

TEST_CASE("q4-info shows the tuning records that plans use: packs, and what lies beside the program") {
  TempFolder s;
  TuningRecord record;
  {
    RuntimeOptions memory;
    memory.cache_mode = CacheMode::kOff;
    const Runtime runtime(memory);
    const DeviceInfo cpu = runtime.info({});
    record.key.fingerprint = cpu.fingerprint, record.key.arch = cpu.arch, record.key.units = cpu.compute_units;
  }
  record.key.kernels = "those of another version";
  record.key.k = record.key.n = 64, record.key.group = 32;
  record.buckets.resize(1);
  record.buckets[0].m = 1, record.buckets[0].tactic = "t", record.buckets[0].us = 1;
  TuningDb db;
  db.add(record);
  namespace fs = std::filesystem;
  fs::create_directories(s / "opt/bin");
  fs::create_directories(s / "opt/share/q4");
  fs::copy_file(test::binary_dir() + "/bin/q4-info", s / "opt/bin/q4-info");
  const auto files = [&] {
    std::FILE* pipe =
        ::popen(("env -u Q4_TUNING Q4_CACHE_DIR=" + (s / "none") + " " + (s / "opt/bin/q4-info --json")).c_str(), "r");
    REQUIRE(pipe);
    std::string out;
    char buffer[4096];
    for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, got);
    CHECK(::pclose(pipe) == 0);
    return Json::parse(out)["tuning_files"];
  };
  CHECK(files().empty());
  db.save(s / "opt/share/q4/tuning.jsonl");
  REQUIRE(files().size() == 1);
  CHECK(files()[0]["path"] == (s / "opt/share/q4/tuning.jsonl"));
  CHECK(files()[0]["stale"] == 1);
  REQUIRE(cache::write_pack(s / "opt/share/q4/ship.q4pack", {}, db.str()) == "");
  REQUIRE(files().size() == 2);
  CHECK(files()[0]["pack"] == true);  // read first: the file's records win
  CHECK(files()[0]["records"] == 1);
}

/// q4-cache doctor, where `environment` says where the folder is; as a user without rights where this is root.
cache::Ran doctor(const std::string& environment, const std::string& folder = "/") {
  const std::string other = ::geteuid() == 0 ? "setpriv --reuid=54321 --regid=54321 --clear-groups " : "";
  const std::string tool = test::binary_dir() + "/bin/q4-cache doctor";
  const std::string command = "cd " + folder + " && " + other + "env -u Q4_CACHE_DIR -u XDG_CACHE_HOME -u HOME " +
                              environment + " " + tool + " 2>&1";
  cache::Ran ran;
  std::FILE* pipe = ::popen(command.c_str(), "r");
  REQUIRE(pipe);
  char buffer[4096];
  for (std::size_t got; (got = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) ran.out.append(buffer, got);
  const int status = ::pclose(pipe);
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ran;
}

TEST_CASE("q4-cache doctor: a folder that nothing can be written to is not well") {
  if (::geteuid() == 0 && std::system("setpriv --version >/dev/null 2>&1") != 0)
    return test::skip("doctor without rights: no setpriv (util-linux)");
  if (doctor("Q4_CACHE_DIR=/tmp/q4-none").status > 1)
    return test::skip("doctor without rights: the build folder is private");
  TempFolder s;
  ::chmod(s.path().c_str(), 0777);
  std::ofstream(s / "file") << "x";
  std::filesystem::create_directories(s / "closed");
  ::chmod((s / "closed").c_str(), 0555);
  const struct {
    std::string environment, says;
  } bad[] = {
      {"HOME=/", "cannot be made: cannot create //.cache/q4: Permission denied"},
      {"", "none: set Q4_CACHE_DIR"},
      {"HOME=/nonexistent", "cannot be made"},
      {"XDG_CACHE_HOME=/proc", "cannot be made"},
      {"HOME=" + (s / "closed"), "cannot be made"},
      {"Q4_CACHE_DIR=" + (s / "closed/deep/er"), "cannot be made"},
      {"Q4_CACHE_DIR=" + (s / "file"), "not a folder"},
      {"Q4_CACHE_DIR=" + (s / "file/below"), "Not a directory"},
      {"Q4_CACHE_DIR=relative", "relative is relative"},
      {"HOME=relative", "is relative"},
  };
  for (const auto& b : bad) {
    const auto ran = doctor(b.environment, b.environment.find("relative") == std::string::npos ? "/" : s.path());
    CAPTURE(b.environment);
    CAPTURE(ran.out);
    CHECK(ran.status == 1);
    CHECK(contains(ran.out, b.says));
    CHECK_FALSE(contains(ran.out, "all is well"));
  }
  const auto fresh = doctor("Q4_CACHE_DIR=" + (s / "a/b/c"));
  CHECK(contains(fresh.out, "made at the first write"));
  CHECK(contains(fresh.out, "all is well"));
  CHECK(fresh.status == 0);
  CHECK_FALSE(std::filesystem::exists(s / "a"));                       // what was tried is gone
  CHECK(doctor("HOME=/ Q4_CACHE_MODE=require-prebuilt").status == 0);  // nothing would be written
}

TEST_CASE("q4-cache build: a number of SMs must be one, and progress is told without a terminal") {
  const Sandbox box;
  for (const char* target :
       {"sm_90a/0", "sm_90a/-1", "sm_90a/", "sm_90a/x", "sm_90a/99999999999999999999", "sm_90a/4294967297",
        "sm_90a/114/2", "sm_90a/+7", "sm_90a/1.5", "gfx90a/0", "sm_80,sm_90a/0", "/114", ",", "''"}) {
    CAPTURE(target);
    const Ended ended = box.run(std::string("q4-cache build --shape 64x64 --max-m 1 --target ") + target, true);
    CHECK(ended.status == 2);
    CHECK(contains(ended.out, "--target"));
  }
  const Ended built = box.run("q4-cache build --shape 64x64 --group 64 --max-m 1 --target sm_90a/114", true);
  if (contains(built.out, "NVRTC") && built.status != 0) return test::skip("q4-cache build: no NVRTC here");
  CHECK(built.status == 0);
  CHECK(contains(built.out, "  0%  0 s  sm_90a 114 SMs: 64x64"));
}

TEST_CASE("tools: where there is no /proc they find the CPU, measure, and q4-autotune tunes") {
  if (test::kSlower > 1) return test::skip("without /proc: sanitizers need it");
  const std::string hidden = "unshare --mount sh -c 'mount -t tmpfs none /proc && exec \"$@\"' sh ";
  const Sandbox box;
  if (box.run("q4-info --help", false, hidden).status != 0) return test::skip("no mount namespace to hide /proc in");
  CHECK(contains(box.run("q4-info", true, hidden).out, "cpu"));
  for (const std::string& command :
       {std::string("q4-bench --untuned --seconds 0.01"),
        "q4-autotune --policy warm --budget 3 --out " + box.file("t.jsonl") + " --report " + box.file("r.html")}) {
    const Ended ended = box.run(command + " --device cpu --shape 256x128 --group 32 --m 1", true, hidden);
    CHECK_MESSAGE(ended.status == 0, ended.out);
  }
}

}  // namespace
}  // namespace q4::tools
