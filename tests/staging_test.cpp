// Staging against a driver whose copies read the pinned memory as late as they may: when their lane is finished or the
// default stream waits for them.
#include "runtime/gpu/staging.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "reference.hpp"
#include "runtime/base/check.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/gpu/matrix.hpp"

namespace q4::test {
namespace {

class LateDriver : public gpu::Driver {
 public:
  bool has_pinned = true;
  bool alone = true;  ///< one thread loads: whatever is copied is for the next launch
  int fail_at = -1;   ///< the copy that fails
  int copies = 0, pinned = 0, synchronized = 0, crossed = 0;
  mutable int launches = 0;

  LateDriver() {
    ledger().open({}, {}, nullptr, {[this](std::size_t bytes) { return take(bytes); }, [this](void* m) { give(m); }});
  }

  void* take_pinned(std::size_t bytes) override {
    const std::lock_guard lock(mutex_);
    if (!has_pinned) return nullptr;
    ++pinned;
    return ::operator new(bytes);
  }
  void give_pinned(void* memory) noexcept override {
    --pinned;
    ::operator delete(memory);
  }
  void begin_copy(void* to, const void* from, std::size_t bytes, int lane) override {
    CHECK_FALSE(beginning_.exchange(true));  // threads do not meet in the driver
    const std::lock_guard lock(mutex_);
    beginning_ = false;
    if (copies++ == fail_at) fail(ErrorCode::kDevice, "the copy failed");
    CHECK(pending_.count(lane) == 0);  // each lane holds one piece
    const auto read = read_by_.find(to);
    CHECK((read == read_by_.end() || read->second < crossed));  // else a kernel may still read what is there
    pending_[lane] = {to, from, bytes, false};
  }
  void finish_copy(int lane) override {
    const std::lock_guard lock(mutex_);
    pending_.at(lane).arrive();
    pending_.erase(lane);
  }
  void cross() override {
    const std::lock_guard lock(mutex_);
    for (auto& [lane, copy] : pending_) copy.arrive();
    ++crossed;
  }
  void synchronize() override {
    const std::lock_guard lock(mutex_);
    for (auto& [lane, copy] : pending_) copy.arrive();
    ++synchronized;
  }
  void copy(void* to, const void* from, std::size_t bytes, CopyKind) override {
    const std::lock_guard lock(mutex_);
    ++copies;
    std::memcpy(to, from, bytes);
  }
  /// Every copy has arrived.
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return std::all_of(pending_.begin(), pending_.end(), [](const auto& p) { return p.second.there; });
  }

  const DeviceInfo& info() const override { return info_; }
  Limits limits() const override { return {}; }
  void* take(std::size_t bytes) override {
    bytes = (bytes + 255) / 256 * 256;
    return std::memset(std::aligned_alloc(256, bytes), 0, bytes);
  }
  void give(void* memory) noexcept override { std::free(memory); }
  void fill(void*, int, std::size_t) override {}
  std::unique_ptr<CapturedWork> capture(const std::function<void(void*)>&) override { return nullptr; }
  Result<void> reachable(const void*) const override { return {}; }
  Result<void> can_compile() override { return {}; }
  std::string compiler() override { return {}; }
  std::vector<std::string> options() const override { return {}; }
  std::vector<char> compile(const jit::Source&, std::string&) override { return {'c'}; }
  std::unique_ptr<gpu::Function> load(const std::vector<char>&, const std::string&) override {
    return std::make_unique<gpu::Function>();
  }
  void launch(const gpu::Function&, const gpu::LaunchShape& shape, void*, void** parameters) const override {
    const std::lock_guard lock(mutex_);
    ++launches;
    for (const auto& [lane, copy] : pending_) CHECK((copy.there || !alone));
    if (shape.shared_bytes == 0) return;  // it is not packing
    PackArgs args{};
    std::memcpy(&args, parameters[0], sizeof args);
    read_by_[args.qweight] = crossed;
    const u32* end = args.qweight + std::int64_t{args.source_k} / 8 * args.n;
    for (const auto& [lane, copy] : pending_) CHECK((copy.there || copy.to < args.qweight || copy.to >= end));
    // Tests give each matrix one word everywhere: else another matrix's copies came here too.
    CHECK(std::all_of(args.qweight, end, [&](u32 word) { return word == args.qweight[0]; }));
  }
  gpu::TensorMapBytes encode(const gpu::TensorMapShape&) const override { return {}; }
  std::unique_ptr<gpu::Gemm> gemm(const gpu::GemmShape&) override { return nullptr; }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
    bool there;
    void arrive() {
      if (!std::exchange(there, true)) std::memcpy(to, from, bytes);
    }
  };
  DeviceInfo info_;
  mutable std::mutex mutex_;
  std::atomic<bool> beginning_{false};
  std::map<int, Copy> pending_;
  mutable std::map<const void*, int> read_by_;  // how often crossed when it was launched
};

