// Lines of text over a socket between two processes.
#pragma once

#include <string>

namespace q4::autotune {

class LineSocket {
 public:
  explicit LineSocket(int descriptor = -1) : descriptor_(descriptor) {}
  LineSocket(LineSocket&& other) noexcept;
  LineSocket& operator=(LineSocket&& other) noexcept;
  ~LineSocket();

  /// `line` without its newline. False when nobody is there any more.
  bool send(const std::string& line);
  enum Received { kLine, kTimeout, kClosed };
  Received receive(std::string& line, int timeout_ms);  ///< -1: waits for ever

 private:
  int descriptor_;
  std::string buffer_;
};

}  // namespace q4::autotune
