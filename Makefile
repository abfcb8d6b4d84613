# Every target sets itself up: `install` makes .venv once, the others call it.
PYTHON ?= python3.11
CORES  ?= 2
GRID   ?= quick
EXTRAS ?= dev
PORT   ?= 5000
LOCK   ?= $(if $(wildcard /proc/driver/nvidia/version),locks/cuda.txt,locks/cpu.txt)

VENV  := .venv
BIN   := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(basename $(notdir $(LOCK)))-$(subst $(comma),-,$(EXTRAS))
UV_VERSION := 0.13.9
TORCH      := 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help install grid stress test lint format ui lock clean

help: ## list the targets
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r t d; do printf '  %-10s %s\n' "$$t" "$$d"; done
	@echo "  variables: CORES=$(CORES) GRID=$(GRID) EXTRAS=$(EXTRAS) PYTHON=$(PYTHON) PORT=$(PORT)"

install: $(STAMP) ## make .venv from the lock (once)

# uv comes from the PATH or from pip, and looks for packages where pip is told to. A CPU machine takes a CPU build of torch: one that
# the configured sources have, else the public PyTorch index; only where neither can be had, the default build with its CUDA packages.
$(STAMP): pyproject.toml $(LOCK) locks/overrides.txt
	@command -v $(PYTHON) >/dev/null || { echo "alp: error: $(PYTHON) not found: install Python 3.11 with its venv module, or use environment.yml"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@set -e; \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); uv=$(BIN)/uv; fi; \
	setting() { $(BIN)/python -m pip config get "global.$$1" 2>/dev/null || true; }; \
	links=$${PIP_FIND_LINKS:-$$(setting find-links)}; index=$${PIP_INDEX_URL:-$$(setting index-url)}; \
	export VIRTUAL_ENV=$(VENV) UV_INDEX_STRATEGY=unsafe-best-match UV_HTTP_TIMEOUT=$${UV_HTTP_TIMEOUT:-$${PIP_DEFAULT_TIMEOUT:-120}}; \
	[ -z "$$links" ] || export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$links}"; \
	[ -z "$$index" ] || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
	[ -z "$${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX="$${UV_INDEX:-$$PIP_EXTRA_INDEX_URL}"; \
	[ -z "$${PIP_CERT:-}" ] || export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$PIP_CERT}"; \
	lock=$(LOCK); overrides=""; \
	if [ $$lock = locks/cpu.txt ]; then \
	  overrides="--override locks/overrides.txt"; \
	  if $$uv pip install --quiet --constraint $$lock torch==$(TORCH)+cpu; then :; \
	  elif echo "trying $(TORCH_CPU_INDEX)" && $$uv pip install --quiet --constraint $$lock --index $(TORCH_CPU_INDEX) torch==$(TORCH)+cpu; then :; \
	  else echo "no CPU build of torch $(TORCH) could be had: taking the default build with its CUDA packages"; lock=locks/cuda.txt; overrides=""; fi; \
	fi; \
	$$uv pip install --compile-bytecode --constraint $$lock $$overrides --editable '.[$(EXTRAS)]'
	@touch $(STAMP)

grid: install ## rebuild a grid end to end (GRID=quick), 15 minutes on 2 cores
	$(BIN)/snakemake --cores $(CORES) --config grid=$(GRID)
	@echo "report: results/$(notdir $(basename $(GRID)))/report.html"

stress: ## the grid in which uncorrected methods get into trouble
	@$(MAKE) --no-print-directory grid GRID=stress

test: install lint ## lint and all tests, the smoke grid through the real workflow included
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q

lint: install ## ruff, mypy, snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: install ## rewrite the source in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

ui: install ## browse the runs on 127.0.0.1 (PORT=5000)
	@echo "http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///results/mlflow.db --artifacts-destination results/mlartifacts

lock: install ## resolve both locks anew (LOCK_INDEX=<url> where no local CPU wheel of torch lies)
	sh locks/resolve.sh $(BIN) $(TORCH) $(LOCK_INDEX)

clean: ## remove everything built, results too
	rm -rf results/*/ results/mlflow.db* results/mlartifacts .snakemake
