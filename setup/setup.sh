#!/usr/bin/env bash
# Make this checkout ready to run: setup/setup.sh [all | system]
#
#   all      everything below (the default); quick when nothing is missing
#   system   Debian's packages only: the one part that needs root
#
# Order: Debian's packages, a private copy of PostgreSQL, pgvector and our extension in it, and beside that the virtual environment .venv.
# Variables: PYTHON=/path  PG_MAJOR=17  TORCH=debian|cpu|cuda  TORCH_INDEX_URL=address of an index with torch's CPU build
#            TESTS=1, which adds what only tests need
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."
checkout=$PWD
python=${PYTHON:-/usr/bin/python3}
export LC_ALL=C.UTF-8

# shellcheck source=setup/report.sh
. setup/report.sh
# shellcheck source=setup/debian.sh
. setup/debian.sh
# shellcheck source=setup/pgroot.sh
. setup/pgroot.sh
# shellcheck source=setup/pgvector.sh
. setup/pgvector.sh
# shellcheck source=setup/torch.sh
. setup/torch.sh
# shellcheck source=setup/venv.sh
. setup/venv.sh

# A path as people like to read it.
shown() { echo "${1#"$checkout"/}"; }

check_machine() {
  case $checkout in *[[:space:]]*) fail "the path of this checkout has a space in it: $checkout" "PostgreSQL's build rules cannot cope with that: move the checkout elsewhere." ;; esac
  command -v apt-get >/dev/null || fail "this set-up is for Debian: apt and dpkg are not here"
  [ -w . ] || fail "this checkout is not yours to write to: $checkout" "Clone it as yourself, or set it up as its owner."
  [ -x "$python" ] || fail "there is no $python" "Install Debian's python3, or name another one: make setup PYTHON=/path/to/python3"
}

# One set-up at a time in a checkout.
lock() {
  mkdir -p build
  exec 9>build/setup.lock
  flock -n 9 || { say "another set-up of this checkout is running: waiting for it"; flock 9; }
}

# The places of the private servers are decided in one file, which needs nothing but Python's standard library.
place() { "$python" -m nv_embed.home "$1"; }

prepare_home() {
  home=$(place create) || fail "the folder for the private servers could not be made"
  pgroot=$(place pgroot)
  build=$home/build
  [ "${home#"$checkout"}" != "$home" ] || say "keeping PostgreSQL in $home: $(place why)"
}

# in_background FUNCTION: run it beside what follows, in a process group of its own, so that it ends with us: when we fail and at Ctrl-C.
in_background() {
  set -m
  "$@" &
  background=$!
  set +m
  trap 'kill -- "-$background" 2>/dev/null' EXIT
}

wait_for_background() {
  wait "$background" || exit
  trap - EXIT
}

setup_all() {
  install_packages
  major=$(postgres_major)
  prepare_home
  in_background make_venv  # pip waits for the network while the compiler works
  make_pgroot
  make_pgvector
  wait_for_background
  install_extension
  say "ready: PostgreSQL $(installed_version "postgresql-$major" | sed 's/-.*//'), pgvector $(extension_version vector), $("$venv/bin/python" -V)$([ "$SECONDS" -lt 5 ] || echo "; it took $SECONDS s")"
}

case ${1:-all} in
  all) check_machine; lock; setup_all ;;
  system)
    log_dir=$(mktemp -d --suffix=.nv_embed)  # root must not leave files in somebody's checkout
    check_machine
    install_packages
    say "Debian's packages are in place"
    ;;
  *) sed -n '2,9p' "$0"; exit 2 ;;
esac
