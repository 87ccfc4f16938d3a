# One command each: `make demo`, `make test`, `make check`. Every target sets up what it needs, once.
VENV   ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo ok),$(p))))
TORCH  ?= 2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SETUP  := $(VENV)/.setup

.PHONY: help demo setup test check format benchmark clean
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

setup: $(SETUP)  ## virtual environment in .venv with everything installed

# torch comes first: where no NVIDIA GPU is present the CPU build is tried, which spares gigabytes of CUDA.
# PyTorch's own index of CPU builds can be given in PIP_EXTRA_INDEX_URL when the configured one has none.
$(SETUP): pyproject.toml infra/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; give its path: make PYTHON=/path/to/python3"; exit 2; }
	@test -x $(BIN)/python || { echo "== virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== torch $(TORCH)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || \
	  if command -v nvidia-smi >/dev/null 2>&1; then $(PIP) install -q "torch==$(TORCH)"; else \
	  $(PIP) install -q "torch==$(TORCH)+cpu" 2>/dev/null || { \
	  echo "   no CPU build in the configured index: installing the default build"; $(PIP) install -q "torch==$(TORCH)"; }; fi
	@echo "== txpert-dist and the tested set of dependencies (a few minutes the first time)"
	@$(PIP) install -q -c infra/constraints.txt -e '.[train,test,dev]'
	@touch $@

demo: $(SETUP)  ## simulate, ingest, build graphs, train on 2 workers, evaluate, register, predict
	@PATH="$(abspath $(BIN)):$$PATH" bash jobs/demo.sh

test: $(SETUP)  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(SETUP)  ## ruff, formatting, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(SETUP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(SETUP)  ## the science benchmarks and the table in README
	$(BIN)/python -m tests.benchmarks.science_simulated --json tests/benchmarks/results/science_simulated.json
	$(BIN)/python -m tests.benchmarks.science_real --json tests/benchmarks/results/science_real.json
	$(BIN)/python -m tests.benchmarks.table

clean:  ## remove what demo and test left (the environment stays)
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