/// A matrix of three pieces with strides of their own, 20 MiB together.
struct Pieces {
  static constexpr std::int64_t kRows = 1024, kWidths[3] = {3000, 8, 2112};
  std::vector<std::uint32_t> memory[3];
  MatrixSource source;
  std::vector<std::uint32_t> want;

  Pieces() {
    Random random(3);
    for (int p = 0; p < 3; ++p) {
      const std::int64_t stride = kWidths[p] + 16 * p;
      for (std::int64_t i = 0; i < kRows * stride; ++i) memory[p].push_back(static_cast<std::uint32_t>(random.bits()));
      source.pieces.push_back({memory[p].data() + 8 * p, kWidths[p], stride});
    }
    source.pieces.back().words = memory[2].data();
    source.k = kRows * 8, source.n = 5120;
    for (std::int64_t r = 0; r < kRows; ++r)
      for (const auto& piece : source.pieces)
        want.insert(want.end(), piece.words + r * piece.row_stride, piece.words + r * piece.row_stride + piece.width);
  }
};

TEST_CASE("staging: pieces arrive side by side, whichever memory they pass through") {
  const Pieces pieces;
  for (const bool has_pinned : {true, false}) {
    const auto driver = std::make_shared<LateDriver>();
    driver->has_pinned = has_pinned;
    gpu::Staging staging;
    for (int twice = 0; twice < 2; ++twice) {
      std::vector<std::uint32_t> got(pieces.want.size()), large(pieces.want.size()), small(2);
      const gpu::StagedBytes more[] = {{pieces.want.data(), large.size() * 4, large.data()},
                                       {pieces.want.data() + 5, small.size() * 4, small.data()}};
      staging.upload(driver, pieces.source, got.data(), more);
      CHECK(driver->idle() == !has_pinned);
      driver->cross();
      CHECK(got == pieces.want);
      CHECK(large == pieces.want);
      CHECK(small == std::vector<std::uint32_t>{pieces.want[5], pieces.want[6]});
      CHECK(driver->idle());
    }
    CHECK(driver->copies >= 20);
    CHECK((driver->pinned > 0) == has_pinned);
    MatrixSource whole;
    whole.k = pieces.source.k, whole.n = pieces.source.n, whole.qweight = pieces.want.data();
    std::vector<std::uint32_t> got(pieces.want.size());
    staging.upload(driver, whole, got.data());
    driver->cross();
    CHECK(got == pieces.want);
    whole.awq = true, whole.k = pieces.source.k / 8, whole.n = pieces.source.n * 8;
    std::fill(got.begin(), got.end(), 0u);
    staging.upload(driver, whole, got.data());
    driver->cross();
    CHECK(got == pieces.want);
    staging.trim();
    CHECK(driver->pinned == 0);
  }
}

TEST_CASE("staging: a copy that fails is the load's error, and nothing reads pinned memory any more") {
  const Pieces pieces;
  for (const int at : {0, 3, 7}) {
    const auto driver = std::make_shared<LateDriver>();
    driver->fail_at = at;
    gpu::Staging staging;
    std::vector<std::uint32_t> got(pieces.want.size());
    CHECK_THROWS_WITH_AS(staging.upload(driver, pieces.source, got.data()), "the copy failed", Error);
    CHECK(driver->synchronized == 1);
  }
}

TEST_CASE("loading: a load does not wait; who needs the weights does, once") {
  const auto driver = std::make_shared<LateDriver>();
  cache::KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  gpu::Kernels kernels(*driver, cache);
  gpu::Scratch scratch;
  MatrixSource source;
  source.k = 256, source.n = 64, source.group_size = 64, source.groups = 4;
  source.order = arrange(source, {});
  const Buffer words(driver, 256 * 64 / 2), zeros(driver, 4 * 64 / 2), scales(driver, 4 * 64 * 2);
  source.qweight = words.as<std::uint32_t>(), source.reuse = words.get(), source.qweight_on_device = true;
  source.device_qzeros = zeros.as<std::uint32_t>(), source.device_scales = scales.as<std::uint16_t>();
  {
    const gpu::Matrix first(driver, kernels, source, scratch), second(driver, kernels, source, scratch);
    REQUIRE(first.scales_in_place());
    CHECK(driver->launches == 6);
    CHECK(driver->synchronized == 0);
    first.wait(), first.wait();
    CHECK(driver->synchronized == 1);
  }
  CHECK(driver->synchronized == 2);  // the memory may go

  // What comes from the host need not have arrived either.
  const gpu::Matrix again(driver, kernels, source, scratch);
  std::vector<std::uint32_t> host(256 * 64 / 8);
  source.qweight = host.data(), source.reuse = nullptr, source.qweight_on_device = false;
  source.device_qzeros = nullptr, source.device_scales = nullptr;
  source.zeros.resize(4 * 64), source.scales.resize(4 * 64);
  for (int i = 0; i < 5; ++i) {
    gpu::Matrix from_host(driver, kernels, source, scratch);
    CHECK(driver->synchronized == 2 + 3 * i);
    CHECK(driver->crossed == 1 + 2 * i);
    from_host.wait();
    CHECK(driver->synchronized == 3 + 3 * i);
    from_host.update(source, nullptr);  // which others may use: it waits for them, and they need not wait for it
    CHECK(driver->synchronized == 5 + 3 * i);
  }
}

