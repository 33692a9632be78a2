#!/usr/bin/env bash
# Builds the CPU backend for AArch64 with the packaged cross-compiler and runs the tests of its kernels (NEON, its dot
# products, SVE of 256 bits) under qemu-user. Exit 77, "skipped", where one of them is not installed.
#   qemu.sh SOURCE BUILD [LAUNCHER]
set -euo pipefail
source=$1 build=$2 launcher=${3:-}

for tool in aarch64-linux-gnu-g++ qemu-aarch64 ninja; do
  command -v $tool >/dev/null || { echo "skipped: $tool is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)"; exit 77; }
done
version=$(aarch64-linux-gnu-g++ -dumpversion)
[ "${version%%.*}" -ge 12 ] || { echo "skipped: aarch64-linux-gnu-g++ is $version, and q4 needs 12 or later"; exit 77; }
headers=$build/headers  # those of two header-only packages, without the host's C library
mkdir -p "$headers"
for package in fmt doctest; do
  [ -d /usr/include/$package ] || { echo "skipped: /usr/include/$package is not installed"; exit 77; }
  ln -sfn /usr/include/$package "$headers/$package"
done

# At -O1: this is about results, and compiles in half the time.
cmake -S "$source/tests/cpu" -B "$build" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$source/tests/cpu/aarch64.cmake" \
  -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS=-O1 -DQ4_HEADERS="$headers" "-DQ4_CPU_TESTS=isa;int8" \
  -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher" >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
ninja -C "$build" >"$build/build.log" || { tail -n 40 "$build/build.log"; exit 1; }

# "max" has everything; its SVE vectors are set to 32 bytes. Every level must have run: none says "skipped".
qemu-aarch64 -cpu max,sve-default-vector-length=32 -L /usr/aarch64-linux-gnu "$build/q4-cpu-tests" \
  -tce="*stated*,*batch*" | tee "$build/run.log"
if grep skipped: "$build/run.log"; then exit 1; fi
# A processor with NEON alone must still choose and run it.
qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu "$build/q4-cpu-tests" -tc='*has' | tee "$build/run-a53.log"
test "$(grep -c 'skipped: .*"\(neon_dot\|sve256\)".*portable, neon$' "$build/run-a53.log")" = 2
