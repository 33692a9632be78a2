// A slice is loaded from its own bytes: those of other ranks are made unreadable first.
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <q4/q4.hpp>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

std::string noise(std::size_t bytes, std::uint64_t seed) {
  Random random(seed);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random.below(256));
  return text;
}

std::string scales(std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) text += std::string("\x00\x20", 2);  // 2^-7
  return text;
}

/// Makes the whole pages of rows x bytes in a mapped tensor unreadable for a scope.
class Hidden {
 public:
  ~Hidden() {
    for (const auto& [at, bytes] : pages_) ::mprotect(at, bytes, PROT_READ);
  }
  void hide(const TensorView& view, std::int64_t row, std::int64_t rows, std::int64_t first_byte,
            std::int64_t bytes_each) {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const std::int64_t row_bytes = view.cols * 4;
    for (std::int64_t r = row; r < row + rows; ++r) {
      const auto begin =
          reinterpret_cast<std::uintptr_t>(view.data) + static_cast<std::uintptr_t>(r * row_bytes + first_byte);
      const std::uintptr_t from = (begin + page - 1) / page * page,
                           to = (begin + static_cast<std::uintptr_t>(bytes_each)) / page * page;
      if (to <= from) continue;
      REQUIRE(::mprotect(reinterpret_cast<void*>(from), to - from, PROT_NONE) == 0);
      pages_.emplace_back(reinterpret_cast<void*>(from), to - from);
    }
  }
  std::size_t count() const { return pages_.size(); }

 private:
  std::vector<std::pair<void*, std::size_t>> pages_;
};

/// Rows of each tensor are several pages: half of one has whole pages.
TEST_CASE("slices: a rank reads no page of the others' codes") {
  constexpr std::int64_t kK = 2048, kN = 4096, kTallK = 32768, kTallN = 256;
  const TempFolder folder;
  const auto bytes = [](std::int64_t k, std::int64_t n) { return static_cast<std::size_t>(k / 2 * n); };
  const auto groups = [](std::int64_t k, std::int64_t n) { return static_cast<std::size_t>(k / 128 * n); };
  write_safetensors(folder / "model.safetensors",
                    {{"gptq.qweight", "I32", {kK / 8, kN}, noise(bytes(kK, kN), 1)},
                     {"gptq.qzeros", "I32", {kK / 128, kN / 8}, noise(groups(kK, kN) / 2, 2)},
                     {"gptq.scales", "F16", {kK / 128, kN}, scales(groups(kK, kN))},
                     {"ct.weight_packed", "I32", {kTallN, kTallK / 8}, noise(bytes(kTallK, kTallN), 3)},
                     {"ct.weight_scale", "F16", {kTallN, kTallK / 128}, scales(groups(kTallK, kTallN))}});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
  const TensorView gptq = checkpoint.tensor("gptq.qweight"), ct = checkpoint.tensor("ct.weight_packed");
  const auto load = [&](const std::string& name, const Slice& slice) {
    return checkpoint.load(runtime, {}, name, {.slice = slice}).bytes();
  };
  const auto hidden = [&](const char* what, auto&& hide, auto&& act) {
    INFO(what);
    Hidden pages;
    hide(pages);
    REQUIRE(pages.count() > 0);
    CHECK(act() > 0);
  };
  hidden(
      "GPTQ by rows", [&](Hidden& h) { h.hide(gptq, 0, kK / 16, 0, kN * 4); },
      [&] { return load("gptq", Slice::rows(1, 2)); });
  hidden(
      "GPTQ by columns", [&](Hidden& h) { h.hide(gptq, 0, kK / 8, 0, kN * 2); },
      [&] { return load("gptq", Slice::columns(1, 2)); });
  hidden(
      "compressed-tensors by columns", [&](Hidden& h) { h.hide(ct, 0, kTallN / 2, 0, kTallK / 2); },
      [&] { return load("ct", Slice::columns(1, 2)); });
  hidden(
      "compressed-tensors by rows", [&](Hidden& h) { h.hide(ct, 0, kTallN, 0, kTallK / 4); },
      [&] { return load("ct", Slice::rows(1, 2)); });
}

}  // namespace
}  // namespace q4::test
