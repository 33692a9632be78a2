// What lives between calls: the runtime, matrices with their plans, and the scratch memory of launches.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <q4/q4.hpp>
#include <vector>

#include "bindings/python/src/array.hpp"
#include "bindings/python/src/gil.hpp"
#include "runtime/base/fork.hpp"
#include "runtime/base/memory.hpp"

namespace q4::python {

/// The runtime of this process; made at first use, never destroyed (drivers may be gone before statics are).
Runtime& runtime();
/// Replaces it for what is made from now on.
void configure(RuntimeOptions options);

/// The user's allocator (q4.set_allocator), else PyTorch's on the GPUs that it uses, else the driver (memory.cpp).
Allocator python_allocator();

/// Scratch memory: one a device and stream, since launches of one stream cannot overlap. It grows by doubling, and what
/// it grew out of stays until clear(), because captured graphs may still use it. The CPU has one too: its calls take
/// turns.
class Workspaces {
 public:
  struct Scratch {
    ProcessMutex mutex;  ///< held while a call launches: its kernels stay together in the stream
    std::vector<Buffer> memory;
    std::size_t bytes = 0;
    /// At least `bytes`, zeroed when it was allocated. `mutex` is held.
    void* reserve(Device device, std::size_t bytes);

   private:
    ForkSafeMutex growing_;
  };
  std::shared_ptr<Scratch> get(Device device, void* stream);
  /// Waits for the devices and frees everything.
  void clear();

 private:
  ForkSafeMutex mutex_;
  std::map<std::pair<std::pair<BackendKind, int>, void*>, std::shared_ptr<Scratch>> scratch_;
};

/// Of this process.
Workspaces& workspaces();

/// While it lives, this thread may allocate and load although one of its streams is being captured.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(Device device);
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  using Exchange = int (*)(int* mode);
  Exchange exchange_ = nullptr;
  int mode_ = 0;
};

/// A matrix and the plans made for it so far: one for each set of options and power of two that m is rounded up to. A
/// plan for a larger m serves smaller ones. Thread-safe.
class Matrix {
 public:
  explicit Matrix(QuantizedMatrix weights) : weights(std::move(weights)), device(this->weights.device()) {}

  /// `options.max_m` is the m that is wanted.
  MatmulPlan plan(PlanOptions options);
  /// out = x @ W on the stream. Called without the GIL.
  void multiply(const PlanOptions& options, Workspaces& workspaces, void* stream, ConstRows x, Rows out, std::int64_t m,
                RunInputs inputs = {});

  QuantizedMatrix weights;
  const Device device;
  std::shared_ptr<void>
      tensors;  ///< Python's, whose memory the weights are in; whoever frees it may be without the GIL

 private:
  struct Made {
    PlanOptions options;
    MatmulPlan plan;
  };
  const Made* serving(const PlanOptions& options) const;

  ForkSafeMutex mutex_;
  std::vector<Made> plans_;
};

/// How a matrix is made of arrays that it may pack itself over (`reuse`).
MatrixOptions reuse_options(const char* call, bool reuse, std::initializer_list<const Array*> arrays);
/// Keeps tensors that a matrix is in, as long as it lives. Called with the GIL.
void keep_tensors(Matrix& matrix, std::initializer_list<nb::handle> tensors);

/// From a path as Python gives it (str or os.PathLike).
Checkpoint open_checkpoint(nb::handle path);
/// device None: the best one; zeros: overrides the checkpoint's claim.
std::shared_ptr<Matrix> load_matrix(const Checkpoint& checkpoint, const std::string& name, nb::handle device,
                                    const std::optional<std::string>& zeros);

/// None: what is current; else an address, or a stream of torch or CuPy.
void* stream_of(const char* call, nb::handle stream, const Array& x);

/// Checks x and out against each other and the matrix, so that Matrix::multiply can run them; returns m. `columns` of
/// out, 0: n.
std::int64_t check_operands(const char* call, const Matrix& matrix, const Array& x, const RowsOf& x_rows,
                            const Array& out, const RowsOf& out_rows, std::int64_t columns = 0);
/// Checks the residual against out, and returns its rows.
ConstRows check_residual(const char* call, const Array& residual, const Array& out);

}  // namespace q4::python
