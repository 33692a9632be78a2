// What the tools share, and the tools themselves as processes on the CPU.
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <q4/q4.hpp>

#include "report.hpp"
#include "sandbox.hpp"
#include "tools/bench/baseline.hpp"
#include "tools/bench/summary.hpp"
#include "tools/common/common.hpp"
#include "tools/common/shapes.hpp"

namespace q4::tools {
namespace {

using test::Ended;
using test::Sandbox;

using List = std::vector<std::int64_t>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& e) { return e.what(); }
  return "no error";
}

TEST_CASE("lists of m") {
  CHECK(parse_m_list("8,1, 64") == List{1, 8, 64});
  CHECK(parse_m_list("1-16") == List{1, 2, 4, 8, 16});
  CHECK(parse_m_list("3-20 5,5") == List{3, 5, 6, 12, 20});
  CHECK(powers_of_two(6) == List{1, 2, 4, 6});
  CHECK(powers_of_two(1) == List{1});
  for (const char* bad : {"", ",", "0", "-4", "1-", "x", "16-1", "1.5", "9999999999"}) {
    CAPTURE(bad);
    CHECK(contains(error_of([&] { parse_m_list(bad); }), "--m"));
  }
}

TEST_CASE("numbers and tables keep their columns") {
  CHECK(number(4.2129) == "4.213");
  CHECK(number(12345.6) == "12346");
  CHECK(number(0.001234) == "0.001234");
  CHECK(number(0) == "-");
  CHECK(percent(0.034) == "+3.4%");
  Table table({"name", "us"});
  table.add({"a", "9.5"});
  table.add({"longer", "1000"});
  CHECK(table.str() == "name      us\na        9.5\nlonger  1000\n");
}

TEST_CASE("bench --summary: geometric means over classes of m, of exact points alone") {
  BenchRun run;
  run.baseline =
      Baseline::parse("peer,k,n,group,act_order,m,us\nother,64,64,32,0,1,3\nother,64,64,32,0,4,2\n", "peers.csv");
  const autotune::Problem problem{.label = "square", .k = 64, .n = 64, .group = 32};
  const auto point = [&](std::int64_t m, double us, double floor, double dense, bool exact = true) {
    Point p{problem, m, "gemv"};
    p.us.value = us, p.floor_us = floor, p.dense_us = dense, p.exact = exact;
    run.points.push_back(p);
  };
  point(1, 3, 2, 6), point(2, 4, 1, 2), point(4, 1, 1, 4), point(8, 100, 1, 1, false);
  const Json rows = summary_json(run);
  REQUIRE(rows.size() == 3);  // "1", "2-8" and "all": no other class has a point
  CHECK(rows[0]["x_floor"].get<double>() == doctest::Approx(1.5));
  CHECK(rows[0]["x_peer"].get<double>() == doctest::Approx(1));
  CHECK(rows[0]["slower_than_peer"] == 0);
  CHECK(rows[1]["points"] == 2);
  CHECK(rows[1]["x_floor"].get<double>() == doctest::Approx(2));
  CHECK(rows[1]["x_dense"].get<double>() == doctest::Approx(std::sqrt(0.5)));
  CHECK(rows[1]["slower_than_dense"] == 1);
  CHECK(rows[2]["x_floor"].get<double>() == doctest::Approx(std::cbrt(6)));
  CHECK(contains(summary_table(run), "2-8"));
  CHECK(contains(summary_table(run), "1 of 2"));
}

TEST_CASE("the bar fits its line, and never promises more than the budget") {
  CHECK(progress_bar(0.5, 10, 0, "text", 80) == "[##########..........]  50%  text  10 s left");
  CHECK(contains(progress_bar(0.1, 10, 60, "text", 80), "50 s left"));  // the pace says 90
  CHECK(contains(progress_bar(0, 0, 60, "text", 80), "60 s left"));
  CHECK(progress_bar(0.5, 10, 0, std::string(500, 'x'), 80).size() <= 80);
  CHECK(contains(progress_bar(1.5, 10, 0, "text", 80), "100%"));
}

