// q4-hip-compile: hipRTC in a process of its own, for the library: a compiler that aborts takes only this program
// along.
#include "runtime/backends/hip/compiler.hpp"

int main(int argc, char** argv) { return q4::hip::helper_main(argc, argv); }
