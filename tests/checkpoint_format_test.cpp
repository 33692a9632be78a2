// Safetensors files: every rule of the format has a file that breaks it, and damaged files are errors, never crashes.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <cstring>
#include <filesystem>
#include <q4/checkpoint.hpp>
#include <thread>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

/// A file of this header text and so many bytes of data.
std::string file_bytes(const std::string& header, std::size_t data_bytes) {
  std::string bytes(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\x11');
}

struct Case {
  const char* what;
  std::string bytes;
  const char* error;  ///< what the text must hold
};

/// A tensor entry of the header.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// Opens the file, then reads every tensor to its last byte, as a loader would.
std::uint64_t read_all(const std::string& path) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  std::uint64_t sum = 0;
  for (const std::string& name : checkpoint.tensor_names()) {
    TensorView view;
    try {
      view = checkpoint.tensor(name);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      continue;
    }
    const auto* bytes = static_cast<const unsigned char*>(view.data);
    for (std::size_t i = 0; i < static_cast<std::size_t>(view.rows * view.cols) * size_of(view.dtype); ++i)
      sum += bytes[i];
  }
  for (const MatrixEntry& matrix : checkpoint.matrices()) {
    if (checkpoint.config().format == QuantFormat::kAwq) {
      sum += static_cast<std::uint64_t>(checkpoint.awq(matrix.name).scales.rows);
    } else {
      sum += static_cast<std::uint64_t>(checkpoint.gptq(matrix.name).scales.rows);
    }
  }
  return sum;
}

TEST_CASE("safetensors: what the format forbids is an error that says what and where") {
  const std::string a = entry("a", "I32", "[2,2]", "[0,16]");
  const std::string nested = std::string(100, '[') + std::string(100, ']');
  const Case cases[] = {
      {"empty file", "", "0 bytes, at least 8"},
      {"seven bytes", "1234567", "7 bytes, at least 8"},
      {"header longer than the file", std::string("\x03\0\0\0\0\0\0\0{}", 10), "header length 3; at most 2"},
      {"header of 2^64 - 1 bytes", std::string(8, '\xff') + "{}", "header length 18446744073709551615"},
      {"no header", std::string(8, '\0'), "does not begin with '{'"},
      {"header begins with a space", file_bytes(" {}", 0), "does not begin with '{'"},
      {"not JSON", file_bytes("{nonsense}", 0), "not valid JSON"},
      {"text behind a NUL", file_bytes(std::string("{}\0hidden", 9), 0), "NUL at byte 2"},
      {"invalid UTF-8", file_bytes("{\"\xff\":1}", 0), "not valid JSON"},
      {"overlong UTF-8", file_bytes("{\"\xc0\xaf\":1}", 0), "not valid JSON"},
      {"duplicate tensor", file_bytes("{" + a + "," + a + "}", 16), "key \"a\" twice"},
      {"duplicate field", file_bytes(R"({"a":{"dtype":"I32","dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 16),
       "key \"dtype\" twice"},
      {"nested too deep", file_bytes("{\"a\":" + nested + "}", 0), "nests more than 64"},
      {"entry is no object", file_bytes(R"({"a":[1]})", 0), "tensor \"a\": its entry is [1], not an object"},
      {"unknown field", file_bytes(R"({"a":{"dtype":"I32","shape":[],"data_offsets":[0,4],"x":1}})", 4),
       "unknown field \"x\""},
      {"no dtype", file_bytes(R"({"a":{"shape":[],"data_offsets":[0,4]}})", 4), "dtype is missing"},
      {"no shape", file_bytes(R"({"a":{"dtype":"I32","data_offsets":[0,4]}})", 4), "shape is missing"},
      {"three offsets", file_bytes("{" + entry("a", "I32", "[1]", "[0,4,8]") + "}", 4),
       "data_offsets is missing or no array of two"},
      {"negative extent", file_bytes("{" + entry("a", "I32", "[-1]", "[0,4]") + "}", 4), "shape has -1, not"},
      {"fractional extent", file_bytes("{" + entry("a", "I32", "[1.0]", "[0,4]") + "}", 4), "shape has 1.0, not"},
      {"extent 2^63", file_bytes("{" + entry("a", "I32", "[9223372036854775808]", "[0,4]") + "}", 4),
       "shape has 9223372036854775808, not"},
      {"offset as text", file_bytes("{" + entry("a", "I32", "[1]", "[0,\"4\"]") + "}", 4),
       "data_offsets has \"4\", not"},
      {"offset beyond the file", file_bytes("{" + entry("a", "I32", "[4]", "[0,16]") + "}", 15),
       "not within the 15 bytes"},
      {"offsets reversed", file_bytes("{" + entry("a", "I32", "[0]", "[4,0]") + "}", 4), "[4, 0] are not within"},
      {"shape overflows", file_bytes("{" + entry("a", "U8", "[4294967296,4294967296,0]", "[0,0]") + "}", 0),
       "overflows 64 bits"},
      {"shape times size overflows", file_bytes("{" + entry("a", "I32", "[4611686018427387905]", "[0,4]") + "}", 4),
       "overflows 64 bits"},
      {"too few bytes", file_bytes("{" + entry("a", "I32", "[2,2]", "[0,12]") + "}", 12),
       "hold 12 bytes, but I32 of shape [2, 2] needs 16"},
      {"half a byte", file_bytes("{" + entry("a", "F4", "[3]", "[0,1]") + "}", 1), "not a whole number of bytes"},
      {"git-lfs pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"},
      {"web page", "<!DOCTYPE html><html>Log in</html>", "is a web page"},
      {"PyTorch", std::string("PK\x03\x04", 4) + "archive/data.pkl", "weights_only=True"},
      {"hole in front", file_bytes("{" + entry("a", "I32", "[1]", "[4,8]") + "}", 8),
       "begins at 4, but the data before it ends at 0 (hole)"},
      {"hole between",
       file_bytes("{" + entry("a", "I32", "[1]", "[0,4]") + "," + entry("b", "I32", "[1]", "[8,12]") + "}", 12),
       "tensor \"b\""},
      {"overlap",
       file_bytes("{" + entry("a", "I32", "[2]", "[0,8]") + "," + entry("b", "I32", "[1]", "[4,8]") + "}", 8),
       "(overlap)"},
      {"same data twice",
       file_bytes("{" + entry("a", "I32", "[1]", "[0,4]") + "," + entry("b", "I32", "[1]", "[0,4]") + "}", 4),
       "(overlap)"},
      {"bytes behind the last", file_bytes("{" + a + "}", 17), "17 bytes of data, but the tensors end at 16 (hole)"},
      {"metadata is no object", file_bytes(R"({"__metadata__":[]})", 0), "__metadata__ is [], not"},
      {"metadata is not text", file_bytes(R"({"__metadata__":{"a":1}})", 0), "__metadata__: \"a\" is 1, not text"},
      {"control characters in a name", file_bytes("{" + entry("\\u0007", "I32", "[1]", "[0,8]") + "}", 8), "\"\\x07\""},
  };
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  for (const Case& c : cases) {
    INFO(std::string(c.what));
    write_file(path, c.bytes);
    const std::string error = error_of([&] { Checkpoint::open(path); });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, error);
    CHECK(error.find(path) != std::string::npos);
    CHECK((error.rfind("corrupt: ", 0) == 0 || error.rfind("unsupported: ", 0) == 0));
  }
}

