// dlopen with a list of candidates.
#include "runtime/base/library.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "runtime/base/fork.hpp"
#include "runtime/base/settings.hpp"

namespace q4 {

void* open_library(const char* name) {
  static ForkSafeMutex loading;
  const std::lock_guard lock(loading);
  return ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
}

Library::Library(const char* variable, const std::vector<std::string>& names, const std::vector<std::string>& folders) {
  std::vector<std::string> candidates;
  if (const std::string path = setting(variable); !path.empty()) {
    candidates = {path};
  } else {
    candidates = names;
    for (const auto& folder : folders)
      for (const auto& name : names) candidates.push_back(folder + "/" + name);
  }
  std::string first;
  for (const auto& candidate : candidates) {
    handle_ = open_library(candidate.c_str());
    if (handle_) {
      path_ = candidate;
      return;
    }
    if (first.empty()) first = ::dlerror();
  }
  problem_ = first + " (set " + variable + " to a path to use another)";
}

void* Library::find(const char* symbol) const { return handle_ ? ::dlsym(handle_, symbol) : nullptr; }

}  // namespace q4
