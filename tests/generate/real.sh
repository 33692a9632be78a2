#!/usr/bin/env bash
# The real model, on request: Q4_CI_TOOLS=1 makes it with tools/get-model (gigabytes of packages and ten minutes the first
# time) and compares examples/generate with transformers. Usage: real.sh PROGRAM FOLDER. Exits 77, skipped, without it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=$1 folder=$2
[ "${Q4_CI_TOOLS:-0}" = 1 ] || { echo "skipped: Q4_CI_TOOLS=1 is not set"; exit 77; }
export Q4_MODEL_VENV=${Q4_MODEL_VENV:-$folder/venv}
[ -f "$folder/smollm2/model.safetensors" ] || "$root/tools/get-model" "$folder/smollm2"
PYTHONDONTWRITEBYTECODE=1 "$Q4_MODEL_VENV/bin/python" "$root/tests/generate/real_test.py" "$program" "$folder/smollm2"
