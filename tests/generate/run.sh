#!/usr/bin/env bash
# examples/generate against NumPy. Usage: run.sh PROGRAM FOLDER. Exits 77, which CTest shows as skipped, where Python's venv
# or the packages are missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
program=$1 folder=$2
mkdir -p "$folder"
skip() {
  echo "skipped: $*"
  exit 77
}
python=$folder/venv/bin/python
if ! "$python" -c 'import numpy, regex' 2>/dev/null; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no python3 of 3.10 or later"
  python3 -m venv "$folder/venv" >"$folder/log.txt" 2>&1 || skip "python3 has no venv"
  "$python" -m pip install -q numpy regex >>"$folder/log.txt" 2>&1 || skip "no packages: $(tail -n 1 "$folder/log.txt")"
fi
PYTHONDONTWRITEBYTECODE=1 "$python" "$here/generate_test.py" "$program" "$folder/models"
