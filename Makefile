# lgi: two commands, `make reproduce` and `make test`, from a fresh clone. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv, with pip where there is no uv or it fails; or pip.
INSTALLER ?= uv
# Which torch: empty, that of requirements.lock, on Linux with the libraries of a GPU; or cpu, the same version without
# them. That is not in the package index itself, but uv knows where it is; pip does not.
TORCH ?=
$(if $(filter-out cpu,$(TORCH)),$(error TORCH=$(TORCH) is neither empty nor cpu))
# Parameter set of `make reproduce` (empty: the paper's run; smoke: minutes instead, on optdigits) and extra
# arguments for notebooks/reproduce.py, e.g. ARGS="--only 01 -p epochs 5".
PARAMS ?=
ARGS ?=
# Of `make book`: full, or student, with notebooks to fill in for the solutions and without the instructor's page.
EDITION ?= full
# Test processes.
JOBS ?= 2
# Order in which `make unit` runs the tests (empty: another one each time, with its number printed).
SEED ?=
# Tests can compute as other processors do, with other vector instructions, hence other rounding and another order of
# summation: these are torch's, oneDNN's and MKL's own environment variables, native is this processor as it is.
# `make test` draws one of them each time, because a number that only one processor prints so is no result.
PROCESSORS := native ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
PROCESSOR ?=
$(if $(filter-out $(PROCESSORS),$(PROCESSOR)),$(error PROCESSOR=$(PROCESSOR) is none of $(PROCESSORS)))
TESTING = env $(filter-out native,$(PROCESSOR))

# As the commands of lgi do; lgi/progress.py says why.
export OMP_NUM_THREADS ?= 1
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PARAMS=smoke      with reproduce: minutes instead of the full run, data that need no download"
	@echo "  ARGS=\"...\"        with reproduce: passed on, see $(BIN)/python notebooks/reproduce.py --help"
	@echo "  EDITION=student   with book: exercises to fill in for solutions and instructor's page, into runs/book_student"
	@echo "  PYTHON=python3.12 which Python (>= 3.11) makes $(VENV)"
	@echo "  INSTALLER=pip     install with pip even where uv works"
	@echo "  TORCH=cpu         with install, in a fresh clone: torch without the libraries of a GPU"
	@echo "  SEED=number       with unit: the order of the tests"
	@echo "  OMP_NUM_THREADS=2 threads of a process"
	@echo "  JOBS=1            with test, unit, nbval: processes side by side"
	@echo "  PROCESSOR=...     with test, unit, nbval: compute as another processor, one of"
	@echo "                    $(PROCESSORS)"
	@echo "  LGI_DATA=folder   where MNIST/raw and vgg19/ lie, if they do"

.PHONY: install
install: $(STAMP) ## make .venv with everything that the other targets need