TEST_CASE("safetensors: what the format allows is read") {
  const TempFolder folder;
  const std::string path = folder / "model.safetensors";
  write_file(path, file_bytes("{}   ", 0));
  CHECK(Checkpoint::open(path).tensor_names().empty());

  // A scalar, an empty tensor, rank 3, a dtype that q4 has no type for; the data in another order than the header.
  write_file(
      path,
      file_bytes("{\"__metadata__\":{\"format\":\"pt\"}," + entry("scalar", "F32", "[]", "[24,28]") + "," +
                     entry("empty", "F16", "[0,5]", "[24,24]") + "," + entry("rank3", "U8", "[2,3,4]", "[0,24]") + "," +
                     entry("wide", "F64", "[1]", "[28,36]") + "," + entry("new", "X9", "[3]", "[36,37]") + "}  ",
                 37));
  const Checkpoint checkpoint = Checkpoint::open(path);
  CHECK(checkpoint.tensor_names() == std::vector<std::string>{"empty", "new", "rank3", "scalar", "wide"});
  const TensorView rank3 = checkpoint.tensor("rank3"), scalar = checkpoint.tensor("scalar"),
                   empty = checkpoint.tensor("empty");
  CHECK(rank3.rows == 6);
  CHECK(rank3.cols == 4);
  CHECK(rank3.dtype == DType::kU8);
  CHECK(static_cast<const unsigned char*>(rank3.data)[23] == 0x11);
  CHECK(scalar.rows == 1);
  CHECK(scalar.cols == 1);
  CHECK(*static_cast<const std::uint32_t*>(scalar.data) == 0x11111111u);
  CHECK(empty.rows == 0);
  CHECK(empty.cols == 5);
  CHECK(error_of([&] { checkpoint.tensor("wide"); }).find("dtype F64 has no q4 type") != std::string::npos);
  CHECK(error_of([&] { checkpoint.tensor("new"); }).find("dtype X9 has no q4 type") != std::string::npos);
  CHECK(error_of([&] { checkpoint.tensor("scaler"); }).find("not_found: ") == 0);
  CHECK(error_of([&] { checkpoint.tensor("scaler"); }).find("nearest: \"scalar\"") != std::string::npos);
}

