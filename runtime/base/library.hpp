// A shared library opened at first need, and never closed: drivers do not survive that.
#pragma once

#include <string>
#include <vector>

namespace q4 {

/// dlopen, now and locally; null: see dlerror(). fork() waits for it, else the child had the loader's half-made state.
void* open_library(const char* name);

class Library {
 public:
  /// Tries `$variable` (a path) alone if it is set, else each of `names` on the loader's path, then in `folders`.
  Library(const char* variable, const std::vector<std::string>& names, const std::vector<std::string>& folders);

  explicit operator bool() const { return handle_ != nullptr; }
  const std::string& path() const { return path_; }        ///< what was opened
  const std::string& problem() const { return problem_; }  ///< why nothing was, with what was tried
  void* find(const char* symbol) const;                    ///< null if absent

  /// Sets `function` to the symbol; false, and problem() says which, if it is absent.
  template <class F>
  bool bind(F& function, const char* symbol) {
    function = reinterpret_cast<F>(find(symbol));
    if (!function) problem_ = path_ + " has no " + symbol + ": too old for q4";
    return function != nullptr;
  }

 private:
  void* handle_ = nullptr;
  std::string path_, problem_;
};

}  // namespace q4
