// q4-hip-compile: hipRTC in a process of its own, for the library: a compiler that aborts takes only this program
// along.
#include <cstdio>
#include <q4/version.hpp>
#include <string_view>

#include "runtime/backends/hip/compiler.hpp"

int main(int argc, char** argv) {
  constexpr const char* kHelp =
      "hipRTC in a process of its own, which the library starts; there is nothing to call by hand.\n"
      "Usage: q4-hip-compile [OPTIONS]\n\n"
      "Options:\n"
      "  -h,--help                       Print this help message and exit\n"
      "  --version                       Display program version information and exit\n";
  const std::string_view only = argc == 2 ? argv[1] : "";
  if (only == "--version") return std::printf("q4-hip-compile %s\n", q4::version()) < 0;
  if (only == "-h" || only == "--help") return std::fputs(kHelp, stdout) < 0;
  return q4::hip::helper_main(argc, argv);
}
