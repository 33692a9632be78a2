// Not all compiles at once: each needs memory.
#pragma once

namespace q4::cache {

/// One of as many compiles as this process may run side by side, whoever asks for them: warm-up, plans, tools. NVRTC 13
/// was seen to take 90 MiB with one at a time, 210 with 8 and 300 with 16 (docs/deployment.md).
class CompileSlot {
 public:
  static constexpr int kMost = 16;  ///< and not more than usable_threads()
  CompileSlot();                    ///< waits for one
  ~CompileSlot();
  CompileSlot(const CompileSlot&) = delete;
  CompileSlot& operator=(const CompileSlot&) = delete;
};

}  // namespace q4::cache
