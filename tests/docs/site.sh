#!/usr/bin/env bash
# tools/docs-site; exit 77, "not run", where PyPI's packages cannot be had.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
skip() { echo "skipped: $*" && exit 77; }
command -v python3 >/dev/null || skip "no python3"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
bash "$root/tools/docs-site" >"$log" 2>&1 && exit
[ -x "$root/build/docs-venv/bin/mkdocs" ] || skip "no mkdocs: $(tail -n 1 "$log")"
cat "$log"
exit 1
