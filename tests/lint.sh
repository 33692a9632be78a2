#!/usr/bin/env bash
# Static checks, each by a tool that a machine may lack: then exit 77, "not run".
#   lint.sh shell     shellcheck on every shell script
#   lint.sh python    ruff, with ruff.toml
#   lint.sh cpp       clang-tidy, with .clang-tidy, on every source of the preset dev, which is configured, not built; or: lint.sh cpp FILE...
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
    shift
    command -v clang-tidy >/dev/null || skip "no clang-tidy"
    cmake --preset dev >/dev/null
    files=("$@")
    # Without arguments all that is built here (neither the fuzzers nor, without nanobind, the Python module) and that clang 14 understands: it has
    # no _Float16 on x86, and takes no structure with named members as an argument of a template.
    [ $# != 0 ] || mapfile -t files < <(comm -12 <(files '*.cpp' '*.c' | sort) <(sed -n "s|^ *\"file\": \"$PWD/\(.*\)\".*|\1|p" build/dev/compile_commands.json | sort -u))
    [ $# != 0 ] || mapfile -t files < <(grep -LE '_Float16|kernel_runner\.hpp|operator\(\)<\{' "${files[@]}")
    [ ${#files[@]} != 0 ] || { echo "no source is in build/dev/compile_commands.json" >&2 && exit 1; }
    echo "clang-tidy on ${#files[@]} files"
    printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 bash tests/lint.sh tidy
    ;;
  tidy)  # one file of cpp; options of g++ that clang does not know are no finding, and what it says of headers of the system is not shown
    said=$(clang-tidy --quiet -p build/dev --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-unused-command-line-argument "$2" 2>/dev/null) || { printf '%s: %s\n' "$2" "$said" && exit 1; }
    ;;
  *) echo "lint.sh shell | python | cpp" >&2 && exit 2 ;;
esac
