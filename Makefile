# The commands of this repository. Each one sets up its virtual environment and needs only
# Python 3.11 or 3.12 and a package index.
#
#   make study ARGS="--help"          flags of the command go through ARGS
#   make study PYTHON=python3.12      another interpreter
#   make test VENV=.venv-3.12         another virtual environment, beside the first

PYTHON ?= python3
VENV = .venv
ARGS =

PY = $(VENV)/bin/python
# On a terminal the installers show their progress; in a log they stay quiet.
QUIET = $(if $(MAKE_TERMOUT),,--quiet)
# uv installs what takes pip two minutes in some seconds.
UV = 0.13.9
INSTALL = $(PY) -m uv pip install --python $(PY) $(QUIET)
# Test files side by side, in their order: the longest is among the first. A process may take 5 GB. One
# more than there are cores, because some tests wait for processes that they start.
PROCESSES = $(shell $(PY) -c 'import os; print(min(5, len(os.sched_getaffinity(0)) + 1))')
PYTEST = $(PY) -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Files with tests of a marker: every process collects the files that it is given, and all take 15 s.
files_with = $(shell grep -rlE --include='test_*.py' 'mark\.$(1)\b' tests)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Container images set it, and uv compiles nothing: each of several hundred processes of the tests would
# compile all that it imports (jax alone takes two seconds).
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup study test test-slow test-light test-tpu test-lmms lint format bench-fit bench-model bench-train clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-19s%s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## set up .venv and stop

study: $(VENV)/.ready  ## run the study: its tables, figures and report
	$(PY) -m vvlm study $(ARGS)

test: $(VENV)/.ready-torch  ## run the tests that are not slow, and name those left out
	$(PYTEST) -m 'not slow' $(ARGS)

test-slow: $(VENV)/.ready-torch  ## run the slow tests: kills, clusters, larger compiles
	$(PYTEST) -m slow $(call files_with,slow) $(ARGS)

test-light: $(VENV)/.ready-tests  ## run a few tests of each room, without PyTorch: for a second Python
	$(PYTEST) -m light $(call files_with,light) $(ARGS)

test-tpu: $(VENV)/.ready-tpu  ## compile small programs for TPUs, without one (libtpu: 0.7 GB)
	PYTHONPATH=$(CURDIR)/$(VENV)/tpu $(PYTEST) -m tpu --numprocesses 2 --dist load --maxschedchunk 1 \
	  $(call files_with,tpu) $(ARGS)

test-lmms: $(VENV)-lmms/.ready-lmms  ## run LMMs-Eval end to end, in an environment of its own (3 GB)
	$(VENV)-lmms/bin/python -m pytest tests/lmms $(ARGS)

lint: $(VENV)/.ready-tests  ## check style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.ready-tests  ## mend style and format where ruff can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench-fit: $(VENV)/.ready-tests  ## time fits, frontier, appendix, report; judge optima and intervals
	$(PY) -m tools.bench.bench_fit $(ARGS)
	$(PY) -m tools.bench.bench_frontier $(ARGS)
	$(PY) -m tools.bench.bench_appendix $(ARGS)
	$(PY) -m tools.bench.bench_coverage $(ARGS)
	$(PY) -m tools.bench.bench_report

bench-model: $(VENV)/.ready-torch  ## time prefill and decode beside transformers
	$(PY) -m tools.bench.bench_model $(ARGS)

bench-train: $(VENV)/.ready-torch  ## time the train step beside torch, decoding beside PyAV
	$(PY) -m tools.bench.bench_train $(ARGS)
	$(PY) -m tools.bench.bench_data

clean:  ## remove caches (never runs/, never .venv)
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find configs fitting tests tools vvlm_jax -name __pycache__ -type d -prune -exec rm -rf {} +

# The set-up. Each stamp is newer than the files it was made from, so a second call does nothing,
# and an interrupted one is taken up again.

$(VENV)/.ready: requirements.txt pyproject.toml
	@python="$(PYTHON)"; made=no; \
	if $(PY) -m pip --version >/dev/null 2>&1; then python="$(PY)"; made=yes; fi; \
	if ! "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	  echo "Python 3.11 or 3.12 is needed, but $$python answers:" \
	    "$$("$$python" --version 2>&1 | head -n 1)" >&2; \
	  if [ $$made = yes ]; then echo "Remove $(VENV) and run the command again." >&2; \
	  else echo "Name another interpreter: make study PYTHON=python3.12" >&2; fi; \
	  exit 1; \
	fi; \
	if [ $$made = no ]; then \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$$python has no venv module; install it (on Debian: apt install python3-venv)" \
	      "or name another interpreter: make study PYTHON=python3.12" >&2; exit 1; }; \
	  echo "Setting up $(VENV) (about a minute, once)"; \
	  "$$python" -m venv $(VENV); \
	fi
	@$(PY) -m pip install $(QUIET) uv==$(UV)
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps -e .
	@touch $@

$(VENV)/.ready-tests: tests/requirements.txt $(VENV)/.ready
	@$(INSTALL) -r requirements.txt -r tests/requirements.txt
	@touch $@

# By pip: some registries and mirrors that pip is configured for offer PyTorch without CUDA.
$(VENV)/.ready-torch: tests/requirements-torch.txt $(VENV)/.ready-tests
	@$(PY) -m pip install $(QUIET) -r requirements.txt -r tests/requirements-torch.txt
	@touch $@

# In a folder of its own: beside jax, libtpu would complain in every command that there is no TPU.
$(VENV)/.ready-tpu: tests/requirements-tpu.txt $(VENV)/.ready-tests
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/tpu -r $<
	@touch $@

# Apart, as LMMs-Eval wants an older PyAV, and brings much that nothing here needs. So is torchvision,
# which is broken where it is of another build (CPU, CUDA) than PyTorch.
$(VENV)-lmms/.ready-lmms: tests/requirements-lmms.txt $(VENV)/.ready
	@$(PY) -m venv $(VENV)-lmms
	@$(VENV)-lmms/bin/python -m pip install $(QUIET) -r $< -e .
	@$(VENV)-lmms/bin/python -m pip uninstall $(QUIET) --yes torchvision
	@touch $@
