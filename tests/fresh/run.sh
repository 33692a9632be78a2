#!/usr/bin/env bash
# The README's two commands as a stranger meets them: a bare Debian 12 in a chroot, an ordinary user without sudo, a fresh
# clone of HEAD, and the packages that tools/quickstart asks for, no others. Prints which tests were skipped and why. Fails
# if a command fails, if tuning takes longer than it says, or if nothing can be installed after quickstart.
#   run.sh [FOLDER]    (build/fresh: holds the system, and keeps what was downloaded for the next run)
# Where the host has ccache, its cache is mounted read-only, so that what was just built here is not compiled again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/build/fresh}
place=$root
. "$root/tests/fresh/system.sh"
longest_tuning=90  # seconds; quickstart says "about a minute"

# The user and his clone, which lies where the host's checkout does: so compilers see the same paths.
make_clone() {
  make_user
  mkdir -p "$system$root"
  git clone -q "file://$root" "$system$root"
  as_root "chown -R user:user '$root'"
}

# A compiler cache, if the host has one: read-only, with those of its settings that make the keys.
share_ccache() {
  local cache
  cache=$(ccache -k cache_dir 2>/dev/null) || cache=
  if ! [ -d "$cache" ]; then say "no ccache here: everything is compiled" && return 0; fi
  as_root 'apt-get -q install -y --no-install-recommends ccache' >>"$folder/apt.txt" 2>&1 || return 0
  mkdir -p "$system/ccache"
  mount --bind "$cache" "$system/ccache" && mount -o remount,bind,ro "$system/ccache"
  {
    echo "cache_dir = /ccache"
    echo "read_only = true"
    echo "temporary_dir = /tmp/ccache"
    for key in base_dir hash_dir compiler_check sloppiness; do echo "$key = $(ccache -k $key)"; done
  } >"$system/etc/ccache.conf"
  say "compiled objects come from the host's ccache where it has them"
}

# ---- the two commands -----------------------------------------------------------------------------------------------

# Without packages and without sudo, quickstart names what root must install: that, word for word, is what root does.
install_packages() {
  local command
  if as_user tools/quickstart >"$folder/bare.txt" 2>&1; then fail "quickstart ended well without a compiler"; fi
  command=$(sed -n 's/.*error: these packages are missing; as root, run: //p' "$folder/bare.txt")
  [ -n "$command" ] || { cat "$folder/bare.txt"; fail "quickstart does not say what to install"; }
  say "root: $command"
  as_root 'apt-get -q update' >"$folder/apt.txt" 2>&1 || not_run "apt-get update: $(tail -n 1 "$folder/apt.txt")"
  as_root "$command" >>"$folder/apt.txt" 2>&1 || { tail -n 20 "$folder/apt.txt"; fail "$command"; }
}

run_quickstart() {
  local seconds
  say "tools/quickstart ..."
  as_user tools/quickstart >"$folder/quickstart.txt" 2>&1 || { tail -n 50 "$folder/quickstart.txt"; fail "tools/quickstart"; }
  grep -E '^\[q4\] (building|tuning).*: done in|going on without' "$folder/quickstart.txt" || true
  if grep -q 'going on without' "$folder/quickstart.txt"; then fail "not every package was named"; fi
  seconds=$(sed -n 's/^\[q4\] tuning: done in \([0-9]*\) s$/\1/p' "$folder/quickstart.txt")
  [ "${seconds:-9999}" -le $longest_tuning ] || fail "tuning took ${seconds:-an unknown number of} s, more than $longest_tuning"
  # shellcheck disable=SC2016  # the user's shell expands it
  as_user 'cmake --install build/release --prefix ~/q4 && for tool in ~/q4/bin/q4-[iabvc]*; do $tool --version || exit; done' \
    >"$folder/install.txt" 2>&1 || { tail -n 20 "$folder/install.txt"; fail "cmake --install after quickstart"; }
}

run_suite() {
  local status=0
  say "tools/test ..."
  as_user tools/test >"$folder/test.txt" 2>&1 || status=$?
  grep -E '^\[q4\] building.*: done in' "$folder/test.txt" || true
  if [ $status != 0 ]; then grep -E 'Failed|\*\*\*|ERROR|error:' "$folder/test.txt" | head -n 60 || true; fi
  sed -n '/^skipped, and why:/,$p' "$folder/test.txt"
  [ $status = 0 ] || fail "tools/test"
  if grep -q '^  .*: no reason given$' "$folder/test.txt"; then fail "a test was skipped without a reason"; fi
}

start=$SECONDS
make_system
make_clone
install_packages
share_ccache
say "a bare Debian 12 with these packages: $((SECONDS - start)) s"
run_quickstart
run_suite
rm -rf "${system:?}/home" "${system:?}$root"
say "passed in $((SECONDS - start)) s: both commands, in a bare Debian 12, as an ordinary user"
