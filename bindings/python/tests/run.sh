#!/usr/bin/env bash
# Builds the source distribution, a wheel of it, installs that into a fresh virtual environment and runs the tests there. Usage:
# run.sh FOLDER [MAKER]: FOLDER keeps the build from one run to the next, MAKER is q4-make-checkpoint, whose checkpoints one test
# loads. Exits 77, which CTest shows as skipped, where Python, venv or the packages are missing.
set -euo pipefail

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$1
export Q4_MAKE_CHECKPOINT=${2:-}
mkdir -p "$folder"
rm -rf "$folder/venv" "$folder/wheel"
skip() {
  echo "skipped: $*"
  exit 77
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no python3 of 3.10 or later"
python3 -m venv "$folder/venv" >"$folder/log.txt" 2>&1 || skip "python3 has no venv"
python=$folder/venv/bin/python
"$python" -m pip install -q build scikit-build-core nanobind ninja numpy pytest mypy >>"$folder/log.txt" 2>&1 ||
  skip "no packages: $(tail -n 1 "$folder/log.txt")"

# PyTorch and what belongs to it, if .ci/run is bringing them: see there. Dozens of processes import it, each in 4 s where its
# bytecode is kept, 6 where it is not.
unset PYTHONDONTWRITEBYTECODE
if [ -n "${Q4_PYTORCH:-}" ]; then
  for ((i = 0; i < 900; i++)); do
    [ -e "$Q4_PYTORCH/status" ] && break
    sleep 1
  done
  if [ "$(cat "$Q4_PYTORCH/status" 2>/dev/null)" = 0 ]; then
    echo "$Q4_PYTORCH/packages" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pytorch.pth"
  else
    echo "no PyTorch: $(tail -n 1 "$Q4_PYTORCH/log.txt")"
  fi
fi

# From here on everything that goes wrong is a failure. Only files that changed since the last run are written, so that only they are compiled.
# The compiler's name and the place of the build within the sources are those of the tree, which makes the compiler cache know what was compiled there.
rm -rf "$folder/sdist" "$folder/new"
mkdir -p "$folder/new" "$folder/source"
"$python" -m build --sdist --no-isolation -o "$folder/sdist" "$source/../.." >>"$folder/log.txt" 2>&1 || { tail -n 20 "$folder/log.txt"; exit 1; }
tar -C "$folder/new" --strip-components=1 -m -xf "$folder"/sdist/q4-*.tar.gz
(cd "$folder/source" && find . -path ./build -prune -o -type f -print) | while read -r file; do [ -e "$folder/new/$file" ] || rm "$folder/source/$file"; done
(cd "$folder/new" && find . -type f) | while read -r file; do
  cmp -s "$folder/new/$file" "$folder/source/$file" || install -D -m 644 "$folder/new/$file" "$folder/source/$file"
done
ccache=$(command -v ccache || true)
CC=${CC:-cc} CXX=${CXX:-c++} PATH=$folder/venv/bin:$PATH CMAKE_CXX_COMPILER_LAUNCHER=$ccache CMAKE_C_COMPILER_LAUNCHER=$ccache \
  "$python" -m pip wheel -q --no-build-isolation --no-deps -C build-dir="$folder/source/build/wheel" -w "$folder/wheel" "$folder/source"
"$python" -m pip install -q --no-deps "$folder"/wheel/q4-*.whl
cd "$folder"
cmake -DFILES="$(echo venv/lib/python3*/site-packages/q4/_native*.so)" -DREADELF=readelf -DFORTIFIED=1 \
  -P "$source/../../tests/hardened.cmake"
"$python" -m pytest -q -p no:cacheprovider -rs --durations=12 "$source/tests"
