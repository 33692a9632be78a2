// A child process whose GPU is the fake driver's: kernels are compiled and loaded there, and none runs.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <q4/q4.hpp>
#include <string>

#include "cache_support.hpp"
#include "paths.hpp"
#include "report.hpp"
#include "runtime/backends/cuda/driver.hpp"

namespace q4::cache {

inline const Device kGpu{BackendKind::kCuda, 0};

inline bool compiler_absent(const char* what) {
  static const cuda::Nvrtc nvrtc;
  if (!nvrtc.available()) test::skip(std::string(what) + ": no NVRTC: " + nvrtc.problem());
  return !nvrtc.available();
}

/// Checks in a child process, whose drivers are the fake one: the number of the first that fails.
#define Q4_CHILD_CHECK(condition)                                        \
  if (!(condition)) {                                                    \
    std::fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
    return 1;                                                            \
  }

template <class F>
pid_t start_on_fake_gpu(const F& body) {
  return start([&] {
    ::setenv("Q4_CUDA_DRIVER", q4::test::fake_cuda().c_str(), 1);
    ::setenv("Q4_HIP_RUNTIME", "none", 1);  // where there is one
    return body();
  });
}
template <class F>
int on_fake_gpu(const F& body) {
  return finish(start_on_fake_gpu(body));
}

inline RuntimeOptions in(const std::string& folder) {
  RuntimeOptions options;
  options.cache_dir = folder;
  return options;
}

inline std::string error_of(const std::function<void()>& call, ErrorCode code) {
  try {
    call();
  } catch (const Error& error) {
    return error.code() == code ? error.what() : std::string("another code: ") + error.what();
  }
  return "no error";
}

}  // namespace q4::cache