TEST_CASE("safetensors: tensors that the file does not align are handed out aligned") {
  const TempFolder folder;
  const GptqMatrix matrix = make_gptq({.k = 64, .n = 16, .group_size = 32});
  for (std::size_t skew = 0; skew < 8; ++skew) {
    const std::string path = folder / "model.safetensors";
    write_safetensors(path, file_tensors("a", matrix), 8, skew);
    const Checkpoint checkpoint = Checkpoint::open(path);
    // Many threads ask at once: one copy, the same pointer for all.
    std::vector<const void*> seen(8);
    std::vector<std::thread> threads;
    for (auto& pointer : seen) threads.emplace_back([&] { pointer = checkpoint.gptq("a").qweight.data; });
    for (auto& thread : threads) thread.join();
    for (const void* pointer : seen) CHECK(pointer == seen[0]);
    CHECK(reinterpret_cast<std::uintptr_t>(seen[0]) % 4 == 0);
    CHECK(std::memcmp(seen[0], matrix.qweight.data(), matrix.qweight.size() * 4) == 0);
    CHECK(std::memcmp(checkpoint.gptq("a").scales.data, matrix.scales.data(), matrix.scales.size() * 2) == 0);
  }
}

TEST_CASE("safetensors: a file that changes after it was opened is an error at the next look") {
  const TempFolder folder;
  const std::string path = folder / "model.safetensors", other = folder / "other";
  const auto tensors = file_tensors("a", make_gptq({.k = 64, .n = 16, .group_size = 32}));
  write_safetensors(path, tensors);
  write_safetensors(other, tensors);
  const Checkpoint checkpoint = Checkpoint::open(path);
  CHECK_NOTHROW(checkpoint.gptq("a"));
  std::filesystem::rename(other, path);  // replaced: the mapped file lives on
  CHECK_NOTHROW(checkpoint.gptq("a"));

  const Checkpoint second = Checkpoint::open(path);
  std::filesystem::resize_file(path, 100);
  const std::string error = error_of([&] { second.gptq("a"); });
  CHECK_MESSAGE(error.find("corrupt: ") == 0, error);
  CHECK_MESSAGE(error.find("was modified after it was opened") != std::string::npos, error);
}

TEST_CASE("safetensors: what is no regular file is refused") {
  const TempFolder folder;
  const std::string fifo = folder / "model.safetensors";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(error_of([&] { Checkpoint::open(fifo); }).find("io: ") == 0);
  CHECK(error_of([&] { Checkpoint::open(folder.path()); }).find("not a regular file") != std::string::npos);
  CHECK(error_of([&] { Checkpoint::open("/dev/zero"); }).find("not a regular file") != std::string::npos);
  CHECK(error_of([&] { Checkpoint::open(folder / "absent"); }).find("not_found: ") == 0);
  CHECK(error_of([&] { Checkpoint::open(""); }).find("not_found: ") == 0);
}

/// Damages `bytes` in many ways and requires of each result: it is read, or a q4::Error. Anything else fails the test.
void fuzz(const std::string& path, const std::string& open, const std::string& bytes, std::size_t interesting) {
  std::size_t read = 0, refused = 0;
  const auto attempt = [&](const std::string& damaged) {
    write_file(path, damaged);
    try {
      read_all(open);
      ++read;
    } catch (const Error&) { ++refused; }
  };
  for (std::size_t at = 0; at < interesting; ++at) {
    attempt(bytes.substr(0, at));
    std::string damaged = bytes;
    for (const int flip : {1, 8, 32, 128}) {
      damaged[at] = static_cast<char>(bytes[at] ^ flip);
      attempt(damaged);
    }
    for (const char other : {'\0', '9', '"', '}', ',', '-'}) {
      damaged[at] = other;
      attempt(damaged);
    }
    attempt(std::string(bytes).erase(at, 1));
    attempt(std::string(bytes).insert(at, 1, '7'));
  }
  Random random(1);
  for (int i = 0; i < 1000; ++i) {  // several places at once, and a cut or a repetition
    std::string damaged = bytes;
    for (std::int64_t j = random.below(6); j >= 0; --j) {
      damaged[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(interesting)))] =
          static_cast<char>(random.bits());
    }
    if (random.below(2) == 0)
      damaged.resize(static_cast<std::size_t>(random.below(static_cast<std::int64_t>(bytes.size()))));
    if (random.below(4) == 0) damaged += bytes;
    attempt(damaged);
  }
  CHECK(read > 0);
  CHECK(refused > interesting);
}

TEST_CASE("fuzz: damaged checkpoints are read or refused with a q4::Error") {
  const TempFolder folder;
  CheckpointSpec spec;
  spec.matrix = {.k = 16, .n = 8, .group_size = 8, .act_order = ActOrder::kPermuted, .bias = true};
  SUBCASE("safetensors header") {
    make_checkpoint(folder.path(), spec);
    const std::string path = folder / "model.safetensors", bytes = read_file(path);
    std::uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    fuzz(path, path, bytes, 8 + header);
  }
  SUBCASE("index") {
    spec.shards = 2;
    make_checkpoint(folder.path(), spec);
    const std::string path = folder / "model.safetensors.index.json", bytes = read_file(path);
    fuzz(path, folder.path(), bytes, bytes.size());
  }
  SUBCASE("config") {
    make_checkpoint(folder.path(), spec);
    const std::string path = folder / "config.json", bytes = read_file(path);
    fuzz(path, folder.path(), bytes, bytes.size());
  }
}

}  // namespace
}  // namespace q4::test
