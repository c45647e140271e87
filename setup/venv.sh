# shellcheck shell=bash
# The virtual environment: every package at the version that constraints.txt names.
#
# constraints.txt is the whole set, so nothing is resolved here: the same packages on every machine. needed.txt names those of them that are needed to run;
# TESTS=1 adds the others, which are most of what there is to download. PyTorch is apart, because which of its builds is right depends on the machine (torch.sh).

readonly venv=.venv

# What of constraints.txt is wanted: all of it, or what is needed to run.
wanted_pins() {
  if [ -n "${TESTS:-}" ]; then grep == constraints.txt; else
    # Names are the same whichever of "-", "_" and "." they are written with.
    awk -F== 'function name(text) { gsub(/[-_.]+/, "-", text); return tolower(text) }
      NR == FNR { needed[name($1)]; next } /==/ && name($1) in needed' setup/needed.txt constraints.txt
  fi
}

# All that decides what is in it. Of pyproject.toml, what pip reads; the kernels, which it compiles.
venv_contents() {
  "$python" -VV
  "$python" -c 'import tomllib; whole = tomllib.load(open("pyproject.toml", "rb")); print(whole["build-system"], whole["project"], whole["tool"]["setuptools"])'
  wanted_pins
  cat setup/venv.sh setup/torch.sh sidecar/native/*
  command -v g++ || true
}

venv_mark() { venv_contents | sha256sum; }

# One that has what tests need has what is needed to run.
venv_is_current() {
  local mark
  mark=$(cat "$venv/.contents" 2>/dev/null) || return 1
  { [ "$mark" = "$(venv_mark)" ] || [ "$mark" = "$(TESTS=1 venv_mark)" ]; } && torch_is_as_asked
}

make_venv() {
  if venv_is_current; then return; fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is $("$python" -V): 3.11 or newer is needed" "Name another one: make setup PYTHON=/path/to/python3.11"
  rm -f "$venv/.contents"
  if [ ! -x "$venv/bin/python" ] || [ "$("$venv/bin/python" -VV 2>/dev/null)" != "$("$python" -VV)" ]; then
    [ ! -e "$venv" ] || say "making $venv again for $("$python" -V)"
    quietly venv "$python" -m venv --clear "$venv" || fail "$python cannot make a virtual environment" "Is its package python3-venv installed?"
  fi
  say "installing $(wanted_pins | wc -l) Python packages into $venv, as constraints.txt pins them"
  pip install "$(pinned pip)" "$(pinned setuptools)" || fail "pip could not be installed"
  install_torch
  wanted_pins | grep -v '^torch==' >"$venv/.requirements"
  pip install --no-deps --prefer-binary -r "$venv/.requirements" || fail "the Python packages could not be installed" "All of what pip said: $log_dir/venv.log"
  rm -f sidecar/nv_embed_sidecar/engines/_kernels*.so
  pip install --no-deps --no-build-isolation -e . || fail "nv_embed itself could not be installed into $venv"
  compgen -G 'sidecar/nv_embed_sidecar/engines/_kernels*.so' >/dev/null || warn "the sidecar's own kernels could not be compiled, so it uses PyTorch's; see $log_dir/venv.log"
  venv_mark >"$venv/.contents"
  say "$venv is ready: $("$venv/bin/python" -V), torch $("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))')"
}

# pip ARGUMENT…: the environment's own, without byte-compiling what may never be imported.
pip() {
  local verb=$1
  shift
  quietly venv "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$verb" --no-compile --progress-bar off "$@"
}

pinned() { grep "^$1==" constraints.txt; }
