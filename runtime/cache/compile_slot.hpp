// Not all compiles at once: each needs memory.
#pragma once

namespace q4::cache {

/// One of as many compiles as this process may run side by side, whoever asks for them: warm-up, plans, tools. The
/// first compile of NVRTC 13 takes some 60 MiB, each further one at the same time 20 to 35 MiB more (docs/deployment.md).
class CompileSlot {
 public:
  static constexpr int kMost = 16;  ///< and not more than usable_threads()
  CompileSlot();                    ///< waits for one
  ~CompileSlot();
  CompileSlot(const CompileSlot&) = delete;
  CompileSlot& operator=(const CompileSlot&) = delete;
};

}  // namespace q4::cache
