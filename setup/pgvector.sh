# shellcheck shell=bash
# pgvector, new enough: Debian's package where that is, else built from Debian's newest source package.
#
# The source comes through an apt of our own: its folders and its list of sources are private, the mirror and the keys are the machine's, and apt checks
# the signatures as ever. Nothing under /etc/apt or /var/lib/apt is written. It needs no root; root hands the work to the user `postgres`.
#
# A mirror may list a version that its pool has dropped already. Then a version named below is taken from the same pool, by its checksum instead of a
# signed list; and if that is gone too, stable's, which is older than we want: set-up says so each time.

readonly pgvector_wanted=0.8.6  # has the fixes for corrupted HNSW indexes
readonly pgvector_known=0.8.6
readonly pgvector_known_sha256=25c9b78cfdaa43c66788d7490246ac24e4fe1c86f19c4b60c089b723f84a4a0d
readonly debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

packaged_pgvector_serves() {
  local version
  version=$(installed_version "postgresql-$1-pgvector")
  [ -n "$version" ] || version=$(candidate_version "postgresql-$1-pgvector")
  [ -n "$version" ] && at_least "$version" "$pgvector_wanted"
}

pgvector_is_there() { local version; version=$(extension_version vector); [ -n "$version" ] && at_least "$version" "$pgvector_wanted"; }

# An older one, built within the last day because no newer source could be fetched.
pgvector_was_tried() { [ -n "$(extension_version vector)" ] && [ -n "$(find "$build/pgvector.tried" -mtime -1 2>/dev/null)" ]; }

make_pgvector() {
  if pgvector_is_there; then return; fi
  if pgvector_was_tried; then warn_of_old_pgvector; return; fi
  say "building pgvector from Debian's newest source package"
  builder_owns "$build"
  local source
  if source=$(fetch_pgvector); then
    build_pgvector "$source" || fail "pgvector could not be built" "All of what make said: $log_dir/pgvector.log"
    say "pgvector $(extension_version vector) is installed in $(shown "$pgroot")"
  elif [ -z "$(extension_version vector)" ]; then
    fail "pgvector's source package could not be fetched" "What apt said: $log_dir/pgvector.log"
  fi
  if pgvector_is_there; then rm -f "$build/pgvector.tried"; else touch "$build/pgvector.tried"; warn_of_old_pgvector; fi
}

warn_of_old_pgvector() {
  warn "pgvector is $(extension_version vector), older than $pgvector_wanted: the mirror has no newer source package to hand out."
  warn "Searches work; HNSW indexes may be damaged by errors that were mended since. Set-up tries again after a day."
}

# as_builder COMMAND…: as an ordinary user, with the build folder as the current one.
as_builder() (
  cd "$build" || exit
  if is_root; then
    exec runuser -u postgres -- env HOME="$build" "$@"
  fi
  exec "$@"
)

builder_owns() { mkdir -p "$1"; ! is_root || chown -R postgres: "$1"; }

# Debian's mirrors as this machine knows them: where its own release comes from, without the security archive (it has no unstable) and third parties.
# Where the package lists were thrown away, as container images do, apt cannot tell whose a source is; then the signature does, later.
debian_mirrors() {
  local codename found
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
  # shellcheck disable=SC2016  # apt fills these in
  found=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' | sed -nE "s/^Debian main ($codename|sid|unstable|testing|stable|oldstable) //p")
  [ -n "$found" ] || found=$(apt-get update --print-uris 2>/dev/null | sed -nE "s#^'(.*)/dists/($codename|sid|unstable|testing|stable|oldstable)/InRelease'.*#\1#p")
  printf '%s\n' "$found" | awk '!seen[$0]++'
}