TEST_CASE("shapes: models, files, and what is wrong with them") {
  const auto llama = model_shapes("llama-3-8b");
  REQUIRE(llama.size() == 4);
  CHECK(llama[2].label == "gate_up");
  CHECK(llama[2].k == 4096);
  CHECK(llama[2].n == 28672);
  CHECK(model_shapes("sweep").size() == 7);
  CHECK(contains(error_of([] { model_shapes("gpt-9"); }), "llama-3-8b"));

  const auto shapes = csv_shapes("n,k,group,act_order,layer\n64, 128,32,1,up\n\n8,16,,,\n", "f", 128, false);
  REQUIRE(shapes.size() == 2);
  CHECK(shapes[0].k == 128);
  CHECK(shapes[0].group == 32);
  CHECK(shapes[0].act_order);
  CHECK(shapes[1].group == 16);  // 128 asked for, one group of k rows
  CHECK_FALSE(shapes[1].act_order);
  CHECK(contains(error_of([] { csv_shapes("k,m\n8,8\n", "f", 128, false); }), "line 1"));
  CHECK(contains(error_of([] { csv_shapes("k,n\n8,8\n8,x\n", "f", 128, false); }), "f line 3"));
  CHECK(contains(error_of([] { csv_shapes("k,n\n8,12\n", "f", 128, false); }), "multiples of 8"));
  CHECK(contains(error_of([] { csv_shapes("k,n\n8\n", "f", 128, false); }), "line 2"));
  CHECK(contains(error_of([] { csv_shapes("k,n\n", "f", 128, false); }), "no shape"));
  CHECK(contains(error_of([] { csv_shapes("k,n,layer\n8,8,g\xe5te\n", "f", 128, false); }), "f line 2: the name"));
  CHECK(csv_shapes("\xef\xbb\xbfk,n,layer\n8,8,g\xc3\xa5te\n", "f", 128, false)[0].label == "g\xc3\xa5te");
  CHECK(contains(error_of([] { csv_shapes("k,n\n8,9999999992\n", "f", 128, false); }), "at most"));
  CHECK(contains(error_of([] { csv_shapes("\x1b[2J\x01", "f", 128, false); }), "\"?[2J?\""));

  CHECK(parse_shape("4096x22016").n == 22016);
  for (const char* bad : {"4096", "x", "4096x", "4096x-8", "12x8", "0x8"}) CHECK_THROWS_AS(parse_shape(bad), Error);

  ShapeOptions options;
  options.model = "llama-3-8b", options.group = -1, options.act_order = true;
  CHECK(options.resolve("sweep")[0].group == 4096);
  CHECK(options.resolve("sweep")[0].act_order);
  options.group = 12;
  CHECK_THROWS_AS(options.resolve("sweep"), Error);
}

TEST_CASE("baseline: the best 4-bit peer, with dense and floor apart") {
  const auto baseline = Baseline::parse(
      "peer,k,n,group,act_order,m,us,tflops\ncublas_fp16,8,16,128,0,1,1.0,2\nslow,8,16,128,0,1,9.5,2\n"
      "fast,8,16,128,0,1,7.25,2\nread_floor,8,16,128,0,1,0.5,2\nother,8,16,128,1,1,3,2\n",
      "peers");
  const autotune::Problem p{"", 8, 16, 128, false};
  CHECK(baseline.at(p, 1).best == "fast");
  CHECK(baseline.at(p, 1).best_us == 7.25);
  CHECK(baseline.at(p, 1).dense_us == 1.0);
  CHECK(baseline.at(p, 1).floor_us == 0.5);
  CHECK(baseline.at(p, 2).best == "-");
  CHECK(contains(error_of([] { Baseline::parse("peer,k,n\n", "p"); }), "line 1"));
  CHECK(contains(error_of([] { Baseline::parse("peer,k,n,group,act_order,m,us\na,1,1,1,0,1,x\n", "p"); }), "p line 2"));
}

