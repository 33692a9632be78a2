#!/usr/bin/env bash
# tools/abi-diff on a library of one file: without a tag it says so, an added function is compatible, a struct whose member moves is not.
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
header() { printf '#pragma once\nnamespace q4 {\nstruct Options {\n  %s\n};\nint run(const Options& options);\n%s}\n' "$1" "${2:-}" >include/q4/q4.hpp; }
body() { printf '#include "q4/q4.hpp"\nint q4::run(const Options& options) { return options.max_m; }\n%s\n' "${1:-}" >q4.cpp; }
wanted() {  # STATUS TEXT: what the tool ends with and says
  local status=0
  bash tools/abi-diff >out.txt 2>&1 || status=$?
  if [ $status != "$1" ] || ! grep -q -- "$2" out.txt; then cat out.txt && echo "exit $status; expected $1 and '$2'" >&2 && exit 1; fi
}

header "int max_m = 1;"
body
git init -q . && git add . && git -c user.name=test -c user.email=test@example.com commit -qm first
wanted 77 "there is no tag yet"
git tag v0.1.0
header "int max_m = 1;" "int more();"
body "int q4::more() { return 1; }"
wanted 0 "compatible with v0.1.0"
header "int min_m = 1; int max_m = 1;"
body
wanted 1 "the interface changed"
grep -q "min_m" out.txt || { cat out.txt && exit 1; }
echo "tools/abi-diff tells compatible libraries from others"
