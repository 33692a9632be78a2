// Tells a process from the child that fork() made of it: GPU drivers stay with the parent.
#pragma once

#include <cstdint>

namespace q4 {

/// Remembers the process that it was made in.
class HomeProcess {
 public:
  /// Whether this is a child of that process. Costs one load.
  bool left() const { return generation() != generation_; }
  /// Throws kDevice if left().
  void check() const;
  /// What check() says.
  static const char* text();

 private:
  static std::uint32_t generation();
  const std::uint32_t generation_ = generation();
};

}  // namespace q4
