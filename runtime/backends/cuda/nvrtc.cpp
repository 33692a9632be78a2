// Compiles generated source with NVRTC; the kernel headers come from memory.
#include "runtime/backends/cuda/nvrtc.hpp"

#include <algorithm>
#include <cstdlib>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4::cuda {
namespace {

std::vector<std::string> toolkit_folders() {
  std::vector<std::string> folders;
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (is_set(name)) folders.push_back(setting(name) + "/lib64");
  folders.push_back("/usr/local/cuda/lib64");
  return folders;
}

/// The number after `key` in text, up to a space or the end of the line.
std::string word_after(const std::string& text, const std::string& key) {
  const auto at = text.find(key);
  if (at == text.npos) return "";
  const auto from = at + key.size();
  return text.substr(from, text.find_first_of(" \n", from) - from);
}

}  // namespace

Nvrtc::Nvrtc() : library_("Q4_NVRTC", {"libnvrtc.so.13", "libnvrtc.so.12"}, toolkit_folders()) {
  if (!library_) {
    problem_ = library_.problem();
    return;
  }
  const bool bound = library_.bind(version_, "nvrtcVersion") && library_.bind(error_, "nvrtcGetErrorString") &&
                     library_.bind(create_, "nvrtcCreateProgram") && library_.bind(destroy_, "nvrtcDestroyProgram") &&
                     library_.bind(compile_, "nvrtcCompileProgram") &&
                     library_.bind(log_size_, "nvrtcGetProgramLogSize") && library_.bind(log_, "nvrtcGetProgramLog") &&
                     library_.bind(cubin_size_, "nvrtcGetCUBINSize") && library_.bind(cubin_, "nvrtcGetCUBIN") &&
                     library_.bind(ptx_size_, "nvrtcGetPTXSize") && library_.bind(ptx_, "nvrtcGetPTX") &&
                     library_.bind(arch_count_, "nvrtcGetNumSupportedArchs") &&
                     library_.bind(archs_, "nvrtcGetSupportedArchs");
  if (!bound) {
    problem_ = library_.problem();
    return;
  }
  if (const int result = version_(&major_, &minor_); result != 0) {
    problem_ = fmt::format("nvrtcVersion of {}: {}", path(), error_(result));
    return;
  }
  try {
    const auto ptx = compile({"identity", "extern \"C\" __global__ void q4_identity() {}\n"}, "compute_75", {});
    identity_ = fmt::format("nvrtc {} {}", version(), word_after({ptx.begin(), ptx.end()}, "Build ID: "));
  } catch (const Error& error) { problem_ = error.what(); }
}

std::string Nvrtc::version() const { return fmt::format("{}.{}", major_, minor_); }

std::string Nvrtc::architecture(const std::string& arch, bool& exact) const {
  exact = true;
  if (arch.starts_with("compute_")) return exact = false, arch;
  int count = 0, result = arch_count_(&count);
  std::vector<int> known(static_cast<std::size_t>(count));
  if (result == 0) result = archs_(known.data());
  if (result != 0) fail(ErrorCode::kCompile, "nvrtcGetSupportedArchs of {}: {}", path(), error_(result));
  const int wanted = std::atoi(arch.c_str() + 3);
  if (std::find(known.begin(), known.end(), wanted) != known.end()) return arch;
  exact = false;
  int best = 0;
  for (const int candidate : known)
    if (candidate < wanted) best = std::max(best, candidate);
  if (!best)
    fail(ErrorCode::kUnsupported,
         "{} ({}) cannot compile for {}, its oldest target is sm_{}: use NVRTC 12 for older GPUs ($Q4_NVRTC)",
         identity_, path(), arch, known.empty() ? 0 : *std::min_element(known.begin(), known.end()));
  return fmt::format("compute_{}", best);
}

q4::Result<void> Nvrtc::knows(const std::string& arch) const {
  if (!available()) return Failure{problem_ + "; install NVRTC, or ship prebuilt kernels"};
  bool exact;
  try {
    architecture(arch, exact);
  } catch (const Error& error) { return Failure{error.what()}; }
  return {};
}

std::vector<char> Nvrtc::compile(const jit::Source& source, const std::string& arch,
                                 const std::vector<std::string>& options, std::string* log) const {
  if (!available())
    fail(ErrorCode::kUnsupported, "cannot compile {}: {}; install NVRTC or ship prebuilt kernels", source.name,
         problem_);
  std::vector<const char*> names, texts;
  for (const auto& header : jit::embedded_headers()) names.push_back(header.name), texts.push_back(header.text);
  bool exact = true;
  std::vector<std::string> all = options;
  all.push_back("--gpu-architecture=" + architecture(arch, exact));
  std::vector<const char*> arguments;
  for (const auto& option : all) arguments.push_back(option.c_str());

  Program program = nullptr;
  const auto require = [&](int result, const char* call) {
    if (result != 0) fail(ErrorCode::kCompile, "{} for {}: {}", call, source.name, error_(result));
  };
  require(create_(&program, source.text.c_str(), "q4.cu", static_cast<int>(names.size()), texts.data(), names.data()),
          "nvrtcCreateProgram");
  struct Destroy {
    const Nvrtc* self;
    Program* program;
    ~Destroy() { self->destroy_(program); }
  } const destroy{this, &program};
  const int result = compile_(program, static_cast<int>(arguments.size()), arguments.data());
  std::size_t size = 0;
  log_size_(program, &size);
  std::string text(size, '\0');
  log_(program, text.data());
  while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
  if (result != 0)
    fail(ErrorCode::kCompile, "{} on {} for {}: {}\nlog:\n{}\nsource:\n{}", path(), source.name, arch, error_(result),
         text, source.text);
  if (log) *log = text;
  require(exact ? cubin_size_(program, &size) : ptx_size_(program, &size), "nvrtc code size");
  std::vector<char> code(size);
  require(exact ? cubin_(program, code.data()) : ptx_(program, code.data()), "nvrtc code");
  return code;
}

}  // namespace q4::cuda
