#!/usr/bin/env bash
# The packages as a stranger meets them: tools/package makes them twice, to the same bytes, and tools/wheels a wheel; then each page of
# docs/getting-started is followed as it is written, in a bare Debian 12 of its own in which nothing else was installed: its
# packages, its commands and its programs.
#   packages.sh [FOLDER [PAGE...]]    (build/fresh, see run.sh; with pages: these alone, with the packages that are there)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-$root/build/fresh}
place=/tmp/place
. "$root/tests/fresh/system.sh"
[ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ] ||
  not_run "the packages are for the system that makes them, and this is not Debian 12"

# Everything is linked again and packed at another time, under another umask, language and time zone.
make_packages() {
  say "tools/package, twice ..."
  mkdir -p "$folder"
  SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  "$root/tools/package" "$folder/debs" >"$folder/package.txt" 2>&1 || { tail -n 30 "$folder/package.txt"; fail "tools/package"; }
  rm -rf "$root"/build/package/{bin,libq4.so*,share}
  (
    umask 027
    LC_ALL=C TZ=Asia/Tokyo "$root/tools/package" "$folder/again" >"$folder/again.txt" 2>&1 || { tail -n 30 "$folder/again.txt"; exit 1; }
  ) || fail "tools/package, the second time"
  diff "$folder/debs/SHA256SUMS" "$folder/again/SHA256SUMS" || fail "the packages of two runs differ"
}

# The wheel for the system's Python, and what each package says its version is.
make_wheel() {
  local version file
  say "tools/wheels ..."
  "$root/tools/wheels" "$folder/wheels" /usr/bin/python3 >"$folder/wheels.txt" 2>&1 || { tail -n 30 "$folder/wheels.txt"; fail "tools/wheels"; }
  version=$(sed -n 's/#define Q4_VERSION "\(.*\)"/\1/p' "$root/include/q4/version.h")
  for file in "$folder"/debs/*.deb; do
    [ "$(dpkg-deb -f "$file" Version)" = "$version" ] || fail "$file is of version $(dpkg-deb -f "$file" Version), not $version"
  done
  for file in "$folder"/wheels/q4-*.whl "$folder"/wheels/q4-*.tar.gz "$folder"/debs/q4-*.tar.gz; do
    [[ $(basename "$file") == "q4-$version"[-.]* ]] || fail "$file is not of version $version"
  done
  say "$(basename "$(echo "$folder"/wheels/*.whl)")"
}

# What a page needs before it: the folder of the packages, and apt's lists.
follow() {
  local page=$1 name step
  name=$(basename "$page" .md)
  make_system
  make_user
  as_root 'apt-get -q update' >"$folder/$name.txt" 2>&1 || not_run "apt-get update: $(tail -n 1 "$folder/$name.txt")"
  mkdir -p "$system$place" "$system/tmp/models"
  cp "$folder"/debs/*.deb "$folder"/wheels/*.whl "$system$place"
  python3 "$root/tests/docs/steps.py" "$page" "$system/tmp/steps" || fail "$page"
  as_root "chown -R user:user $place"
  for step in "$system"/tmp/steps/*; do
    step=${step#"$system"}
    case $step in
      *-root.sh) as_root "cd $place && bash -eux $step" ;;
      *) as_user "bash -eux $step" ;;
    esac >>"$folder/$name.txt" 2>&1 || { tail -n 30 "$folder/$name.txt"; fail "$page: $(basename "$step")"; }
  done
  say "$name.md: every command and program"
}

start=$SECONDS
pages=("${@:2}")
if [ ${#pages[@]} = 0 ]; then
  make_packages
  make_wheel
  pages=("$root"/docs/getting-started/*.md)
fi
for page in "${pages[@]}"; do
  follow "$page"
  umount -R "$system"/{proc,sys,dev,var/cache/apt/archives}
done
say "passed in $((SECONDS - start)) s"
