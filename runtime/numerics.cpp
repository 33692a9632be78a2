// Runtime::numerics_id: what decides the bits of results, hashed.
#include <q4/checkpoint.hpp>
#include <q4/warmup.hpp>

#include <set>

#include "runtime/base/check.hpp"
#include "runtime/base/sha256.hpp"
#include "runtime/choose/shape.hpp"
#include "runtime/matmul.hpp"
#include "runtime/runtime.hpp"

namespace q4 {

std::string Runtime::numerics_id(Device device, const std::vector<WarmupShape>& shapes,
                                 const PlanOptions& options) const {
  const auto opened = impl_->open(device);
  check_options(options, opened->info().device);
  std::set<std::string> lines;  // in whatever order shapes come
  for (const WarmupShape& s : shapes) {
    const MatrixShape matrix = planned_shape({s.k, s.n, s.group_size, s.act_order, s.bias, s.awq}, options);
    const auto* tuned = find_tuned(*this, *opened, matrix.k, matrix.n, matrix.group_size, matrix.act_order, options);
    lines.insert(fmt::format("{} {} {} {} {} {}: {}\n", s.k, s.n, s.group_size, s.act_order, s.bias, s.awq,
                             opened->numerics(matrix, options, tuned)));
  }
  std::string text = fmt::format("{} {} {} {} {}\n", opened->info().arch, opened->kernels_digest(),
                                 to_string(options.activation), static_cast<int>(options.math), options.max_m);
  for (const std::string& line : lines) text += line;
  return cache::Sha256().update(text.data(), text.size()).hex().substr(0, 16);
}

std::string Runtime::numerics_id(Device device, const Checkpoint& checkpoint, const PlanOptions& options) const {
  return numerics_id(device, warmup_shapes(checkpoint), options);
}

}  // namespace q4
