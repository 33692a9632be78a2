#!/usr/bin/env bash
# tools/abi-diff on a library of one file: without a tag it says so; the same interface and an added function are compatible; a struct whose
# member moves or that grows, and a function that takes something else, in C++ and in C, are not.
# Exit 77, "not run", without abidiff or git.
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command -v abidiff >/dev/null || { echo "skipped: no abidiff (Debian: abigail-tools)" && exit 77; }
command -v git >/dev/null || { echo "skipped: no git" && exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2046  # names of variables
unset $(git rev-parse --local-env-vars)
cd "$work"
mkdir -p tools include/q4
cp "$source/tools/abi-diff" "$source/tools/setup.sh" tools/
cat >CMakeLists.txt <<'CMAKE'
cmake_minimum_required(VERSION 3.24)
project(q4 CXX)
add_library(q4 q4.cpp)
target_include_directories(q4 PRIVATE include)
CMAKE
# library MEMBERS ARGUMENT TYPE [MORE]: a struct, a function of C++ that takes ARGUMENT besides it, one of C that takes TYPE, and other functions
library() {
  printf '#pragma once\nstruct q4_options { %s };\nnamespace q4 {\nint run(const q4_options& options, %s argument);\n}\nextern "C" int q4_run(%s argument);\n' \
    "$1" "$2" "$3" >include/q4/q4.hpp
  printf '#include "q4/q4.hpp"\nint q4::run(const q4_options& options, %s) { return options.max_m; }\nint q4_run(%s) { return 0; }\n%s\n' "$2" "$3" "${4:-}" >q4.cpp
}
wanted() {  # STATUS TEXT: what the tool ends with and says
  local status=0
  bash tools/abi-diff >out.txt 2>&1 || status=$?
  if [ $status != "$1" ] || ! grep -q -- "$2" out.txt; then cat out.txt && echo "exit $status; expected $1 and '$2'" >&2 && exit 1; fi
}

library "int max_m;" int int
git init -q . && git add . && git -c user.name=test -c user.email=test@example.com commit -qm first
wanted 77 "there is no tag yet"
git tag v0.1.0
wanted 0 "compatible with v0.1.0"
library "int max_m;" int int "int more() { return 1; }"
wanted 0 "compatible with v0.1.0"
library "int min_m; int max_m;" int int
wanted 1 "the interface changed"
grep -q "min_m" out.txt || { cat out.txt && exit 1; }
library "int max_m; int more;" int int
wanted 1 "type size changed"
library "int max_m;" long int
wanted 1 "q4::run(const q4_options&, int)"
library "int max_m;" int long
wanted 1 "function int q4_run(int)"
echo "tools/abi-diff tells compatible libraries from others"
