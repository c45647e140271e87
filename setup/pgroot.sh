# shellcheck shell=bash
# The private copy of PostgreSQL's tree, into which pgvector and our extension are installed.
#
# Debian's programs find their libraries relative to themselves, so a copy that keeps the layout is a complete PostgreSQL, and the system's stays
# untouched. It is made again when Debian's packages are upgraded.

pg_config() { echo "$pgroot/usr/lib/postgresql/$major/bin/pg_config"; }

# What the copy is made of: the versions of all packages that have files in it.
pgroot_contents() {
  dpkg-query -W -f '${db:Status-Abbrev}${Package} ${Version}\n' "postgresql-$major" "postgresql-*-$major" "postgresql-$major-*" 2>/dev/null | sed -n 's/^ii //p' | sort -u
}

make_pgroot() {
  local contents new=$pgroot.new old=$pgroot.old folder
  contents=$(pgroot_contents)
  [ "$contents" != "$(cat "$pgroot/.contents" 2>/dev/null)" ] || return 0
  say "copying PostgreSQL $(installed_version "postgresql-$major") to $(shown "$pgroot")"
  rm -rf "$new" "$old"
  for folder in lib share include; do
    mkdir -p "$new/usr/$folder/postgresql"
    cp -a "/usr/$folder/postgresql/$major" "$new/usr/$folder/postgresql/"
  done
  chmod -R a+rX "$new"
  echo "$contents" >"$new/.contents"
  [ ! -e "$pgroot" ] || mv "$pgroot" "$old"  # a server that runs from it keeps what it has open
  mv "$new" "$pgroot"
  rm -rf "$old"
}

# The version of an extension in the copy; nothing when it is not there.
extension_version() { sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$pgroot/usr/share/postgresql/$major/extension/$1.control" 2>/dev/null || true; }

# What our extension is made of. PGXS copies without looking at dates, and a server that runs should not lose its files for nothing.
extension_contents() { find extension sql nv_embed/*.py nv_embed/proto constraints.txt -type f ! -name '*.pyc' ! -path 'extension/nv_embed*' -exec sha256sum {} + | sort -k 2; }

install_extension() {
  local contents
  contents=$(extension_contents)
  [ "$contents" != "$(cat "$pgroot/.nv_embed" 2>/dev/null)" ] || return 0
  say "installing the extension nv_embed"
  quietly extension make -C extension install PG_CONFIG="$(pg_config)" python="$checkout/$venv/bin/python" ||
    fail "the extension could not be installed" "All of what make said: $log_dir/extension.log"
  echo "$contents" >"$pgroot/.nv_embed"
}
