# shellcheck shell=bash
# Sourced by the scripts of this folder, with $folder set: a bare Debian 12 in a chroot, in namespaces of its own.
# Needs root, debootstrap, mount namespaces and a Debian mirror; exit 77, "not run", with the reason where one is missing.

system=${folder:?}/system
# shellcheck disable=SC2046  # names of variables
unset $(git rev-parse --local-env-vars)  # of a git hook that runs this

say() { printf '[fresh] %s\n' "$*"; }
not_run() { say "not run: $*" && exit 77; }
fail() { say "FAILED: $*   (logs: $folder; the system: $system)" && exit 1; }

[ "$(id -u)" = 0 ] || not_run "it needs root"
command -v debootstrap >/dev/null || not_run "debootstrap is not installed"
if [ -z "${Q4_FRESH_INSIDE:-}" ]; then  # in namespaces of its own, nothing stays mounted or running
  unshare --mount --mount-proc --pid --fork --kill-child true 2>/dev/null || not_run "mount namespaces are not permitted here"
  Q4_FRESH_INSIDE=1 exec unshare --mount --mount-proc --propagation private --pid --fork --kill-child bash "$0" "$@"
fi

# The mirror that the host itself uses for Debian 12, if it does.
find_mirror() {
  # shellcheck disable=SC2016  # apt expands them
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "bookworm" { print $1; exit }') || mirror=
  : "${mirror:=http://deb.debian.org/debian}"
}

make_system() {
  local base=$folder/debian-12.tar
  mkdir -p "$folder/packages"
  rm -rf "$system" "$folder/base"
  find_mirror
  if [ ! -f "$base" ]; then
    debootstrap --variant=minbase bookworm "$folder/base" "$mirror" >"$folder/debootstrap.txt" 2>&1 ||
      not_run "debootstrap: $(tail -n 1 "$folder/debootstrap.txt") (a Debian mirror that can be reached?)"
    tar -C "$folder/base" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -cf "$base.part" .
    mv "$base.part" "$base"
    rm -rf "$folder/base"
  fi
  mkdir -p "$system"
  tar -C "$system" -xf "$base"
  # How the host reaches mirrors and names; the sources are Debian's alone.
  echo "deb $mirror bookworm main" >"$system/etc/apt/sources.list"
  apt-config dump 2>/dev/null | grep -E '^Acquire::[^ ]*([Pp]roxy|Check-)' >"$system/etc/apt/apt.conf.d/99host" || true
  cp -L /etc/resolv.conf /etc/hosts "$system/etc/" 2>/dev/null || true
  if [ -f /etc/pip.conf ]; then  # its certificates under another name: a package replaces the usual file
    sed 's|^cert *=.*|cert = /etc/host-certificates.crt|' /etc/pip.conf >"$system/etc/pip.conf"
    cp -L "$(sed -n 's/^cert *= *//p' /etc/pip.conf)" "$system/etc/host-certificates.crt" 2>/dev/null || true
  fi

  mount -t proc proc "$system/proc"
  mount --rbind /sys "$system/sys" && mount -o remount,bind,ro "$system/sys"
  mount -t tmpfs dev "$system/dev"
  for device in null zero full random urandom tty; do
    : >"$system/dev/$device" && mount --bind "/dev/$device" "$system/dev/$device"
  done
  mkdir "$system/dev/shm" "$system/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$system/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 pts "$system/dev/pts"
  ln -s pts/ptmx "$system/dev/ptmx" && ln -s /proc/self/fd "$system/dev/fd"
  mkdir -p "$system/var/cache/apt/archives" && mount --bind "$folder/packages" "$system/var/cache/apt/archives"
}

as_root() { chroot "$system" /usr/bin/env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c "$1" </dev/null; }
make_user() { as_root 'useradd --create-home --shell /bin/bash user'; }
# As the user, in $place, with an environment of his own; only the language is the host's, which ccache hashes.
as_user() {
  local name=user
  chroot --userspec=$name:$name "$system" /usr/bin/env -i HOME=/home/$name USER=$name PATH=/usr/local/bin:/usr/bin:/bin \
    ${LANG:+LANG="$LANG"} ${LC_ALL:+LC_ALL="$LC_ALL"} bash -c "cd '${place:?}' && $1" </dev/null
}
