# shellcheck shell=bash
# Debian's packages: which are needed, which are missing, and their installation.
#
# The only part of set-up that changes the system, and the only one that needs root. It adds packages and nothing else: apt's configuration is left
# alone, and no database cluster is created for a server that nobody asked for.

readonly oldest_postgres=15  # views with security_invoker
readonly oldest_torch=2.6

# The major version of PostgreSQL to use: PG_MAJOR, else the newest installed server, else what the distribution packages.
postgres_major() {
  local major
  if [ -n "${PG_MAJOR:-}" ]; then echo "$PG_MAJOR"; return; fi
  major=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 'postgresql-[0-9]*' 2>/dev/null | sed -n 's/^ii postgresql-\([0-9]*\)$/\1/p' | sort -n | tail -n 1)
  if [ -z "$major" ] || [ "$major" -lt "$oldest_postgres" ]; then
    major=$(apt-cache show postgresql 2>/dev/null | sed -n 's/^Depends:.*postgresql-\([0-9][0-9]*\).*/\1/p' | sort -n | tail -n 1)
  fi
  echo "$major"
}

# The version of an installed package; nothing when it is not installed.
installed_version() { dpkg-query -W -f '${db:Status-Abbrev}${Version}\n' "$1" 2>/dev/null | sed -n 's/^ii //p' || true; }

# The version that apt would install; nothing when there is none.
candidate_version() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | sed 's/^(none)$//' || true; }

needed_packages() {
  local major=$1
  echo "postgresql-$major" "postgresql-plpython3-$major" "postgresql-server-dev-$major" gcc g++ libc6-dev make dpkg-dev ca-certificates
  [ "$python" != /usr/bin/python3 ] || echo python3-venv
  [ "$(torch_source)" != debian ] || echo python3-torch libopenblas0-pthread  # with the reference BLAS it is some fifteen times slower
  [ -z "${TESTS:-}" ] || echo chromium prometheus
  if packaged_pgvector_serves "$major"; then echo "postgresql-$major-pgvector"; fi
}

missing_packages() {
  local package
  for package in $(needed_packages "$1"); do
    [ -n "$(installed_version "$package")" ] || echo "$package"
  done
}

# Install what is missing. Anybody but root is told what root has to do, and nothing is changed.
install_packages() {
  local major missing
  major=$(postgres_major)
  missing=''
  [ -z "$major" ] || missing=$(missing_packages "$major" | xargs)
  [ -z "$major" ] || [ -n "$missing" ] || return 0
  is_root || fail "these Debian packages are missing: ${missing:-postgresql}" \
    "Installing them needs root, once: sudo make setup-system${TESTS:+ TESTS=1}" "Then go on as yourself: make setup. Nothing has been changed."
  say "reading Debian's package lists"
  quietly apt apt-get update || warn "not every package list could be read; going on with those at hand"
  major=$(postgres_major)
  [ -n "$major" ] || fail "Debian's package lists know no PostgreSQL server" "Is there a 'main' section in apt's sources?"
  [ "$major" -ge "$oldest_postgres" ] || fail "PostgreSQL $major is too old: $oldest_postgres or newer is needed"
  missing=$(missing_packages "$major" | xargs)
  [ -n "$missing" ] || return 0
  say "installing Debian packages: $missing"
  # shellcheck disable=SC2086  # a list of package names
  without_main_cluster apt_install $missing || fail "Debian's packages could not be installed" "All of what apt said: $log_dir/apt.log"
}

apt_install() {
  quietly apt env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
    apt-get install -y -q --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

# Debian creates and starts a cluster "main" with each newly installed server. Ours is private, so that one would only take a port and memory: a file that
# says no lies beside postgresql-common's configuration while apt runs.
without_main_cluster() {
  local folder=/etc/postgresql-common/createcluster.d status=0
  mkdir -p "$folder"
  trap remove_switch EXIT
  echo 'create_main_cluster = false' >"$folder/nv_embed.conf"
  "$@" || status=$?
  remove_switch
  trap - EXIT
  return "$status"
}

remove_switch() {
  rm -f /etc/postgresql-common/createcluster.d/nv_embed.conf
  rmdir --ignore-fail-on-non-empty /etc/postgresql-common/createcluster.d
}
