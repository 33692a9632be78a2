// Releasing and taking the GIL in threads that may outlive the interpreter.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

namespace q4::python {

/// For a thread that the interpreter no longer lets run: it stays here until the process ends. Python before 3.14 ends
/// daemon threads at exit by unwinding their stacks when they ask for the GIL, and through destructors that is abort().
[[noreturn]] inline void stop_thread() {
  for (;;) ::pause();
}

/// The thread is without the GIL while this lives.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) { stop_thread(); }
  }
  GilRelease(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

/// The thread has the GIL while this lives, whether Python knew the thread or not.
class GilAcquire {
 public:
  GilAcquire() {
    try {
      state_ = PyGILState_Ensure();
    } catch (...) { stop_thread(); }
  }
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace q4::python
