#!/usr/bin/env bash
# The faces of the tools in FOLDER: completion for bash and zsh, manual pages, --help, --version, --json and what goes to which stream.
#   faces_test.sh FOLDER
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PATH=$1:$PATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "failed: $*" >&2 && exit 1; }
version=$(sed -n 's/#define Q4_VERSION "\(.*\)"/\1/p' "$source/include/q4/version.h")

# complete WORD...: what completes the last one
. "$source/share/bash-completion/q4-tools"
completes() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  _q4_tools
  echo " ${COMPREPLY[*]} "
}
expect() {
  local wanted=$1
  shift
  [[ $(completes "$@") == *" $wanted "* ]] || fail "completion of '$*' has no $wanted: $(completes "$@")"
}
expect --config q4-info --co
expect pack q4-cache pa
expect --tuning q4-cache pack --t
expect gptq_v2 q4-convert a b --to gptq
expect llama-3-8b q4-bench --model llama-3-
expect bf16 q4-verify model --activation b
[[ $(completes q4-cache pack --t) != *--model* ]] || fail "completion offers another subcommand's options"
if command -v zsh >/dev/null; then timeout 300 zsh -f "$source/tests/tools/completion.zsh" "$source/share/zsh-completion" || fail "completion for zsh"; fi

[ "$(q4-hip-compile --version)" = "q4-hip-compile $version" ] || fail "q4-hip-compile --version"
for tool in q4-info q4-verify q4-autotune q4-bench q4-cache q4-convert; do
  [ "$($tool --version)" = "$tool $version" ] || fail "$tool --version: $($tool --version)"
  $tool --help >"$work/help" 2>"$work/errors"
  grep -q '^Examples:' "$work/help" || fail "$tool --help has no examples"
  [ ! -s "$work/errors" ] || fail "$tool --help writes to stderr"
  sh "$source/tools/man-page" "$1/$tool" >"$work/$tool.1"
  while read -r option; do
    grep -qF -- "${option//-/\\-}" "$work/$tool.1" || fail "the manual page of $tool has no $option"
  done < <(sed -n 's/^  \(-h,\)\{0,1\}\(--[a-z-]*\).*/\2/p' "$work/help")
  if command -v man >/dev/null; then
    man --warnings -E UTF-8 -l -Tutf8 -Z "$work/$tool.1" 2>"$work/errors" >/dev/null || true
    [ ! -s "$work/errors" ] || fail "the manual page of $tool: $(cat "$work/errors")"
  fi
  # Nothing but what was asked for on stdout, no colours anywhere, also on a wrong line.
  status=0
  $tool --no-such-option >"$work/out" 2>"$work/errors" || status=$?
  [ $status = 2 ] || fail "$tool --no-such-option: exit $status"
  if [ -s "$work/out" ] || ! [ -s "$work/errors" ]; then fail "$tool --no-such-option: the error belongs on stderr"; fi
  ! grep -q $'\033' "$work/help" "$work/errors" || fail "$tool prints escapes to a file"
done
q4-info --json >"$work/info"
grep -qF "\"version\": \"$version\"" "$work/info" || fail "q4-info --json does not say version $version"
echo "the tools' faces are as they should be"
