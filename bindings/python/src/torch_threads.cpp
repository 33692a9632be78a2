// Finds the OpenMP run time that torch brought along, by its name among the loaded libraries.
#include "bindings/python/src/torch_threads.hpp"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <string_view>

#include "runtime/base/settings.hpp"

namespace q4::python {
namespace {

struct OpenMp {
  /// What compilers call for a parallel region: body(data) in each thread of a team. LLVM's and Intel's have it too.
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*most_threads)() = nullptr;  ///< in a parallel region 1, unless nesting is allowed
};

/// The path of torch's library; "" where there is none.
std::string loaded() {
  std::string found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* to) {
        const std::string_view path = info->dlpi_name ? info->dlpi_name : "";
        const auto name = path.substr(path.rfind('/') + 1);
        const bool openmp = name.starts_with("libgomp") || name.starts_with("libomp") || name.starts_with("libiomp5");
        if (!openmp || path.find("/torch") == path.npos) return 0;
        *static_cast<std::string*>(to) = path;
        return 1;
      },
      &found);
  return found;
}

}  // namespace

ParallelFor torch_threads() {
  if (setting("Q4_TORCH_THREADS") != "1") return {};
  const std::string path = loaded();
  void* const library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return {};
  OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(dlsym(library, "GOMP_parallel"));
  openmp.most_threads = reinterpret_cast<decltype(openmp.most_threads)>(dlsym(library, "omp_get_max_threads"));
  if (!openmp.parallel || !openmp.most_threads) return {};
  return [openmp, process = getpid()](int count, const std::function<void(int)>& task) {
    struct Work {
      std::atomic<int> next{0};
      const int count;
      const std::function<void(int)>& task;
      static void share(void* self) {
        auto& work = *static_cast<Work*>(self);
        for (int i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.count;) work.task(i);
      }
    } work{{}, count, task};
    const int threads = std::min(count, openmp.most_threads());
    // A child process has none of the threads, and OpenMP would wait for them.
    if (threads <= 1 || getpid() != process) return Work::share(&work);
    openmp.parallel(&Work::share, &work, unsigned(threads), 0);
  };
}

}  // namespace q4::python
