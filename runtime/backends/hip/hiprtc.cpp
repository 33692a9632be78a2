// Opens hipRTC and compiles one text with it.
#include "runtime/backends/hip/hiprtc.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <filesystem>
#include <mutex>

#include "runtime/base/check.hpp"

namespace q4::hip {
namespace {

/// "5.2.21153" of .../libamdhip64.so.5.2.21153, where `function` is. hiprtcVersion() says 9.0 whatever the release.
std::string file_version(const void* function) {
  Dl_info info{};
  if (!::dladdr(function, &info) || !info.dli_fname) return "";
  std::error_code ignored;
  const std::string name = std::filesystem::canonical(info.dli_fname, ignored).filename().string();
  const auto at = name.find(".so.");
  return at == name.npos ? "" : name.substr(at + 4);
}

}  // namespace

Hiprtc::Hiprtc() : library_("Q4_HIPRTC", {"libhiprtc.so.7", "libhiprtc.so.6", "libamdhip64.so.5"}, {"/opt/rocm/lib"}) {
  problem_ = library_.problem();
  if (!library_) return;
  const bool bound =
      library_.bind(error_, "hiprtcGetErrorString") && library_.bind(create_, "hiprtcCreateProgram") &&
      library_.bind(destroy_, "hiprtcDestroyProgram") && library_.bind(compile_, "hiprtcCompileProgram") &&
      library_.bind(log_size_, "hiprtcGetProgramLogSize") && library_.bind(log_, "hiprtcGetProgramLog") &&
      library_.bind(code_size_, "hiprtcGetCodeSize") && library_.bind(code_, "hiprtcGetCode");
  problem_ = library_.problem();
  if (!bound) return;
  const std::string version = file_version(reinterpret_cast<const void*>(compile_));
  int major = 0, minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &major, &minor);
  release_ = major * 100 + minor;
  identity_ = "hiprtc " + (version.empty() ? "of unknown version" : version);
}

std::vector<char> Hiprtc::compile(const std::string& text, const std::string& target,
                                  const std::vector<std::string>& options, std::string* log) const {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  std::vector<std::string> all = options;
  all.push_back("--gpu-architecture=" + target);
  std::vector<const char*> arguments;
  for (const auto& option : all) arguments.push_back(option.c_str());
  Program program = nullptr;
  const auto require = [&](int result, const char* call) {
    if (result != 0) fail(ErrorCode::kCompile, "{} for {}: {}", call, target, error_(result));
  };
  require(create_(&program, text.c_str(), "q4.hip", 0, nullptr, nullptr), "hiprtcCreateProgram");
  struct Destroy {
    const Hiprtc* self;
    Program* program;
    ~Destroy() { self->destroy_(program); }
  } const destroy{this, &program};
  const int result = compile_(program, static_cast<int>(arguments.size()), arguments.data());
  std::size_t size = 0;
  log_size_(program, &size);
  std::string messages(size, '\0');
  if (size) log_(program, messages.data());
  while (!messages.empty() && (messages.back() == '\0' || messages.back() == '\n')) messages.pop_back();
  if (result != 0) fail(ErrorCode::kCompile, "{} for {}: {}\nlog:\n{}", path(), target, error_(result), messages);
  if (log) *log = messages;
  require(code_size_(program, &size), "hiprtcGetCodeSize");
  std::vector<char> code(size);
  require(code_(program, code.data()), "hiprtcGetCode");
  return code;
}

}  // namespace q4::hip
