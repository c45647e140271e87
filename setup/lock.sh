#!/usr/bin/env bash
# Write constraints.txt and setup/needed.txt anew: the newest versions that pyproject.toml allows, resolved in an environment of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-/usr/bin/python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
head=$(grep '^#' constraints.txt)

echo "lock: resolving pyproject.toml; torch and its libraries are downloaded too"
"$python" -m venv "$scratch"
"$scratch/bin/pip" install --quiet --upgrade pip setuptools
"$scratch/bin/pip" install --quiet --prefer-binary ".[sidecar,minilm,eval,tracing,dev]"
"$scratch/bin/python" setup/needed.py >"$scratch/needed.txt"
# A build's mark (2.13.0+cpu) names a wheel, not a version; the libraries of torch's CUDA build come with that build and are not ours to pin.
{
  echo "$head"
  "$scratch/bin/pip" freeze --all --exclude nv-embed | sed 's/+[a-z0-9.]*$//' | grep -viE '^(nvidia-|cuda-|triton=|wheel=)' | sort -f
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
mv "$scratch/needed.txt" setup/needed.txt
git --no-pager diff --stat -- constraints.txt setup/needed.txt
