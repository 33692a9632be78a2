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

constexpr std::int64_t kK = 16384, kN = 4096;

TEST_CASE("slices: a rank reads no page of the others' codes") {
  const TempFolder folder;
  const auto words = static_cast<std::size_t>(kK / 8 * kN), groups = static_cast<std::size_t>(kK / 128);
  write_safetensors(folder / "model.safetensors",
                    {{"gptq.qweight", "I32", {kK / 8, kN}, noise(words * 4, 1)},
                     {"gptq.qzeros", "I32", {kK / 128, kN / 8}, noise(groups * kN / 2, 2)},
                     {"gptq.scales", "F16", {kK / 128, kN}, scales(groups * kN)},
                     {"ct.weight_packed", "I32", {kN, kK / 8}, noise(words * 4, 3)},
                     {"ct.weight_scale", "F16", {kN, kK / 128}, scales(groups * kN)}});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Runtime runtime({.log = [](LogLevel, const std::string&) {}});
  const TensorView gptq = checkpoint.tensor("gptq.qweight"), ct = checkpoint.tensor("ct.weight_packed");
  const auto load = [&](const std::string& name, const Slice& slice) {
    return checkpoint.load(runtime, {}, name, {.slice = slice}).bytes();
  };
  const auto hidden = [&](auto&& hide, auto&& act) {
    Hidden pages;
    hide(pages);
    REQUIRE(pages.count() > 0);
    CHECK(act() > 0);
  };
  hidden([&](Hidden& h) { h.hide(gptq, 0, kK / 16, 0, kN * 4); }, [&] { return load("gptq", Slice::rows(1, 2)); });
  hidden([&](Hidden& h) { h.hide(gptq, 0, kK / 8, 0, kN * 2); }, [&] { return load("gptq", Slice::columns(1, 2)); });
  hidden([&](Hidden& h) { h.hide(ct, 0, kN / 2, 0, kK / 2); }, [&] { return load("ct", Slice::columns(1, 2)); });
  hidden([&](Hidden& h) { h.hide(ct, 0, kN, 0, kK / 4); }, [&] { return load("ct", Slice::rows(1, 2)); });
}

}  // namespace
}  // namespace q4::test
