// The dump folder: what was compiled, how, and what came of it, for people and for compiler bug reports.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/base/check.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/jit/cubin_info.hpp"
#include "runtime/jit/source.hpp"

namespace q4::cache {
namespace {

std::string extension(const std::vector<char>& code, const std::string& target) {
  const std::string_view data(code.data(), code.size());
  if (!data.starts_with("\x7f"
                        "ELF"))
    return ".ptx";
  return target.starts_with("gfx") ? ".hsaco" : ".cubin";
}

bool write(const std::string& path, std::string_view data) {
  std::ofstream file(path, std::ios::binary);
  file.write(data.data(), static_cast<std::streamsize>(data.size()));
  file.close();
  return !file.fail();
}

}  // namespace

std::string dump(const std::string& folder, const KernelKey& key, const CacheEvent& event,
                 const std::vector<char>* code, const std::string& log, std::string& stem) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return fmt::format("cannot create {}: {}", folder, error.message());
  const std::string function = key.name.substr(0, key.name.find(' '));
  stem =
      fmt::format("{}/{}-{}-{}", folder, function, key.target.substr(0, key.target.find(':')), event.key.substr(0, 16));
  nlohmann::ordered_json facts{{"key", event.key},
                               {"kernel", key.name},
                               {"target", key.target},
                               {"options", key.options},
                               {"headers", key.headers},
                               {"layer", to_string(event.layer)},
                               {"from", event.from},
                               {"missed", event.missed},
                               {"error", event.error},
                               {"lookup_ms", event.lookup_ms},
                               {"compile_ms", event.compile_ms},
                               {"load_ms", event.load_ms}};
  bool written = write(stem + ".cu", key.source);
  if (code) {
    facts["code_bytes"] = code->size();
    try {
      const auto info = jit::cubin_info(*code, jit::entry(key.name));
      facts["registers"] = info.registers, facts["spill_bytes"] = info.stack_bytes;
      facts["shared_bytes"] = info.shared_bytes;
    } catch (const Error&) {  // no cubin: the log has what there is
    }
    written &= write(stem + extension(*code, key.target), {code->data(), code->size()});
  }
  if (!log.empty()) written &= write(stem + ".log", log + "\n");
  written &= write(stem + ".json", facts.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  return written ? std::string() : fmt::format("cannot write {}.*", stem);
}

}  // namespace q4::cache
