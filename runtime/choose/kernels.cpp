// The table of kernels, in order of preference.
#include <algorithm>
#include <charconv>
#include <tuple>

#include "runtime/choose/defaults/batch.hpp"
#include "runtime/choose/defaults/decode.hpp"
#include "runtime/choose/defaults/gemv.hpp"
#include "runtime/choose/defaults/prefill.hpp"
#include "runtime/choose/defaults/tile.hpp"
#include "runtime/choose/row.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4::choose {

namespace {

template <class... Policies>
const std::vector<const Kernel*>& table() {
  static const std::tuple<Row<Policies>...> rows;
  static const std::vector<const Kernel*> kernels = {&std::get<Row<Policies>>(rows)...};
  return kernels;
}

}  // namespace

const std::vector<const Kernel*>& matmul_kernels() {
  return table<DecodePolicy, PrefillPolicy, BatchPolicy, TilePolicy, GemvPolicy>();
}

const Kernel* find_matmul_kernel(std::string_view name) {
  for (const Kernel* kernel : matmul_kernels())
    if (name == kernel->name) return kernel;
  return nullptr;
}

Result<Values> parse_values(const Kernel& kernel, std::string_view text) {
  Values values = kernel.fields();
  while (!text.empty()) {
    const auto end = std::min(text.find(' '), text.size());
    const auto item = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (item.empty()) continue;
    const auto equals = item.find('=');
    int number = 0;
    const bool parsed =
        equals != item.npos &&
        std::from_chars(item.data() + equals + 1, item.data() + item.size(), number).ptr == item.data() + item.size();
    const auto field =
        std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == item.substr(0, equals); });
    if (!parsed || field == values.end())
      return Failure{"tactic: '" + std::string(item) + "' is no field=value of kernel " + kernel.name +
                     "; its fields: " + jit::to_text(values)};
    field->second = number;
  }
  return values;
}

const std::vector<std::string>& kernel_headers() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> digests;
    for (const Kernel* kernel : matmul_kernels()) digests.push_back(jit::header_digest(kernel->header()));
    return digests;
  }();
  return all;
}

const std::string& kernel_digests() {
  static const std::string all = [] {
    std::vector<std::string> items;
    const auto add = [&](const std::string& name, const char* header) {
      items.push_back(name + ":" + jit::header_digest(header).substr(0, 16));
    };
    for (const Kernel* kernel : matmul_kernels()) add(kernel->name, kernel->header());
    add("reconstruct", "reconstruct.h"), add("remap", "remap.h");
    std::sort(items.begin(), items.end());
    std::string text;
    for (const auto& item : items) text += (text.empty() ? "" : ",") + item;
    return text;
  }();
  return all;
}

}  // namespace q4::choose