/// Loads matrices of 64 columns and these numbers of rows, each with one word everywhere.
std::vector<std::unique_ptr<gpu::Matrix>> load_some(const std::shared_ptr<LateDriver>& driver, gpu::Kernels& kernels,
                                                    gpu::Scratch& scratch, std::vector<std::int64_t> rows) {
  std::vector<std::unique_ptr<gpu::Matrix>> loaded;
  for (const std::int64_t k : rows) {
    MatrixSource source;
    source.k = k, source.n = 64, source.group_size = 64, source.groups = k / 64;
    source.order = arrange(source, {});
    const std::vector<std::uint32_t> words(static_cast<std::size_t>(k) * 8, static_cast<std::uint32_t>(loaded.size()));
    source.qweight = words.data();
    source.zeros.resize(static_cast<std::size_t>(k)), source.scales.resize(static_cast<std::size_t>(k));
    loaded.push_back(std::make_unique<gpu::Matrix>(driver, kernels, source, scratch));  // LateDriver checks
  }
  return loaded;
}

TEST_CASE("loading: kernels of one load and copies of the next share no memory") {
  const auto driver = std::make_shared<LateDriver>();
  cache::KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  gpu::Kernels kernels(*driver, cache);
  gpu::Scratch scratch;
  const auto loaded = load_some(driver, kernels, scratch, {256, 512, 256, 128, 512, 512, 256});
  CHECK(driver->crossed == 7);
  CHECK(driver->synchronized == 1);  // memory of 256 rows was too small for 512
}

TEST_CASE("loading: two threads load at once") {
  const auto driver = std::make_shared<LateDriver>();
  driver->alone = false;
  cache::KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  gpu::Kernels kernels(*driver, cache);
  gpu::Scratch scratch;
  std::vector<std::int64_t> rows;
  for (int i = 0; i < 60; ++i) rows.push_back(64 << (i * 7 % 5));
  std::vector<std::unique_ptr<gpu::Matrix>> beside;
  std::thread other([&] { beside = load_some(driver, kernels, scratch, rows); });
  const auto loaded = load_some(driver, kernels, scratch, rows);
  other.join();
  CHECK(driver->launches == 240);
  CHECK(driver->crossed >= 120);
  scratch.trim(*driver);
  CHECK(driver->pinned == 0);
  CHECK(driver->idle());
}

TEST_CASE("loading: memory that loads in place share is not freed before they have ended") {
  const auto driver = std::make_shared<LateDriver>();
  cache::KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  gpu::Kernels kernels(*driver, cache);
  gpu::Scratch scratch;
  std::vector<std::unique_ptr<gpu::Matrix>> loaded;
  std::vector<Buffer> memory;
  for (const std::int64_t k : {256, 128, 512}) {
    MatrixSource source;
    source.k = k, source.n = 64, source.group_size = 64, source.groups = k / 64;
    source.order = arrange(source, {});
    for (const std::int64_t bytes : {k * 64 / 2, k / 2, k * 2})
      memory.emplace_back(driver, static_cast<std::size_t>(bytes));
    const auto last = memory.size() - 3;
    source.qweight = memory[last].as<std::uint32_t>(), source.reuse = memory[last].get(),
    source.qweight_on_device = true;
    source.device_qzeros = memory[last + 1].as<std::uint32_t>();
    source.device_scales = memory[last + 2].as<std::uint16_t>();
    loaded.push_back(std::make_unique<gpu::Matrix>(driver, kernels, source, scratch));
    CHECK(driver->synchronized == (k == 512));  // only the third needs more than is there
  }
  CHECK(scratch.busy);
  scratch.settle(*driver);
  CHECK(driver->synchronized == 2);
  scratch.settle(*driver);
  CHECK(driver->synchronized == 2);
}

}  // namespace
}  // namespace q4::test