TEST_CASE("sizes in bytes, and names that would steer a terminal") {
  CHECK(parse_bytes("0", "--x") == 0);
  CHECK(parse_bytes("1000000", "--x") == 1000000);
  CHECK(parse_bytes("500 MB", "--x") == 500'000'000);
  CHECK(parse_bytes("5gb", "--x") == 5'000'000'000);
  CHECK(parse_bytes("2GiB", "--x") == std::uint64_t{2} << 30);
  CHECK(parse_bytes("7k", "--x") == 7000);
  for (const char* wrong : {"", "-1", "GB", "1e9", "1.5GB", "5XB", "5IB", "99999999TB", "99999999999999999999"})
    CHECK_MESSAGE(contains(error_of([&] { parse_bytes(wrong, "--x"); }), "--x = "), wrong);
  Table table({"name"});
  table.add({"a\n\x1b[31mb\x7f"});
  CHECK(table.str() == "name\na??[31mb?\n");
}

// ---- processes -----------------------------------------------------------------------------------------------------
TEST_CASE("every tool teaches, has a version, and tells usage from failure") {
  const Sandbox box;
  for (const std::string tool : {"q4-info", "q4-autotune", "q4-bench"}) {
    CAPTURE(tool);
    const Ended help = box.run(tool + " --help");
    CHECK(help.status == 0);
    CHECK(contains(help.out, "Examples:"));
    CHECK(contains(help.out, "--json"));
    CHECK(box.run(tool + " --version").out == tool + " " Q4_VERSION "\n");
    CHECK(contains(box.run(tool + " --no-such-option", true).out, tool + ": error: "));
    CHECK(box.run(tool + " --no-such-option").status == 2);
    CHECK(box.run(tool + " surplus").status == 2);
  }
  for (const std::string tool : {"q4-autotune", "q4-bench"}) {
    CAPTURE(tool);
    CHECK(box.run(tool + " --m zero").status == 2);
    CHECK(box.run(tool + " --activation int8").status == 2);
    CHECK(box.run(tool + " --model llama-3-8b --shape 8x8").status == 2);
    const Ended device = box.run(tool + " --device cuda:77", true);
    CHECK(device.status == 2);
    CHECK(contains(device.out, tool + ": error: "));
    const Ended model = box.run(tool + " --device cpu --model gpt-9", true);
    CHECK(model.status == 2);  // as every other value that an option cannot have
    CHECK(contains(model.out, "qwen2.5-7b"));
    CHECK(box.run(tool + " --device cpu --shapes " + box.file("none.csv")).status == 2);
    CHECK(box.run(tool + " --device cpu --checkpoint " + box.file("none")).status == 2);
    CHECK(box.run(tool + " --device cpu --shape 8").status == 2);
    CHECK(contains(box.run(tool + " --device cpu --shapes " + box.file(""), true).out, "no file that can be read"));
    const Ended groups = box.run(tool + " --device cpu --checkpoint none --group 64", true);
    CHECK(groups.status == 2);
    CHECK(contains(groups.out, "--group"));
    const std::string seconds = tool == "q4-bench" ? " --seconds " : " --budget ";
    for (const char* value : {"-1", "soon", "nan"}) {
      const Ended wrong = box.run(tool + seconds + value, true);
      CHECK(wrong.status == 2);
      CHECK(contains(wrong.out, std::string("\"") + value + "\" is no number of seconds"));
    }
  }
}

TEST_CASE("q4-info names the CPU, the folder and a damaged tuning file") {
  const Sandbox box;
  const Ended info = box.run("q4-info --json");
  REQUIRE(info.status == 0);
  const Json json = Json::parse(info.out);
  CHECK(json["devices"].size() >= 1);
  CHECK(json["devices"].back()["device"] == "cpu");
  CHECK(json["cache_dir"] == box.file("cache"));
  CHECK(json["tuning_files"].empty());
  std::filesystem::create_directories(box.file("cache"));
  std::filesystem::permissions(box.file("cache"), std::filesystem::perms::owner_all);
  std::ofstream(box.file("cache/tuning.jsonl")) << "{\n";
  const Ended damaged = box.run("q4-info");
  CHECK(damaged.status == 2);
  CHECK(contains(damaged.out, "not used: TuningDb::load"));
  CHECK(contains(damaged.out, "line 1"));
  CHECK(contains(damaged.out, "kernels: 0,"));  // the tuning file is none
}

TEST_CASE("q4-autotune writes a file that q4-info and q4-bench use and a second run keeps") {
  const Sandbox box;
  const std::string tune = "q4-autotune --device cpu --shape 256x128 --group 32 --m 1,16 --json --budget " +
                           std::to_string(20 * test::kSlower);
  const Ended first = box.run(tune);
  REQUIRE(first.status == 0);
  const Json shape = Json::parse(first.out)["shapes"].at(0);
  CHECK(shape["complete"] == true);
  CHECK(shape["kept"] == false);
  CHECK(shape["buckets"].size() >= 2);

  TuningDb db;
  db.load(box.file("cache/tuning.jsonl"));
  CHECK(db.size() == 1);
  CHECK(Json::parse(box.run("q4-info --json").out)["tuning_files"].at(0)["exact"] == 1);
  CHECK(Json::parse(box.run(tune).out)["shapes"].at(0)["kept"] == true);
  CHECK(Json::parse(box.run(tune + " --again").out)["shapes"].at(0)["kept"] == false);

  db = TuningDb();  // measured again: equals may have changed places
  db.load(box.file("cache/tuning.jsonl"));
  const std::string bench = "q4-bench --device cpu --shape 256x128 --group 32 --m 1,16 --seconds 0.1 ";
  const Json tuned = Json::parse(box.run(bench + "--json").out);
  CHECK(tuned["tuning_records"] == 1);
  for (int i = 0; i < 2; ++i) CHECK(tuned["points"].at(i)["kernel"] == db.records()[0].bucket(i == 0 ? 1 : 16)->tactic);
  CHECK(Json::parse(box.run(bench + "--json --untuned").out)["tuning_records"] == 0);

  std::ofstream(box.file("cache/tuning.jsonl"), std::ios::app) << "{\n";
  CHECK(box.run(tune).status == 2);  // a damaged file is not overwritten
}

TEST_CASE("q4-bench: columns of the CSV, one tactic, a wrong tactic") {
  const Sandbox box;
  const std::string bench =
      "q4-bench --device cpu --shape 256x128 --group 64 --act-order --m 3 --seconds 0.1 --untuned ";
  REQUIRE(box.run(bench + "--csv " + box.file("out.csv")).status == 0);
  std::ifstream in(box.file("out.csv"));
  std::string header, row;
  std::getline(in, header), std::getline(in, row);
  CHECK(header == "kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err");
  CHECK(contains(row, ",256,128,64,1,3,"));
  CHECK(std::stod(row.substr(row.rfind(',') + 1)) <= 5e-4);

  const Json chain = Json::parse(box.run(bench + "--chain 2 --json").out);
  CHECK(chain.at(0)["layers"] == 2);
  CHECK(chain.at(0)["us"] > 0);
  CHECK(chain.at(0)["overlapped_us"] > 0);
  CHECK(box.run(bench + "--chain 0").status == 2);
  CHECK(box.run(bench + "--baseline " + box.file("none.csv")).status == 2);
  CHECK(box.run(bench + "--csv " + box.file("no/such/folder.csv")).status == 1);

  CHECK(contains(box.run(bench + "--chain 2").out, "share of read-only"));

  const auto kernel = Json::parse(box.run(bench + "--json").out)["points"].at(0)["kernel"].get<std::string>();
  CHECK(box.run(bench + "--tactic '" + kernel + "'").status == 0);
  CHECK(box.run(bench + "--tactic 'no such tactic'").status == 2);
  CHECK(box.run(bench + "--batch-invariant").status == 0);
  CHECK(box.run(bench + "--batch-invariant --tactic '" + kernel + "'").status == 2);  // it chooses the kernel itself
}

TEST_CASE("q4-bench: threads, and times of others beside its own") {
  const Sandbox box;
  const std::string bench = "q4-bench --device cpu --shape 256x128 --group 64 --m 3 --seconds 0.02 --untuned ";
  const Json threads = Json::parse(box.run(bench + "--scaling --json").out)["scaling"];
  CHECK(threads.at(0)["threads"] == 1);
  for (const Json& row : threads) CHECK(row["us"] > 0);

  std::ofstream(box.file("peers.csv")) << "peer,k,n,group,act_order,m,us\nslow,256,128,64,0,3,4000000\n"
                                          "slower,256,128,64,0,3,5000000\ncublas_fp16,256,128,64,0,3,6000000\n";
  const std::string both = box.run(bench + "--scaling --baseline " + box.file("peers.csv")).out;
  CHECK(contains(both, "speedup"));
  CHECK(contains(both, "x peer"));
  const Json point = Json::parse(box.run(bench + "--json --baseline " + box.file("peers.csv")).out)["points"].at(0);
  CHECK(point["peer"] == "slow");
  CHECK(point["peer_us"] == 4e6);
}

TEST_CASE("q4-autotune: Ctrl-C ends cleanly, and what is done is kept") {
  const Sandbox box;
  const Ended ended = box.run("q4-autotune --device cpu --model llama-2-70b --m 1,64,512 --budget 300 --json", false,
                              "timeout --preserve-status -s INT 4 ");
  CHECK(ended.status == 130);
  const Json json = Json::parse(ended.out);
  CHECK(json["interrupted"] == true);
  std::size_t complete = 0, begun = 0;
  for (const Json& shape : json["shapes"]) complete += shape["complete"] == true, begun += !shape["buckets"].empty();
  CHECK(complete < 4);
  TuningDb db;
  if (std::filesystem::exists(box.file("cache/tuning.jsonl"))) db.load(box.file("cache/tuning.jsonl"));
  CHECK(db.size() == begun);
}

}  // namespace
}  // namespace q4::tools
