// Tuners on one device notice each other, and take turns by shape.
#pragma once

#include <functional>
#include <string>

namespace q4::autotune {

/// Held while a shape is measured. The name is an abstract socket address: it vanishes with its process, needs no
/// folder, and is the same for every user. Containers with a network of their own do not see one another.
class DeviceTurn {
 public:
  explicit DeviceTurn(const std::string& address);
  ~DeviceTurn() { release(); }
  DeviceTurn(const DeviceTurn&) = delete;

  /// False at once while another process has it; `holder` is then set to its pid where that can be found out.
  bool take(int& holder);
  void release();

 private:
  std::string name_;
  int socket_ = -1;
};

}  // namespace q4::autotune
