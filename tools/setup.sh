# shellcheck shell=bash
# Sourced by tools/quickstart, tools/test and tools/package: finds or installs what building q4 needs, configures and builds the preset
# $Q4_PRESET (release). Long output goes to $q4_log; the terminal gets a line a step.

q4_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
q4_preset=${Q4_PRESET:-release}
q4_build=$q4_root/build/$q4_preset
q4_log=$q4_build/$(basename "$0").log
q4_options=()  # more for configuring
mkdir -p "$q4_build"
: >"$q4_log"

say() { printf '[q4] %s\n' "$*"; }
die() {
  printf '[q4] error: %s\n' "$*" >&2
  exit 1
}

# quiet WHAT COMMAND...: runs it with its output in the log, and says every 20 s how far it is; on failure shows the end of
# the log and stops.
quiet() {
  local what=$1 start=$SECONDS beat status=0
  shift
  say "$what ..."
  while sleep 20 >/dev/null && kill -0 $$; do
    say "$what: $((SECONDS - start)) s $(tail -n 1 "$q4_log" | grep -o '^\[[0-9/]*\]')"
  done &
  beat=$!
  "$@" >>"$q4_log" 2>&1 </dev/null || status=$?
  kill $beat 2>/dev/null
  wait $beat 2>/dev/null || true
  if [ $status != 0 ]; then
    tail -n 30 "$q4_log" >&2
    die "$what failed; the whole log: $q4_log"
  fi
  say "$what: done in $((SECONDS - start)) s"
}

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# ---- what building needs, and whether it is there -------------------------------------------------------------------

# C++20 as q4 uses it: g++ 12 or clang 14.
new_enough() {
  local major
  major=$("$1" -dumpversion 2>/dev/null) || return 1
  major=${major%%.*}
  case $("$1" --version) in
    *clang*) [ "$major" -ge 14 ] ;;
    *) [ "$major" -ge 12 ] ;;
  esac
}

# Sets CXX and CC: the caller's $CXX, else the first compiler that is new enough.
find_compiler() {
  local cxx
  for cxx in ${CXX:-c++ g++-12 g++-13 g++-14 clang++ clang++-14 clang++-15}; do
    new_enough "$cxx" || continue
    case $cxx in
      *clang++*) : "${CC:=${cxx/clang++/clang}}" ;;
      *g++*) : "${CC:=${cxx/g++/gcc}}" ;;
      *) : "${CC:=cc}" ;;
    esac
    CXX=$cxx
    export CXX CC
    return 0
  done
  return 1
}

# Sets cmake and ctest: 3.24 or newer, of the system or the one that pip put beside the build.
find_cmake() {
  local version
  for cmake in cmake "$q4_root/build/pip/cmake/data/bin/cmake"; do
    version=$("$cmake" --version 2>/dev/null | sed -n '1s/.* //p') || version=
    # shellcheck disable=SC2034  # tools/test uses it
    ctest=${cmake%cmake}ctest
    [ -n "$version" ] && version_at_least "$version" 3.24 && return 0
  done
  return 1
}

has_header() { [ -n "${CC:-}" ] && printf '#include <%s>\n' "$1" | "$CXX" -std=c++20 -E -x c++ - >/dev/null 2>&1; }

# apt's newest version of a package, or nothing.
apt_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p'; }
# newer PACKAGE VERSION OTHER: PACKAGE, unless apt has it older than VERSION.
newer() {
  local version
  version=$(apt_version "$1")
  if [ -z "$version" ] || version_at_least "$version" "$2"; then echo "$1"; else echo "$3"; fi
}

# Debian's names of what is missing, in two lists: without `required` nothing is built, without `optional` a large m is slow
# on the CPU (BLAS) and packs of kernels cannot be signed (libsodium). On Ubuntu 22.04 g++ is 11 and cmake 3.22: g++-12
# instead, and CMake from PyPI.
find_missing() {
  required=() optional=()
  find_compiler || required+=("$(newer g++ 12 g++-12)")
  find_cmake || required+=("$(newer cmake 3.24 python3-pip)")
  command -v ninja >/dev/null || required+=(ninja-build)
  command -v pkg-config >/dev/null || required+=(pkg-config)
  has_header fmt/format.h || required+=(libfmt-dev)
  has_header nlohmann/json.hpp || required+=(nlohmann-json3-dev)
  has_header CLI/CLI.hpp || required+=(libcli11-dev)
  has_header doctest/doctest.h || required+=(doctest-dev)
  # Not any libblas.so.3: that may be the reference BLAS, which q4 refuses.
  [ -n "${Q4_BLAS:-}" ] || PATH=$PATH:/sbin ldconfig -p 2>/dev/null | grep 'libopenblas\.so\.0' >/dev/null || optional+=(libopenblas0)
  PATH=$PATH:/sbin ldconfig -p 2>/dev/null | grep 'libsodium\.so\.' >/dev/null || optional+=(libsodium23)
}

# ---- installing what is missing -------------------------------------------------------------------------------------

apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=1 "$@"; }
can_install() {
  as_root=()
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] && return 0
  as_root=(sudo -n)
  sudo -n true 2>/dev/null
}

install_missing() {
  find_missing
  [ $((${#required[@]} + ${#optional[@]})) = 0 ] && return 0
  if can_install; then
    apt update >>"$q4_log" 2>&1 </dev/null || true
    find_missing  # some names depend on what apt has
    say "installing ${required[*]} ${optional[*]} ..."
    apt install -y --no-install-recommends "${required[@]}" "${optional[@]}" >>"$q4_log" 2>&1 </dev/null || true
  fi
  if ! find_cmake && python3 -m pip --version >/dev/null 2>&1; then
    quiet "CMake from PyPI" python3 -m pip install --target "$q4_root/build/pip" cmake
  fi
  find_missing
  [ ${#optional[@]} = 0 ] || say "going on without ${optional[*]}, which large m on the CPU and signed packs need"
  [ ${#required[@]} = 0 ] ||
    die "these packages are missing; as root, run: apt-get install -y --no-install-recommends ${required[*]} ${optional[*]}"
}

# ---- building -------------------------------------------------------------------------------------------------------

# build MINUTES TARGET...: installs what is missing, configures and builds, which takes one core so many minutes from nothing.
build() {
  local launcher=() minutes=$((($1 + $(nproc) - 1) / $(nproc)))
  shift
  install_missing
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_C_COMPILER_LAUNCHER=ccache)
  cd "$q4_root" || exit
  quiet "configuring with $("$CXX" --version | head -n 1)" "$cmake" --preset "$q4_preset" "${launcher[@]}" "${q4_options[@]}"
  quiet "building (the first time about ${minutes} minutes on $(nproc) cores)" "$cmake" --build --preset "$q4_preset" --target "$@"
}
