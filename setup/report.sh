# shellcheck shell=bash
# What set-up says, and how it runs what takes long.
#
# People read short lines; what the tools print goes to a log whose end is shown when a tool fails. A long step gives a sign of life, so that nobody
# has to guess whether it hangs.

log_dir=build/log
readonly sign_of_life_s=20

say() { printf 'setup: %s\n' "$*"; }

warn() { printf 'setup: warning: %s\n' "$*" >&2; }

# fail WHAT [HINT…]: one line on what went wrong, one for each thing to do about it.
fail() {
  printf 'setup: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
  exit 1
}

# quietly LOG COMMAND…: run it with its output in LOG.log; on failure show the end of that and pass the status on.
quietly() {
  local log=$log_dir/$1.log status=0 pulse
  shift
  mkdir -p "$log_dir"
  ( while sleep "$sign_of_life_s" >/dev/null 2>&1 9>&-; do say "  … $(basename "$log" .log): $(tail -n 1 "$log" 2>/dev/null | tr '\r' '\n' | tail -n 1 | cut -c 1-100)"; done ) &
  pulse=$!
  { printf '\n$ %s\n' "$*"; "$@"; } >>"$log" 2>&1 </dev/null || status=$?
  { kill "$pulse" && wait "$pulse"; } 2>/dev/null || true
  [ "$status" -eq 0 ] || { printf -- '--- the end of %s ---\n' "$log"; tail -n 15 "$log"; printf -- '---\n'; } >&2
  return "$status"
}

is_root() { [ "$(id -u)" -eq 0 ]; }

at_least() { dpkg --compare-versions "$1" ge "$2"; }
