#!/usr/bin/env bash
# packaging/conan as a user meets it: `conan create`, which builds the library and runs its test package. Conan is PyPI's; fmt and nlohmann-json are
# the system's, so that nothing is asked of ConanCenter. Exit 77, "not run", where Conan or these are missing.
#   conan.sh [FOLDER]    (build/conan)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(realpath -m "${1:-$root/build/conan}")
skip() { echo "skipped: $*" && exit 77; }
version() { pkg-config --modversion "$1" 2>/dev/null || skip "no $1 of the system"; }

mkdir -p "$folder"
if ! [ -x "$folder/venv/bin/conan" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install -q 'conan>=2.7,<3' || skip "no conan from PyPI"
fi
export CONAN_HOME=$folder/home PATH=$folder/venv/bin:$PATH
rm -rf "$CONAN_HOME"
conan profile detect >/dev/null 2>&1
fmt=$(version fmt) json=$(version nlohmann_json)
cat >"$folder/profile" <<PROFILE
include(default)
[settings]
compiler.cppstd=20
[platform_requires]
fmt/$fmt
nlohmann_json/$json
PROFILE
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-c "tools.cmake.cmaketoolchain:extra_variables={'CMAKE_CXX_COMPILER_LAUNCHER': 'ccache', 'CMAKE_C_COMPILER_LAUNCHER': 'ccache'}")
fi
conan create "$root/packaging/conan" --profile:all "$folder/profile" "${launcher[@]}" >"$folder/log.txt" 2>&1 || { tail -n 40 "$folder/log.txt" && exit 1; }
grep 'out\[0\]\[0\] = 320' "$folder/log.txt" || { echo "the test package did not run" && exit 1; }
