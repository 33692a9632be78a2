// What the drop-in modules share: matrices behind handles, qweight memory that matrices took over, kernels ahead of
// use.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bindings/python/src/session.hpp"

namespace q4::python {

/// Which of the old modules a handle belongs to: its bits from 62 on.
enum class Server : std::int64_t { kExllama = 0, kExllamaV2 = 1 };

/// Matrices by number; the GIL guards it. A number says of itself to which module and to which time between two
/// clear()s it belongs.
class Handles {
 public:
  explicit Handles(Server server) : server_(server) {}
  std::int64_t add(std::shared_ptr<Matrix> matrix);
  /// Throws kInvalidArgument for what is stale, of the other module, or nothing at all.
  const std::shared_ptr<Matrix>& find(const char* call, std::int64_t handle) const;
  void remove(const char* call, std::int64_t handle);
  /// Every matrix; all handles become stale.
  std::vector<std::shared_ptr<Matrix>> clear();

 private:
  std::size_t index(const char* call, std::int64_t handle) const;

  const Server server_;
  std::int64_t epoch_ = 1;
  std::vector<std::shared_ptr<Matrix>> matrices_;
};

/// What a server passes: named qweight, qzeros and scales, or as its function names them.
struct ServerTensors {
  nb::handle objects[3];
  Array qweight, qzeros, scales;
};
/// A matrix from tensors as a server passes them. On a GPU it is packed over their own memory where that fits, unless
/// $Q4_KEEP_QWEIGHT is 1; the tensors are then kept, and given again they share the matrix. Called with the GIL.
std::shared_ptr<Matrix> load_for_server(const char* call, const ServerTensors& given, GptqTensors tensors);
/// Frees matrices that no handle has any more; tensors get their content back where they were packed in place. Waits
/// for the devices. Called with the GIL, which it releases.
void unload(std::vector<std::shared_ptr<Matrix>> matrices);

/// Compiles on threads of its own what calls with up to so many rows will need. Thread-safe.
class CompileAhead {
 public:
  /// From now on calls have up to `rows` rows on this device.
  void rows(Device device, std::int64_t rows);
  void shape(const Matrix& matrix, const PlanOptions& options);
  /// Waits until everything has been tried.
  void finish();
  /// Ends after the kernels that are being compiled.
  void stop();

 private:
  struct Shape {
    Device device;
    WarmupShape shape;
    PlanOptions options;
    std::int64_t done = 0;  ///< rows that were warmed up, or are being
  };
  void start();
  void work();

  ForkSafeMutex mutex_;
  std::condition_variable_any changed_;
  std::map<std::pair<BackendKind, int>, std::int64_t> rows_;
  std::vector<Shape> shapes_;
  std::thread thread_;
  int process_ = 0;  ///< that the thread is of
  bool running_ = false, stopping_ = false;
};
CompileAhead& compile_ahead();

/// x and out are checked, and multiplied with a plan for the power of two that m is rounded up to.
void serve(const char* call, const std::shared_ptr<Matrix>& matrix, const Array& x, const Array& out,
           const PlanOptions& options, Workspaces& workspaces);
/// Both are fp16 matrices.
void check_half_rows(const char* call, const Array& x, const Array& out);

}  // namespace q4::python