# uv when it is there or can be installed, else pip; versions and hashes from requirements.lock either way, and lgi itself
# in a call of its own, because a folder has no hash. For torch of the CPU the lock has versions, and no hashes. Of two
# that start at once the second waits for the lock on file 9 and finds the work done; without pip, .venv is half of what a
# kill left.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "lgi needs Python 3.11 or newer as '$(PYTHON)'; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@{ exec 9<>pyproject.toml || exec 9<pyproject.toml; } 2>/dev/null; \
	$(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true; \
	if [ $@ -nt pyproject.toml ] && [ $@ -nt requirements.lock ]; then exit 0; fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
	locked() { "$$@" --require-hashes --requirement requirements.lock && "$$@" --no-deps --editable .; }; \
	for_cpu() { \
	  sed '/^ /d; s/ \\$$//' requirements.lock >$(VENV)/versions.txt; \
	  "$$@" --torch-backend cpu --constraint $(VENV)/versions.txt --editable '.[dev]'; \
	}; \
	if [ "$(INSTALLER)" = uv ] && { command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv; } && \
	  PATH="$$PATH:$(abspath $(BIN))" $(if $(TORCH),for_cpu,locked) uv pip install --python $(BIN)/python; \
	then :; elif [ -n "$(TORCH)" ]; then \
	  echo "TORCH=cpu needs uv, and it is not there or failed (above); without TORCH=cpu, torch comes with the libraries of a GPU" >&2; exit 1; \
	else \
	  echo "installing with pip, which takes some minutes"; \
	  locked $(BIN)/python -m pip install; \
	fi; \
	touch $@

.PHONY: reproduce
reproduce: $(STAMP) ## run the series of notebooks into runs/
	@$(BIN)/python notebooks/reproduce.py $(if $(PARAMS),--params $(PARAMS)) $(ARGS)

# All parts run, whatever fails, and at the end those that failed are named.
.PHONY: test
test: $(STAMP) ## every check: lint, types, tests, a smoke run of the series, nbval
	@trap 'exit 130' INT; set -- $(PROCESSORS); processor=$${PROCESSOR:-$${@:1+RANDOM%$$#:1}}; failed=; \
	echo "make test: computing as processor $$processor; again so: make test PROCESSOR=$$processor"; \
	for part in lint unit nbval; do $(MAKE) --no-print-directory PROCESSOR=$$processor $$part || failed+=" $$part"; done; \
	if [ -n "$$failed" ]; then echo "make test: FAILED:$$failed (as processor $$processor); see above" >&2; exit 1; fi; \
	echo "make test: all passed (as processor $$processor)"

# Without what takes more than six seconds of one core, which is marked as slow (pytest --durations=20 shows such tests).
.PHONY: check
check: lint ## before each commit: style, types, and the tests that a developer waits for
	$(TESTING) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not alone' tests

.PHONY: lint
lint: $(STAMP) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In random order, files and the tests in them, so that none relies on what ran before it; xdist would else sort the
# files by their number of tests. Both calls, also when the first fails; trap: but not when somebody stops it.
# Tests that measure seconds run alone, with one thread, on this processor as it is: an imitated one is slower.
.PHONY: unit
unit: $(STAMP) ## the tests of the package and of the notebooks' machinery (SEED=number: in that order again)
	@trap 'exit 130' INT; seed=$(or $(SEED),$$RANDOM); failed=; \
	again="make unit SEED=$$seed PROCESSOR=$(or $(PROCESSOR),native) OMP_NUM_THREADS=$(OMP_NUM_THREADS)"; echo "order of the tests: $$again"; \
	tests="$(BIN)/python -m pytest --random-order-bucket=module --random-order-seed=$$seed"; \
	$(TESTING) $$tests -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not alone' tests || failed+=" side by side,"; \
	OMP_NUM_THREADS=1 $$tests -m alone tests || failed+=" alone,"; \
	test -z "$$failed" || { echo "tests failed that run$$failed in this order: $$again" >&2; exit 1; }

# LGI_RUNS: a test must not write into the tree it tests.
.PHONY: nbval
nbval: $(STAMP) ## run the committed notebooks and compare with what they show
	$(TESTING) LGI_RUNS="$$(mktemp -d)" $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -p no:cacheprovider \
	  --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-kernel-startup-timeout 300 \
	  --nbval-sanitize-with tests/nbval.cfg notebooks/

# Without MNIST, because no image of it is committed: the figures then show reconstructions.
.PHONY: notebooks
notebooks: $(STAMP) ## format, execute and clean the notebooks, update README.md: the state that is committed
	@test ! -e data/MNIST || { echo "move data/MNIST away first: no MNIST image is committed" >&2; exit 1; }
	env -u LGI_DATA $(BIN)/python notebooks/reproduce.py commit $(ARGS)
	$(BIN)/python tests/readme.py --times

.PHONY: book
book: $(STAMP) ## render the series to runs/book/index.html, a site that opens in any browser (EDITION=student)
	@$(BIN)/python notebooks/book.py --edition $(EDITION)

.PHONY: lab
lab: $(STAMP) ## JupyterLab with the series, kernels set as those of make reproduce (ARGS: its own options)
	@$(BIN)/jupyter lab --notebook-dir=. $(if $(ARGS),$(ARGS),notebooks/01_train_vaes.ipynb)

.PHONY: mutations
mutations: $(STAMP) ## make deliberate faults in copies, one by one, and show that the tests notice each
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py --jobs $(JOBS)

.PHONY: baselines
baselines: $(STAMP) ## record the numbers of the smoke run anew, with which `make test` compares its own
	OMP_NUM_THREADS=1 $(BIN)/python tests/smoke.py

.PHONY: models
models: $(STAMP) ## train the shipped models anew into data/models (maintainers; needs MNIST, about 10 minutes)
	$(BIN)/python -m lgi.recipes

.PHONY: lock
lock: $(STAMP) ## resolve requirements.lock anew
	PATH="$$PATH:$(abspath $(BIN))" uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header \
	  --generate-hashes --no-emit-index-url --no-emit-package lgi --upgrade --output-file requirements.lock pyproject.toml

# The oldest versions that pyproject.toml allows of what it names, in an environment of their own. Tests that compare with
# recorded numbers are those of the lock, and so are the slow ones; `make test` runs these.
.PHONY: lowest
lowest: $(STAMP) ## the unit tests with the oldest versions that pyproject.toml allows (3 minutes to install, 6 GB)
	$(PYTHON) -m venv .venv-lowest
	PATH="$$PATH:$(abspath $(BIN))" uv pip install --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not alone' tests

.PHONY: clean
clean: ## remove .venv, runs/ and caches
	rm -rf $(VENV) .venv-lowest runs data/cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
