# The project's commands. Each makes .venv and installs what it needs; only Python >= 3.11 and make must be there.
#
#   PYTHON    the Python to make .venv with                       (python3)
#   PIP_ARGS  more arguments for pip install, such as an index    (none)
#   WORKERS   processes that run the tests, a core each           (2)
#   COVERED   percent that `make test-all` must cover             (95)

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2
COVERED ?= 95
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c requirements/constraints.txt
TORCH := $(shell grep '^torch==' requirements/constraints.txt)
PYTEST := $(BIN)/python -m pytest
# Side by side, with a core for each worker.
TEST := OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Where there is vLLM, what needs it is run and measured too.
HAS_VLLM := $(wildcard .venv-vllm/.vllm)
export VLLM_UNMEASURED := $(if $(HAS_VLLM),none,*)
# vLLM has an environment of its own, and what it warns of itself is none of the tests' business.
TEST_VLLM := OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W default -n $(WORKERS) --dist loadfile \
	--no-loadscope-reorder
ON_FIRST := $(TEST_VLLM) tests/engine/vllm tests/engine/conformance tests/hostile/test_edits.py
# Its second runner needs Triton, which a CPU has as an interpreter.
ON_SECOND := TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 $(TEST_VLLM) tests/engine/conformance
TYPED := clients/python/saegis server/saegis_server lab/saegis_lab tests scripts examples
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache

.DEFAULT_GOAL := help
.PHONY: help demo vllm tools test test-all test-vllm test-nightly lint style types contract breaking format bench proto clean

help: ## Show this.
	@echo "make TARGET, with one of:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/.server ## Install the server and show what steering does, live.
	@$(BIN)/saegis demo

vllm: .venv-vllm/.vllm ## Install the server with vLLM for a CPU into .venv-vllm; 3.4 GB.

tools: .venv/.tools ## Install what some tests drive: a browser, clients of other projects, checkers; 1 GB.

test: .venv/.dev ## Install everything and run the quick tests: every kind of test, at a small size.
	@$(TEST) $(PYTEST_ARGS)

# The quick tests, then what they leave out or do at a smaller size. What test_traced.py only traces is compiled
# here. What runs alone measures time, which tracing for coverage would change. pytest ends with 5 where it is
# left no test. PYTEST_ARGS=--tools fails where one of `make tools` is missing, instead of skipping the test.
# After `make vllm` the quick tests of engines run on vLLM, too.
test-all: .venv/.dev ## Run all tests at their full size, with coverage; the quick ones first.
	@$(TEST) --ignore tests/engine/test_traced.py --cov --cov-report= $(PYTEST_ARGS) || [ $$? = 5 ]
	@$(if $(HAS_VLLM),$(ON_FIRST) --cov --cov-append --cov-report=)
	@$(if $(HAS_VLLM),$(ON_SECOND) --cov --cov-append --cov-report=)
	@$(TEST) --rest -m "not alone" --cov --cov-append --cov-fail-under=$(COVERED) $(PYTEST_ARGS) || [ $$? = 5 ]
	@$(PYTEST) --rest -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

test-vllm: .venv-vllm/.vllm ## Install what `make vllm` does and run the engines' suite on it.
	@$(ON_FIRST) $(PYTEST_ARGS)
	@$(ON_SECOND) $(PYTEST_ARGS)

test-nightly: .venv/.dev ## Try every family of models that Transformers has, and HTTP at length; an hour and more.
	@$(TEST) --nightly $(PYTEST_ARGS)

lint: style types contract ## Check style, types, the contract and its stubs.

style: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy --strict $(TYPED)

contract: .venv/.dev
	$(BIN)/buf lint
	$(BIN)/python scripts/gen_stubs.py --check

breaking: .venv/.dev ## Compare the contract with that of the last tag.
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -z "$$tag" ]; then echo "No release is tagged yet, so there is no contract to compare with."; \
	else echo "Comparing with $$tag"; git archive "$$tag" buf.yaml protos | $(BIN)/buf breaking --against -#format=tar; fi

format: .venv/.dev ## Bring the code into the project's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.server ## Measure throughput, steered and not, on this machine.
	@$(BIN)/saegis bench $(BENCH_ARGS)

proto: .venv/.dev ## Write the Python stubs of protos/ anew.
	$(BIN)/python scripts/gen_stubs.py

clean: ## Remove .venv and everything else that was made here.
	rm -rf .venv .venv-vllm .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find clients server lab tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: made anew when what is to be installed has changed.
.venv/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	@echo "Making .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

# torch by itself first: pip then takes the build that was asked for, and nothing asks for another.
.venv/.server: .venv/.venv pyproject.toml clients/python/pyproject.toml requirements/constraints.txt
	@echo "Installing the server into .venv; torch is large, so the first time takes minutes"
	@$(INSTALL) "$(TORCH)"
	@$(INSTALL) -e clients/python -e .
	@touch $@

.venv-vllm/.vllm: scripts/install_vllm.py pyproject.toml clients/python/pyproject.toml requirements/constraints.txt
	@echo "Installing vLLM into .venv-vllm: 3.4 GB, some minutes"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python scripts/install_vllm.py --project . -- $(PIP_ARGS)
	@touch $@

.venv/.dev: .venv/.server
	@echo "Installing the tools for development into .venv"
	@$(INSTALL) -e clients/python -e ".[lab,dev]"
	@touch $@

.venv/.tools: .venv/.dev requirements/tools.txt requirements/originals.txt scripts/install_tools.sh
	@echo "Installing into .venv/tools what some tests drive"
	@PIP_ARGS="$(PIP_ARGS)" scripts/install_tools.sh
	@touch $@
