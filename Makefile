# nv_embed: one word for each thing that people do here. `make` alone prints this file's ## comments.

SHELL := /bin/bash
bin   := .venv/bin
proto := nv_embed/proto/nv_embed
version = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' nv_embed/__init__.py)

.DEFAULT_GOAL := help
.PHONY: help setup setup-system demo up down test test-slow chaos reembedding ray check proto proto-check bench soak lock images-check chart-check clean

help: ## Say what can be done
	@echo 'make TARGET, with TARGET one of:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@printf '%s\n' '' 'Variables for setup: PYTHON=/path  PG_MAJOR=17  TORCH=debian|cpu|cuda  TORCH_INDEX_URL=index with torch for the CPU  TESTS=1, which adds what only tests need' \
	    'Variables for test:  ARGS="what pytest takes"  JOBS=2, which is how many files are tested at a time' 'Variables for demo:  KEEP=1 leaves the table and the servers' \
	    'Variables for bench, soak and chaos:  DATA="folders in the layout of BEIR"  MINUTES=10'

setup: ## Install what is missing: Debian packages (as root), pgvector, the extension, .venv
	@setup/setup.sh

# Tests look at the sidecar's page in Debian's Chromium, which nothing else needs.
test test-slow chaos reembedding ray check proto proto-check bench soak chart-check: export TESTS := 1

setup-system: ## Debian packages only: the part of set-up that needs root
	@setup/setup.sh system

demo: setup ## From nothing to a search by meaning, on the documentation of Python
	@$(bin)/nv-embed demo $(if $(KEEP),--keep)

up: setup ## Start a private Postgres and a sidecar; `.venv/bin/nv-embed dsn` prints the URL
	@$(bin)/nv-embed up

down: ## Stop them
	@if [ -x $(bin)/nv-embed ]; then $(bin)/nv-embed down; else echo 'nothing was set up here, so nothing runs'; fi

test: setup ## Tests, on a real Postgres and a real sidecar: all but the slow ones
	@$(bin)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder -m 'not slow' $(ARGS)

test-slow: setup ## The slow ones: every page of the docs, chaos, re-embeddings under traffic and through crashes
	@$(bin)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

chaos: setup ## Ten minutes of changes while workers, sidecar and PostgreSQL are killed; MINUTES=1 for fewer, LIBRARY=1
	@PYTHONPATH=tests $(bin)/python tests/chaos.py --minutes $(or $(MINUTES),10) $(if $(LIBRARY),--library)

reembedding: setup ## From one model to another under traffic; ROWS=20000
	@NV_EMBED_REEMBED_ROWS=$(or $(ROWS),20000) $(bin)/python -m pytest tests/e2e/test_reembed_traffic.py --timeout 3600 $(ARGS)

ray: setup ## Re-embedding by a Ray cluster of three nodes, one of which is killed; ROWS=200000
	@NV_EMBED_RAY_ROWS=$(or $(ROWS),200000) $(bin)/python -m pytest tests/integrations/test_ray.py -k killed --durations 3 $(ARGS)

check: setup proto-check ## Style, types, layers, scripts, known vulnerabilities: what is checked without running
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports
	@$(bin)/python extension/spot.py extension/nv_embed--*$(version).sql
	@$(bin)/python setup/audit.py
	@if command -v shellcheck >/dev/null; then shellcheck -x setup/setup.sh setup/lock.sh docker/images-check docker/build-postgres docker/build-sidecar docker/postgres-entrypoint; else echo 'shellcheck is not installed: scripts not checked'; fi

generate = $(bin)/python -m grpc_tools.protoc -I. --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(proto).proto

proto: setup ## Write the Python code of the protocol anew from its .proto file
	@$(call generate,.)

proto-check: setup
	@mkdir -p build/proto && $(call generate,build/proto)
	@for file in $(proto)_pb2.py $(proto)_pb2.pyi $(proto)_pb2_grpc.py; do \
	    cmp -s $$file build/proto/$$file || { echo "$$file is not what $(proto).proto says: run make proto" >&2; exit 1; }; done

bench: setup ## Benchmarks: each prints its ratio; DATA="FOLDER…" names texts in BEIR's layout
	@for name in call insert flush doors gpu; do echo "== bench/$$name.py"; $(bin)/python bench/$$name.py || exit 1; done
	@for name in encoder latency quality; do echo "== bench/$$name.py"; $(bin)/python bench/$$name.py $(DATA) || exit 1; done

soak: setup ## Ten minutes of mixed load on a sidecar, DATA="FOLDER…"; MINUTES=1 for fewer
	@$(bin)/python bench/soak.py --minutes $(or $(MINUTES),10) $(DATA)

lock: ## Pin the newest versions that pyproject.toml allows in constraints.txt
	@setup/lock.sh

images-check: ## Build the container images with buildah, run them and search; as root; KEEP=1 keeps them
	@docker/images-check

chart-check: setup ## Render the Helm chart by Helm's library and hold it to schemas, which are installed for that (400 MB)
	@$(bin)/python -m pip --disable-pip-version-check install --quiet --no-deps -r docker/helm/requirements.txt
	@$(bin)/python -m pytest tests/unit/test_chart.py $(ARGS)

clean: down ## Remove what was built here; `make setup` brings it back. DATABASES=1: what they hold too, which nothing brings back
	@home=$$(/usr/bin/python3 -m nv_embed.home) && if [ -e "$$home/data/postmaster.pid" ] && [ ! -x $(bin)/nv-embed ]; then \
	    echo "PostgreSQL may run in $$home, and nothing is here to stop it: run make setup and make clean again" >&2; exit 1; fi
	@home=$$(/usr/bin/python3 -m nv_embed.home) && if [ -d "$$home/pgroot" ] || [ -e "$$home/data/PG_VERSION" ]; then \
	    cd "$$home" && rm -rf pgroot log run build lock $(if $(DATABASES),data state.json) && rmdir --ignore-fail-on-non-empty "$$home"; fi
	@rm -rf .venv build
