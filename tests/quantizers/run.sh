#!/usr/bin/env bash
# What quantizers write, on request: Q4_CI_TOOLS=1 installs each tool into an environment of its own (some 6 GB each, PyTorch
# for the most part, which uv keeps once for all of them), has it quantize tiny random models, and reads them with q4. Usage:
# run.sh FOLDER WHEEL, where FOLDER keeps the environments from one run to the next and WHEEL is a folder with a wheel of q4.
# Exits 77, which CTest shows as skipped, without Q4_CI_TOOLS. A tool that cannot be installed is reported and left out, and so is
# a case that a tool cannot make in ten minutes (make.py); what q4 misreads is a failure.
set -euo pipefail

source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1 wheels=$2
[ "${Q4_CI_TOOLS:-0}" = 1 ] || { echo "skipped: Q4_CI_TOOLS=1 is not set"; exit 77; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd) wheels=$(cd "$wheels" && pwd)
cd "$folder"  # where tools leave their logs

[ -x "$folder/uv/bin/uv" ] || { python3 -m venv "$folder/uv" && "$folder/uv/bin/python" -m pip install -q uv; }
export UV_CACHE_DIR=$folder/uv-cache  # beside the environments, so that files are linked, not copied
# What tools compile and keep stays here too. PyTorch waits without end for the lock of a build that was killed.
export XDG_CACHE_HOME=$folder/cache TORCH_EXTENSIONS_DIR=$folder/extensions GPTQMODEL_EXT_BUILD=$folder/extensions/gptqmodel
find "$folder/extensions" -name lock -delete 2>/dev/null || true
say() { echo "[$SECONDS s] $*"; }
install() {  # install ENVIRONMENT ARGUMENT...
  "$folder/uv/bin/uv" pip install -q --python "$folder/$1/bin/python" "${@:2}"
}

environment() {  # environment NAME PACKAGE...
  say "environment of $1"
  [ -x "$folder/$1/bin/python" ] || "$folder/uv/bin/uv" venv -q --python "$(command -v python3)" "$folder/$1"
  install "$@" >"$folder/$1.log" 2>&1 || { echo "not installed: $1: $(tail -n 1 "$folder/$1.log")"; return 1; }
}

rm -rf "$folder/out"
make() {  # make TOOL PACKAGE...; a case that the tool cannot do is printed by make.py
  environment "$@" || return 0
  say "checkpoints of $1"
  "$folder/$1/bin/python" "$source/make.py" "$1" "$folder/out" || true
}
make gptqmodel "gptqmodel>=7.7,<8"
make llmcompressor "llmcompressor>=0.14,<0.15"
make autoround "auto-round>=0.16,<0.17" compressed-tensors
make autoawq autoawq==0.2.9

environment q4 torch "transformers>=5" safetensors numpy accelerate pytest
install q4 --no-deps --reinstall "$wheels"/q4-*.whl
say "reading them with q4"
timeout 1200 "$folder/q4/bin/python" "$source/check.py" "$folder/out"
if [ -x "$folder/gptqmodel/bin/python" ]; then  # q4 as its kernel
  install gptqmodel --no-deps --reinstall "$wheels"/q4-*.whl
  install gptqmodel pytest optimum
  say "q4 as GPTQModel's kernel"
  TORCHDYNAMO_DISABLE=1 timeout 1200 "$folder/gptqmodel/bin/python" -m pytest -q -p no:cacheprovider -rs "$source/../../bindings/python/tests/test_gptqmodel.py"
fi
say "done"