# private_apt SUITE…: make an apt that knows only the source packages of these suites at $mirror.
private_apt() {
  local suite
  rm -rf "$build/apt"
  mkdir -p "$build/apt"/{etc/parts,etc/preferences.d,lists/partial,cache/archives/partial}
  for suite; do echo "deb-src [signed-by=$debian_keyring] $mirror $suite main"; done >"$build/apt/etc/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(http|https|Retries|ForceIPv4|ForceIPv6|Check-Date)\b' | grep -v ' "";$' || true  # proxies and the like
    cat <<CONF
Dir::Etc "$build/apt/etc";
Dir::Etc::main "none";
Dir::Etc::parts "parts";
Dir::Etc::sourcelist "sources.list";
Dir::Etc::sourceparts "none";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State::lists "$build/apt/lists";
Dir::Cache "$build/apt/cache";
Acquire::Languages "none";
CONF
  } >"$build/apt/apt.conf"
  builder_owns "$build/apt"
}

private() { as_builder env APT_CONFIG="$build/apt/apt.conf" "$@"; }

# Read the lists of the private apt. A mirror that lags hands out an index past its date; its signature counts, and too old a version is noticed later.
read_sources() {
  quietly pgvector private apt-get -q -o APT::Update::Error-Mode=any update 2>/dev/null && return
  quietly pgvector private apt-get -q -o APT::Update::Error-Mode=any -o Acquire::Check-Valid-Until=false update || return
  warn "the mirror's index of $1 is past its date (its signature is good); going on with it"
}

# Print the folder of the unpacked source: of unstable's version, or when the mirror cannot hand that out, of the known one, or of stable's.
fetch_pgvector() {
  local mirror suite version
  [ -r "$debian_keyring" ] || { warn "$debian_keyring is missing: install debian-archive-keyring"; return 1; }
  for mirror in $(debian_mirrors); do
    for suite in sid stable; do
      private_apt "$suite"
      read_sources "$suite" >&2 || continue
      version=$(private apt-cache showsrc pgvector 2>/dev/null | sed -n 's/^Version: //p' | sort -V | tail -n 1)
      [ -n "$version" ] || continue
      if unpack_pgvector "$version" >&2; then echo "$build/pgvector-$version"; return; fi
      warn "the mirror lists pgvector $version in $suite but does not hand it out"
      if [ "$suite" = sid ] && unpack_known_pgvector >&2; then echo "$build/pgvector-$pgvector_known"; return; fi
    done
  done
  return 1
}

unpack_known_pgvector() {
  local file=pgvector_$pgvector_known.orig.tar.gz
  say "taking pgvector $pgvector_known from the mirror's pool by its checksum instead"
  as_builder rm -rf source "pgvector-$pgvector_known"
  as_builder mkdir source "pgvector-$pgvector_known"
  quietly pgvector private /usr/lib/apt/apt-helper download-file "${mirror%/}/pool/main/p/pgvector/$file" "source/$file" "SHA256:$pgvector_known_sha256" 2>/dev/null ||
    return
  quietly pgvector as_builder tar -xf "source/$file" -C "pgvector-$pgvector_known" --strip-components=1
}

unpack_pgvector() {
  as_builder rm -rf "$build/source" "$build/pgvector-$1"
  as_builder mkdir "$build/source"
  quietly pgvector private sh -c "cd source && apt-get -q source --download-only pgvector=$1" 2>/dev/null || return
  quietly pgvector as_builder sh -c "dpkg-source --no-check -x source/*.dsc pgvector-$1"  # apt has checked its hash
}

# Build and stage as an ordinary user, then copy what it made: no rule of a Makefile gets to write into a system folder.
build_pgvector() {
  local stage=$build/stage
  as_builder rm -rf "$stage"
  # OPTFLAGS: the default, -march=native, makes a library for this processor only. with_llvm: spares a second compilation, to bitcode.
  quietly pgvector as_builder make -C "$1" -j "$(nproc)" OPTFLAGS= with_llvm=no PG_CONFIG="$(pg_config)" || return
  quietly pgvector as_builder make -C "$1" install OPTFLAGS= with_llvm=no PG_CONFIG="$(pg_config)" DESTDIR="$stage" || return
  # A server that runs has the old library mapped: it gets a new file, not new contents.
  cp -r --remove-destination --no-preserve=ownership "$stage$pgroot/." "$pgroot/"
  chmod -R a+rX "$pgroot"
}
