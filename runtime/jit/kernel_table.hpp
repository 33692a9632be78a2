// Every kernel of the library: one row each. A matmul kernel is a header with a Config and a row here; the plan, the
// tuner, the compile tests and the launch code find everything else through the row.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/problem.h"
#include "runtime/jit/source.hpp"

namespace q4::jit {

/// What a launch of one config needs, known on the host.
struct KernelShape {
  int threads = 0;
  int shared_bytes = 0;
  int cluster = 1;
  std::int64_t workspace_bytes = 0;  ///< at the m that was asked for
};

/// Rows of one tensor-copy box of x and of out; both are `columns` wide.
struct TensorBoxes {
  int x_rows = 0, out_rows = 0, columns = 0;
};

/// A kernel that takes MatmulArgs (and, with `tensor_maps`, a map of x and a map of out).
struct MatmulKernel {
  const char* name;
  bool tensor_maps;
  bool overlaps;  ///< it waits for the previous kernel itself (griddepcontrol.wait), so it may be launched early
  /// All tunables with the values of a default-constructed Config.
  Values (*fields)();
  /// The default tunables for this m, or nothing if the kernel cannot serve it.
  std::optional<Values> (*defaults)(const Problem&, std::int64_t m, const Limits&);
  /// Tunables under which a row's bits depend neither on m nor on its place, the same for every m; nothing if there are
  /// none for this problem.
  std::optional<Values> (*invariant)(const Problem&, const Limits&);
  /// Every valid config worth measuring for this m.
  std::vector<Values> (*space)(const Problem&, std::int64_t m, const Limits&);
  /// Whether its default had better gather act-order's x itself (`gather`) than have it permuted before.
  bool (*gathers)(const Problem&, std::int64_t m, const Limits&);
  /// Whether rows of x that do not begin at a line of the cache had better be copied first to rows that do.
  bool (*copies)(const Problem&, std::int64_t m);
  bool (*valid)(const Problem&, const Values&, const Limits&);
  bool (*serves)(const Problem&, const Values&, std::int64_t m);
  KernelShape (*shape)(const Problem&, const Values&, std::int64_t m, const Limits&);
  /// Blocks of a launch as a function of m, bound to one config so that a launch costs no look-up.
  std::function<std::int64_t(std::int64_t m)> (*grid)(const Problem&, const Values&, const Limits&);
  Source (*source)(const Problem&, const Values&);
  /// Boxes of the tensor maps as a function of m, when tensor_maps; else empty.
  std::function<TensorBoxes(std::int64_t m)> (*boxes)(const Problem&, const Values&);
};

const std::vector<MatmulKernel>& matmul_kernels();
/// Null if there is no such kernel.
const MatmulKernel* find_matmul_kernel(std::string_view name);

/// "half2=1 rows=2" laid over a kernel's own fields; throws kInvalidArgument for a field it does not have.
Values parse_values(const MatmulKernel& kernel, std::string_view text);

Source pack_source(bool awq);
Source read_source(int threads, int loads);
Source remap_source(bool staged);
Source reconstruct_source(const Problem& problem);

}  // namespace q4::jit
