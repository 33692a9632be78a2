// The parts of the CUDA driver and of NVRTC that this example needs, opened at run time: no toolkit is needed to build it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace generate {

/// One GPU's primary context, which is also q4's, and one stream. Every call throws std::runtime_error with its name.
class Cuda {
 public:
  explicit Cuda(int ordinal);

  int capability() const { return capability_; }  ///< 90 for sm_90
  void* stream() const { return stream_; }

  /// Device memory, zeroed. What the process takes it keeps: the example ends with it.
  void* allocate(std::size_t bytes) const;
  /// Host memory that kernels write to: the host's pointer, and the device's.
  std::pair<void*, void*> allocate_shared(std::size_t bytes) const;
  void upload(void* device, const void* host, std::size_t bytes) const;  ///< after what the stream was given before

  void load(const std::vector<char>& code);       ///< a cubin, from compile()
  void* function(const std::string& name) const;  ///< a kernel of it
  /// A kernel after those before it in the stream; with `overlap` it may start earlier and waits by itself.
  void launch(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, std::vector<void*> arguments,
              bool overlap) const;

  void begin_capture() const;
  void* end_capture() const;  ///< what was launched since, as an executable graph
  void launch_graph(void* graph) const;
  void* event() const;
  void record(void* event) const;
  void wait(void* event) const;  ///< until what the stream was given before record() is done

 private:
  int capability_ = 0;
  void *stream_ = nullptr, *module_ = nullptr;
};

/// CUDA C++ as a cubin for a GPU; `options` as for NVRTC. Throws with the compiler's messages.
std::vector<char> compile(const std::string& source, int capability, const std::vector<std::string>& options);
bool can_compile();  ///< whether NVRTC was found: $Q4_NVRTC, the loader's path, $CUDA_HOME or /usr/local/cuda

}  // namespace generate
