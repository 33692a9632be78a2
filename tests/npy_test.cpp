// .npy files: what NumPy writes is read, what is damaged or not understood is an error.
#include "tools/common/npy.hpp"

#include <doctest/doctest.h>
#include <cstring>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

using tools::NpyArray;
using tools::read_npy;
using tools::write_npy;

std::string npy(const std::string& dict, const std::string& data, char major = 1) {
  const auto length = static_cast<std::uint32_t>(dict.size());
  std::string bytes = std::string("\x93NUMPY") + major + '\0';
  bytes.append(reinterpret_cast<const char*>(&length), major == 1 ? 2 : 4);
  return bytes + dict + data;
}

TEST_CASE("npy: written files read back, and are what NumPy writes") {
  const TempFolder folder;
  const std::string path = folder / "a.npy";
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{}, {3}, {2, 3}, {2, 2, 2}, {0, 8}}) {
      NpyArray array{dtype, shape, {}};
      array.data.resize(static_cast<std::size_t>(array.rows() * array.cols()) * size_of(dtype));
      for (std::size_t i = 0; i < array.data.size(); ++i) array.data[i] = static_cast<std::byte>(i + 1);
      write_npy(path, array);
      const NpyArray read = read_npy(path);
      CHECK(read.dtype == dtype);
      CHECK(read.shape == shape);
      CHECK(read.data == array.data);
      CHECK((read_file(path).size() - array.data.size()) % 64 == 0);
    }
  }
  write_npy(path, {DType::kF32, {1, 2}, std::vector<std::byte>(8)});
  const std::string dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
  CHECK(read_file(path) == npy(dict + std::string(128 - 10 - dict.size() - 1, ' ') + "\n", std::string(8, '\0')));
}

TEST_CASE("npy: other spellings, versions and the three ways to store bf16") {
  const TempFolder folder;
  const std::string path = folder / "a.npy", four(4, '\1');
  for (const char* descr : {"<V2", "|V2", "<u2"}) {
    write_file(path, npy(std::string("{\"shape\":(1,2),'descr': '") + descr + "', 'fortran_order':False}\n", four));
    CHECK(read_npy(path).dtype == DType::kBF16);
  }
  for (const char major : {1, 2, 3}) {
    write_file(path, npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }", four, major));
    CHECK(read_npy(path).rows() == 1);
    CHECK(read_npy(path).cols() == 2);
  }
  write_file(path, npy("{'descr': '<f2', 'fortran_order': True, 'shape': (1, 2), }", four));  // one row: no order
  CHECK(read_npy(path).cols() == 2);
}

TEST_CASE("npy: damaged and foreign files are errors") {
  const TempFolder folder;
  const std::string path = folder / "a.npy", data(12, '\1');
  const std::string good = npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }", data);
  const struct {
    std::string bytes;
    const char* error;
  } cases[] = {
      {"", "corrupt: "},
      {"\x89PNG....", "does not begin with"},
      {good.substr(0, 9), "ends within"},
      {good.substr(0, 40), "ends within"},
      {good.substr(0, good.size() - 1), "needs 12 bytes of data, there are 11"},
      {good + "x", "needs 12 bytes of data, there are 13"},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }", data, 4), "unsupported: "},
      {npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", data), "element type '<f8'"},
      {npy("{'descr': '>f2', 'fortran_order': False, 'shape': (1,), }", data), "element type '>f2'"},
      {npy("{'descr': '<f2', 'fortran_order': True, 'shape': (2, 3), }", data), "Fortran order"},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (2, -3), }", data), "no tuple of whole numbers"},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4611686018427387904, 2), }", data), "overflows 64 bits"},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999999999999,), }", data), "overflows 64 bits"},
      {npy("{'descr': '<f2', 'fortran_order': False}", data), "lacks descr"},
      {npy("{'descr': '<f2', 'descr': '<f2', 'fortran_order': False, 'shape': (6,)}", data), "unknown or there twice"},
      {npy("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (6,)}", data), "no dict of"},
      {npy("{'descr': '<f2', 'fortran_order': 0, 'shape': (6,)}", data), "neither True nor False"},
      {npy("{'descr': '<f2', 'fortran_order': False, 'shape': (6,)} x", data), "text behind"},
  };
  for (const auto& c : cases) {
    write_file(path, c.bytes);
    const std::string error = error_of([&] { read_npy(path); });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, error);
    CHECK(error.find(path) != std::string::npos);
  }
  CHECK(error_of([&] { read_npy(folder / "absent"); }).find("not_found: ") == 0);
  CHECK(error_of([&] { read_npy(folder.path()); }).find("io: ") == 0);
  CHECK(error_of([&] { write_npy(folder / "no/such/folder.npy", {}); }).find("io: ") == 0);

  for (std::size_t at = 0; at < good.size(); ++at) {  // any damage: read or refused
    for (const char other : {'\0', '9', '\'', ')', '\xff'}) {
      std::string damaged = good;
      damaged[at] = other;
      write_file(path, damaged);
      error_of([&] { read_npy(path); });
      write_file(path, good.substr(0, at));
      CHECK(error_of([&] { read_npy(path); }) != "no error");
    }
  }
}

}  // namespace
}  // namespace q4::test
