#!/usr/bin/env bash
# Soaks a device, then, where there is a compute-sanitizer, runs its four tools over a sample of every kernel.
# Usage: run.sh BUILD [SECONDS [DEVICE]]; BUILD holds bin/q4-soak (cmake --build BUILD --target q4-soak q4-tests). 600 s on the
# best device by default. Exit status 0 where nothing was found; what was is in BUILD/soak/*.txt.
set -euo pipefail
build=$1 seconds=${2:-600} device=${3:-}
out=$build/soak
mkdir -p "$out"
export Q4_CACHE_DIR=${Q4_CACHE_DIR:-$out/cache}
status=0

"$build/bin/q4-soak" "$seconds" ${device:+"$device"} | tee "$out/soak.txt" || status=1

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -z "$sanitizer" ]; then
  echo "no compute-sanitizer here: its tools were not run"
  exit $status
fi
# Small matrices, and kernels are compiled before, so that a tool's time is the device's.
"$build/bin/q4-soak" 1 cuda:0 1 >"$out/warm.txt" || status=1
for tool in memcheck racecheck synccheck initcheck; do
  if timeout "${Q4_SOAK_TOOL_SECONDS:-300}" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
    "$build/bin/q4-soak" 1 cuda:0 1 >"$out/$tool.txt" 2>&1; then
    echo "$tool: nothing found ($(grep -c . "$out/$tool.txt") lines)"
  else
    echo "$tool: exit status $?, see $out/$tool.txt: $(tail -n 1 "$out/$tool.txt")"
    status=1
  fi
done
exit $status
