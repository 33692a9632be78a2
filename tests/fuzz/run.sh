#!/usr/bin/env bash
# Fuzzes every target for some seconds: run.sh BUILD SECONDS; 0: runs the seeds and the corpus once, which finds the same every
# time. BUILD is q4's build folder; the corpus, BUILD/fuzz/corpus, is kept
# and grows. Exits 77, which CTest shows as skipped, without a clang that has libFuzzer. What was found lies in
# BUILD/fuzz/found, to be run again with Q4_FUZZ_TARGET=TARGET BUILD/fuzz/build/q4-fuzz FILE.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$1 seconds=$2
folder=$build/fuzz
mkdir -p "$folder/found"
clang=
for candidate in ${Q4_FUZZ_CXX:-clang++ clang++-14 clang++-15 clang++-16 clang++-19}; do
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    "$candidate" -x c++ -std=c++20 -fsanitize=fuzzer,address,undefined -o "$folder/probe" - 2>/dev/null || continue
  clang=$candidate
  break
done
[ -n "$clang" ] || { echo "skipped: no clang++ with libFuzzer"; exit 77; }
whole=ON
[ "$seconds" != 0 ] || whole=OFF
launcher=$(command -v ccache || true)
cmake -G Ninja -S "$here" -B "$folder/build" -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher" \
  -DQ4_BUILD="$build" -DQ4_FUZZ_WHOLE="$whole" >"$folder/log.txt"
cmake --build "$folder/build" >>"$folder/log.txt" || { tail -n 50 "$folder/log.txt"; exit 1; }
rm -rf "$folder/seeds"
"$build/bin/q4-fuzz-seeds" "$folder/seeds"

amount=(-max_total_time="$seconds")
[ "$seconds" != 0 ] || amount=(-runs=0)
status=0
for target in safetensors checkpoint index config tuning entry pack npy csv capi; do
  mkdir -p "$folder/corpus/$target"
  # 64 MiB in one piece from 16 KiB of input is a finding, and so are five seconds for one.
  if Q4_LOG=error Q4_FUZZ_TARGET=$target Q4_FUZZ_CHECKPOINT=$folder/seeds/safetensors/0 "$folder/build/q4-fuzz" "${amount[@]}" -max_len=16384 -timeout=5 \
    -malloc_limit_mb=64 -rss_limit_mb=2048 -artifact_prefix="$folder/found/$target-" -print_final_stats=1 \
    "$folder/corpus/$target" "$folder/seeds/$target" >"$folder/$target.txt" 2>&1; then
    echo "$target: $(sed -n 's/stat::number_of_executed_units: *//p' "$folder/$target.txt") inputs, $(find "$folder/corpus/$target" -type f | wc -l) kept"
  else
    status=1
    echo "$target: a finding"
    tail -n 40 "$folder/$target.txt"
  fi
done
exit $status
