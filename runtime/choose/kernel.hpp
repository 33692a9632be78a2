// A matmul kernel as the host sees it: which Configs it has, and what a launch of one Config needs.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/device_limits.h"
#include "runtime/base/result.hpp"
#include "runtime/jit/source.hpp"

namespace q4 {
struct Problem;
struct LoraLoad;
}  // namespace q4

namespace q4::choose {

using jit::Values;

/// Rows and columns of one tensor-copy box of x and of out.
struct TensorBoxes {
  int x_rows = 0, out_rows = 0, columns = 0, out_columns = 0;
};

/// A kernel with one Config, bound to a problem and a device: all that a launch needs. Immutable; no call allocates
/// except source().
class BoundKernel {
 public:
  virtual ~BoundKernel() = default;
  virtual int threads() const = 0;
  virtual int shared_bytes() const = 0;
  virtual int cluster() const = 0;  ///< blocks of a thread-block cluster
  /// Whether it can multiply this many rows of x.
  virtual bool serves(std::int64_t m) const = 0;
  virtual std::int64_t grid(std::int64_t m) const = 0;
  virtual std::int64_t workspace_bytes(std::int64_t m) const = 0;
  virtual TensorBoxes boxes(std::int64_t m) const = 0;  ///< of a kernel with tensor_maps
  /// With a grouped problem: rows of a row tile (kernels/grouped.h). m counts row tiles, at most so many, in grid(),
  /// serves() and boxes(). 0: the kernel has no grouped form.
  virtual int tile_rows() const = 0;
  /// With a problem with LoRA: how many of a launch's blocks shrink x themselves (kLoraWithin), 0: a launch before must;
  /// all blocks of such a launch, and the bytes of memory that one for so much or less needs, whatever they hold.
  struct LoraWithin {
    int blocks = 0;
    std::int64_t grid = 0, bytes = 0;
    bool first = false;  ///< they take longer than the matmul (kLoraFirst)
  };
  virtual LoraWithin lora_within(const LoraLoad& load) const = 0;
  virtual jit::Source source() const = 0;
};

/// One row of the table of kernels: a header in kernels/ and its policy in defaults/.
class Kernel {
 public:
  Kernel(const char* name_, bool tensor_maps_, bool overlaps_)
      : name(name_), tensor_maps(tensor_maps_), overlaps(overlaps_) {}
  virtual ~Kernel() = default;

  const char* const name;
  const bool tensor_maps;  ///< it takes a map of x and a map of out besides MatmulArgs
  /// It waits for the previous kernel itself (griddepcontrol.wait), so it may be launched early.
  const bool overlaps;

  virtual const char* header() const = 0;
  /// All tunables with the values of a default-constructed Config.
  virtual Values fields() const = 0;
  /// The Config of these tunables; null if it cannot run on such a device. A tunable that is missing keeps its default.
  virtual std::shared_ptr<const BoundKernel> bind(const Problem&, const Values&, const Limits&) const = 0;

  /// The tunables for a shape that nobody has tuned, or nothing if this kernel should not be used for it.
  virtual std::optional<Values> defaults(const Problem&, std::int64_t m, const Limits&) const = 0;
  /// Tunables under which a row's bits depend neither on m nor on its place, the same for every m; nothing if there are
  /// none for this problem.
  virtual std::optional<Values> invariant(const Problem&, const Limits&) const = 0;
  /// Every valid Config worth measuring for this m.
  virtual std::vector<Values> space(const Problem&, std::int64_t m, const Limits&) const = 0;
  /// Whether its default is faster when it gathers act-order's x itself (`gather`) than after a permutation of x.
  virtual bool gathers(const Problem&, std::int64_t m, const Limits&) const = 0;
  /// Whether rows of x that do not begin at a line of the cache are better copied first to rows that do.
  virtual bool copies(const Problem&, std::int64_t m) const = 0;
};

/// The table, in order of preference. The last one serves everywhere.
const std::vector<const Kernel*>& matmul_kernels();
/// Null if there is no such kernel.
const Kernel* find_matmul_kernel(std::string_view name);

/// "half2=1 rows=2" laid over a kernel's own fields, or which of them it does not have.
Result<Values> parse_values(const Kernel& kernel, std::string_view text);

/// Digest of the device code of each kernel by name, "batch:0123456789abcdef,decode:...", and of those around them:
/// what tuning records say that they were measured with.
const std::string& kernel_digests();
/// Digests of the headers that the matmul kernels are compiled from, as cached kernels name them.
const std::vector<std::string>& kernel_headers();

}  // namespace q4::choose
