#!/usr/bin/env bash
# Static checks, each by a tool that a machine may lack: then exit 77, "not run".
#   lint.sh shell     shellcheck on every shell script
#   lint.sh python    ruff, with ruff.toml
#   lint.sh cpp       clang-tidy, with .clang-tidy, on the sources of a build with compile_commands.json (minutes): lint.sh cpp BUILD [FILE...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
skip() { echo "skipped: $*" && exit 77; }
files() { git ls-files "$@" 2>/dev/null || skip "this is no clone"; }

case ${1:?what} in
  shell)
    command -v shellcheck >/dev/null || skip "no shellcheck"
    files | grep -v -e '\.md$' -e '\.zsh$' | xargs -d '\n' grep -lE '^#!.*sh$|^# shellcheck shell=|^# bash completion' | xargs -d '\n' shellcheck -x -P SCRIPTDIR -s bash
    ;;
  python)
    ruff=ruff
    command -v ruff >/dev/null || ruff="python3 -m ruff"
    $ruff --version >/dev/null 2>&1 || skip "no ruff (PyPI: ruff)"
    $ruff check --no-cache . --exclude build
    ;;
  cpp)
    build=$2
    shift 2
    command -v clang-tidy >/dev/null || skip "no clang-tidy"
    [ -f "$build/compile_commands.json" ] || skip "no compile_commands.json in $build (preset dev)"
    files=("$@")
    [ $# != 0 ] || mapfile -t files < <(files 'runtime/*.cpp' 'autotune/*.cpp' 'tools/*.cpp')
    clang-tidy --quiet -p "$build" "${files[@]}"
    ;;
  *) echo "lint.sh shell | python | cpp" >&2 && exit 2 ;;
esac
