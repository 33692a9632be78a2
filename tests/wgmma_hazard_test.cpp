// Whether compiled prefill kernels leave the registers of a wgmma in flight alone: the hardware does not, the compiler
// may move a copy of the sums ahead of the wait, and then a few steps of k are missing. Needs nvdisasm, no GPU.
// $Q4_COMPILE_ALL=1 looks at the whole search space instead of a sample.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <span>
#include <sstream>

#include "kernels/problem.h"
#include "report.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/backends/hip/process.hpp"
#include "runtime/choose/kernel.hpp"
#include "sandbox.hpp"

namespace q4::test {
namespace {

std::string find_nvdisasm() {
  std::vector<std::string> names = {"nvdisasm", "/usr/local/cuda/bin/nvdisasm"};
  if (const char* given = std::getenv("Q4_NVDISASM")) names = {given};
  for (const auto& name : names)
    if (hip::run_program({name, "--version"}, "").status == 0) return name;
  return "";
}

/// Registers [first, first + count).
struct Registers {
  int first = 0, count = 0;
  bool meets(const Registers& other) const { return first < other.first + other.count && other.first < first + count; }
};

/// One line of nvdisasm: "/*1a30*/  @!P0 HGMMA.64x16x16.F32 R24, R48, gdesc[UR4], R24, gsb0 ;" or a label ".L_x_22:".
struct Line {
  std::string text, label, target;  // target: of a branch
  std::vector<Registers> registers;
  bool writes_first = false;  // the first operand is a register: the destination
};

std::vector<Line> parse(const std::string& listing) {
  static const std::regex kInstruction(R"(/\*[0-9a-f]{4,}\*/\s+(@!?U?P\d+ )?\s*([A-Z0-9_.]+)(.*?);)");
  static const std::regex kLabel(R"(^(\.L_x_\d+):)"), kBranch(R"(`\((\.L_x_\d+)\))"), kRegister(R"(\bR(\d+)(\.64)?\b)");
  std::vector<Line> lines;
  std::istringstream in(listing);
  for (std::string text; std::getline(in, text);) {
    std::smatch match;
    Line line;
    if (std::regex_search(text, match, kLabel)) {
      line.label = match[1];
    } else if (std::regex_search(text, match, kInstruction)) {
      const std::string name = match[2], operands = match[3];
      line.text = name + operands;
      std::smatch target;
      if (name.starts_with("BRA") && std::regex_search(operands, target, kBranch)) line.target = target[1];
      const bool wide = name.find(".64") != std::string::npos || name.find(".WIDE") != std::string::npos;
      const int width = name.find(".128") != std::string::npos ? 4 : wide ? 2 : 1;
      for (std::sregex_iterator i(operands.begin(), operands.end(), kRegister), end; i != end; ++i) {
        const auto at = static_cast<std::size_t>(i->position());
        const bool address = operands.find('[') < at && at < operands.find(']');
        line.registers.push_back({std::stoi((*i)[1]), (*i)[2].matched ? 2 : address ? 1 : width});
      }
      line.writes_first = std::regex_search(operands, std::regex(R"(^\s*R\d)"));
    } else {
      continue;
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

/// What wgmmas in flight own: sums may not be touched, fragments of weights not written. By committed batches.
struct InFlight {
  struct Batch {
    Registers sums;
    std::vector<Registers> fragments;
  };
  std::deque<Batch> batches;
  bool open = false;  // the last batch is not committed yet

  void issue(const Line& line) {
    std::smatch shape;
    REQUIRE(std::regex_search(line.text, shape, std::regex(R"(^HGMMA\.64x(\d+)x16\.)")));
    REQUIRE(line.registers.size() >= 2);  // sums, a fragment, and the same sums where they are added to
    if (!open) batches.emplace_back();
    batches.back().sums = {line.registers[0].first, std::stoi(shape[1]) / 2};
    batches.back().fragments.push_back({line.registers[1].first, 4});
    open = line.text.find("gsb0") == std::string::npos;
  }
  void wait(std::size_t pending) {
    while (batches.size() > pending) batches.pop_front();
  }
  bool harmed_by(const Line& line) const {
    return std::any_of(batches.begin(), batches.end(), [&](const Batch& batch) {
      const auto meets = [&](const Registers& owned) {
        return [&](const Registers& used) { return owned.meets(used); };
      };
      return std::any_of(line.registers.begin(), line.registers.end(), meets(batch.sums)) ||
             (line.writes_first && std::any_of(batch.fragments.begin(), batch.fragments.end(),
                                               [&](const Registers& f) { return f.meets(line.registers[0]); }));
    });
  }
};

/// The first harmful instruction, or nothing. Lines are walked in order; a loop's body once more with what is in flight
/// where it repeats.
std::string hazard(const std::vector<Line>& lines) {
  std::map<std::string, std::size_t> labels;
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (!lines[i].label.empty()) labels[lines[i].label] = i;
  std::string found;
  const auto walk = [&](auto& self, std::size_t from, std::size_t to, InFlight flight, bool again) -> void {
    for (std::size_t i = from; i < to && found.empty(); ++i) {
      const Line& line = lines[i];
      if (line.text.starts_with("HGMMA")) {
        flight.issue(line);
      } else if (line.text.starts_with("WARPGROUP.DEPBAR.LE gsb0")) {
        flight.wait(line.text.find("0x1") != std::string::npos ? 1 : 0);
      } else if (flight.harmed_by(line)) {
        found = line.text;
      }
      if (again || line.target.empty() || flight.batches.empty()) continue;
      const auto target = labels.find(line.target);
      if (target != labels.end() && target->second < i) self(self, target->second, i, flight, true);
    }
  };
  walk(walk, 0, lines.size(), {}, false);
  return found;
}

std::string disassemble(const std::string& nvdisasm, const std::vector<char>& cubin, const Sandbox& sandbox) {
  std::ofstream(sandbox.file("kernel.cubin"), std::ios::binary)
      .write(cubin.data(), static_cast<std::streamsize>(cubin.size()));
  const auto outcome = hip::run_program({nvdisasm, "-c", sandbox.file("kernel.cubin")}, "");
  CAPTURE(outcome.error);
  REQUIRE(outcome.status == 0);
  return outcome.out;
}

TEST_CASE("sm_90a: no instruction touches what a wgmma in flight owns") {
  const cuda::Nvrtc nvrtc;
  if (!nvrtc.available()) return skip("no NVRTC: " + nvrtc.problem());
  const std::string nvdisasm = find_nvdisasm();
  if (nvdisasm.empty()) return skip("no nvdisasm ($Q4_NVDISASM; PyPI: nvidia-cuda-nvdisasm)");
  const Sandbox sandbox;
  const auto& prefill = *choose::find_matmul_kernel("prefill");
  const Limits limits{.arch = 90, .units = 132, .shared_bytes = 232448};
  const char* all = std::getenv("Q4_COMPILE_ALL");
  const bool sweep = all != nullptr && *all == '1';
  const Problem problems[] = {{.k = 4096, .n = 28672, .unit = 128, .x_k = 4096},
                              {.k = 4096, .n = 5120, .unit = 32, .x_k = 4096, .bf16 = 1, .bias = 1},
                              {.k = 4096, .n = 3072, .unit = 128, .x_k = 4096, .gated = 1, .grouped = kGroupedSorted},
                              {.k = 13824, .n = 5120, .unit = 64, .x_k = 13824},
                              {.k = 1152, .n = 5000, .unit = 16, .x_k = 1088, .bf16 = 1},
                              {.k = 8192, .n = 8192, .unit = 8192, .x_k = 8192, .bf16 = 1}};
  for (const Problem& p : std::span(problems).first(sweep ? std::size(problems) : 3)) {
    std::set<jit::Values> chosen;
    for (const std::int64_t m : {16, 64, 256, 1024, 4096})
      if (const auto values = prefill.defaults(p, m, limits)) chosen.insert(*values);
    for (const std::int64_t m : {16, 64, 4096}) {
      const auto space = prefill.space(p, m, limits);
      for (std::size_t i = 0; i < space.size(); i += sweep ? 1 : 29) chosen.insert(space[i]);
    }
    // Were found wrong on an H200.
    for (const char* once : {"rows=16 strips=4 teams=1 split=1 share=1 cut=2 fold=0",
                             "rows=16 strips=2 teams=1 split=1 share=2 cut=2 fold=0"})
      chosen.insert(*choose::parse_values(prefill, once));
    if (p.grouped)
      for (const char* each :
           {"rows=16 strips=4 fold=1", "rows=32 strips=4 fold=1", "rows=64 strips=4", "rows=64 strips=3",
            "rows=80 strips=4", "rows=96 strips=4", "rows=128 strips=4", "rows=128 strips=3", "rows=256 strips=2"})
        chosen.insert(*choose::parse_values(prefill, each));
    for (const auto& values : chosen) {
      const auto bound = prefill.bind(p, values, limits);
      if (!bound && p.grouped) continue;  // no grouped form cuts tiles
      REQUIRE(bound != nullptr);
      const auto source = bound->source();
      const auto lines = parse(disassemble(nvdisasm, nvrtc.compile(source, "sm_90a", {"-std=c++20"}), sandbox));
      CAPTURE(source.name);
      CHECK(std::any_of(lines.begin(), lines.end(), [](const Line& l) { return l.text.starts_with("HGMMA"); }));
      CHECK(hazard(lines) == "");
    }
  }
}

}  // namespace
}  // namespace q4::test
