# Every target makes what it needs first: on a bare machine Python 3.11+, make and git are enough.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := UV_PROJECT_ENVIRONMENT=$(VENV) VIRTUAL_ENV=$(VENV) UV_LINK_MODE=hardlink $(BIN)/uv
DATA   ?=
SPEC   ?=
TORCH  ?=
SECRETS_DIR ?= secrets
PYTEST_ARGS ?=

.PHONY: help setup demo up test check bench lock secrets clean

help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## Make .venv with everything, pinned by hash; TORCH=DIR: torch from the wheels in DIR

$(VENV)/.installed: requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Winnow needs Python 3.11 to 3.13; {sys.executable} is {v[0]}.{v[1]}. Set PYTHON=python3.12, say.")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(if $(TORCH),requirements/without-torch,cat) requirements/dev.txt > $(VENV)/requirements.txt
	$(UV) pip install --quiet --compile-bytecode --require-hashes -r $(VENV)/requirements.txt
	$(if $(TORCH),$(UV) pip install --quiet --compile-bytecode --no-deps --no-index --find-links "$(TORCH)" torch torchvision)
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## Run the whole loop on synthetic tissue; DATA=DIR SPEC=FILE for your own patches
	$(BIN)/winnow demo $(if $(DATA),--data "$(DATA)") $(if $(SPEC),--spec "$(SPEC)")

up: setup  ## Start the embedded stack; DATA=DIR: datasets may be read from there; Ctrl-C stops it
	$(BIN)/winnow up $(if $(DATA),--data-root "$(DATA)")

test: setup  ## Run the tests, with servers the run starts itself
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup  ## Lint, types, layers, advisories
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright -p benchmarks
	$(BIN)/lint-imports
	$(BIN)/python requirements/audit.py

bench: setup  ## Training and picking against ceilings and peers (which this installs); the coordinator under load
	$(UV) pip install --quiet --require-hashes -r requirements/bench.txt
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/load.py

lock: $(VENV)/.installed  ## Pin the requirements anew, with hashes
	requirements/lock $(BIN)/uv
	$(UV) pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/python requirements/licences.py

# Containers read them as another user: what keeps others on this machine out is the folder.
secrets:  ## Make the passwords and the first admin key for docker compose, in secrets/; those that are there stay
	@mkdir -p -m 700 $(SECRETS_DIR)
	@umask 022; for name in $$(sed -n 's/^  \([a-z_]*\): {file: .*/\1/p' docker-compose.yml); do \
	  test -s $(SECRETS_DIR)/$$name || $(PYTHON) -c 'import secrets; print(secrets.token_hex(32))' > $(SECRETS_DIR)/$$name || exit 1; done

clean:  ## Remove what make setup made
	rm -rf $(VENV)
