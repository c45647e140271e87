# shellcheck shell=bash
# PyTorch: which build, and where from.
#
# The public index gives Linux the build for CUDA, some gigabytes with its libraries, that a machine without a GPU has no use for. So, unless TORCH says
# otherwise, in this order: Debian's own python3-torch where it is new enough; a CPU build that pip's configuration can see (or TORCH_INDEX_URL); the CPU
# build from PyTorch's own index, which the tool uv knows.

# debian | cpu | cuda
torch_source() {
  local version
  if [ -n "${TORCH:-}" ]; then echo "$TORCH"; return; fi
  if [ -f "$venv/.torch" ]; then cat "$venv/.torch"; return; fi
  version=$(installed_version python3-torch)
  [ -n "$version" ] || version=$(candidate_version python3-torch)
  if [ "$python" = /usr/bin/python3 ] && [ -n "$version" ] && at_least "$version" "$oldest_torch"; then echo debian; else echo cpu; fi
}

torch_is_as_asked() { [ -z "${TORCH:-}" ] || [ "$TORCH" = "$(cat "$venv/.torch" 2>/dev/null)" ]; }

install_torch() {
  local source
  source=$(torch_source)
  rm -f "$venv/.torch"
  case $source in
    debian) link_debian_torch ;;
    cpu) install_cpu_torch ;;
    cuda)
      say "installing torch for CUDA: some gigabytes to download"
      pip install "$(pinned torch)" || fail "torch could not be installed"
      ;;
    *) fail "TORCH=$source is not one of: debian, cpu, cuda" ;;
  esac
  echo "$source" >"$venv/.torch"
}

# Let the environment see Debian's torch and nothing else of Debian's Python packages.
link_debian_torch() {
  local packages=/usr/lib/python3/dist-packages site entry
  at_least "$(installed_version python3-torch)" "$oldest_torch" || fail "Debian's torch is $(installed_version python3-torch): $oldest_torch or newer is needed"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  say "using Debian's torch $(installed_version python3-torch)"
  for entry in "$packages"/{torch,torchgen,functorch} "$packages"/torch-*-info; do
    [ ! -e "$entry" ] || ln -sfn "$entry" "$site/"
  done
}

install_cpu_torch() {
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    say "installing torch's CPU build from TORCH_INDEX_URL"
    pip install --no-deps --index-url "$TORCH_INDEX_URL" "$(pinned torch)" || fail "torch could not be installed from TORCH_INDEX_URL"
  elif cpu_torch_is_at_hand; then
    say "installing torch's CPU build (about 200 MB)"
    pip install --no-deps "$(pinned torch)" || fail "torch could not be installed"
  else
    say "installing torch's CPU build from PyTorch's index (about 200 MB)"
    pip install uv || fail "uv could not be installed"
    quietly venv "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --torch-backend cpu "$(pinned torch)" ||
      fail "no CPU build of torch can be had: pip sees the one for CUDA only, and PyTorch's index does not answer" \
        "Take the CUDA build (some gigabytes; it works without a GPU too): make setup TORCH=cuda" \
        "Or name an index that has the CPU build: make setup TORCH_INDEX_URL=…"
  fi
}

# Would pip take a build that needs no CUDA? Only the metadata is read.
cpu_torch_is_at_hand() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --dry-run --no-deps --ignore-installed --quiet --report - "$(pinned torch)" 2>>"$log_dir/venv.log" |
    "$venv/bin/python" -c '
import json, sys
needs = json.load(sys.stdin)["install"][0]["metadata"].get("requires_dist", [])
sys.exit(any(need.startswith(("nvidia-", "cuda-")) for need in needs))'
}
