#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh virtual environment and runs the tests there. Usage: run.sh FOLDER, which keeps
# the build from one run to the next. Exits 77, which CTest shows as skipped, where Python, venv or the packages are missing.
set -euo pipefail

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$1
mkdir -p "$folder"
rm -rf "$folder/venv" "$folder/wheel"
skip() {
  echo "skipped: $*"
  exit 77
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no python3 of 3.10 or later"
python3 -m venv "$folder/venv" >"$folder/log.txt" 2>&1 || skip "python3 has no venv"
python=$folder/venv/bin/python
"$python" -m pip install -q scikit-build-core nanobind ninja numpy pytest mypy >>"$folder/log.txt" 2>&1 ||
  skip "no packages: $(tail -n 1 "$folder/log.txt")"

# From here on everything that goes wrong is a failure.
ccache=$(command -v ccache || true)
PATH=$folder/venv/bin:$PATH CMAKE_CXX_COMPILER_LAUNCHER=$ccache CMAKE_C_COMPILER_LAUNCHER=$ccache \
  "$python" -m pip wheel -q --no-build-isolation --no-deps -C build-dir="$folder/build" -w "$folder/wheel" "$source"
"$python" -m pip install -q --no-deps "$folder"/wheel/q4-*.whl
cd "$folder"
cmake -DFILES="$(echo venv/lib/python3*/site-packages/q4/_native*.so)" -DREADELF=readelf -DFORTIFIED=1 \
  -P "$source/../../tests/hardened.cmake"
"$python" -m pytest -q -p no:cacheprovider -rs "$source/tests"
