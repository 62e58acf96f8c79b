# make demo | test | test-slow | bench | lint. Each sets up its own virtual environment
# first: .venv for the default Python, .venv-3.13 for `make test PYTHON=python3.13`.
# `make test-slow GRIDS=no` leaves out the full grids of the ops, twenty minutes of it.
# `make bench PEER=DIR` also measures the checkout of minimal-LRU in DIR, and
# RECURRENT_GEMMA=DIR that of DeepMind's recurrentgemma.

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(shell \
	$(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip install --quiet --constraint .ci/constraints.txt
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-slow test-aot compile-kernels bench lint format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[experiments]' --group dev
	touch $@

demo: install
	$(RUN) experiments.main --config=configs/digits.py --workdir=runs/demo/digits
	$(RUN) experiments.main --config=configs/lra/listops.py:lru,tiny \
		--workdir=runs/demo/listops
	$(RUN) experiments.report runs/demo --out=runs/demo

test: install
	$(RUN) pytest -m "not slow" --numprocesses=2

test-slow: install
	$(RUN) pytest -m slow --numprocesses=2 $(if $(filter no,$(GRIDS)),-k 'not full_grid')

# Compiles the device kernels with the real compilers. They have an environment of their
# own: with them JAX looks for their devices whenever it starts.
test-aot:
	$(MAKE) compile-kernels VENV=$(VENV)-aot

compile-kernels: install
	$(PIP) --editable '.[aot-tpu,aot-gpu]'
	$(RUN) pytest -m 'aot_tpu or aot_gpu'

bench: install
	$(RUN) benchmarks.run $(if $(PEER),--peer $(PEER)) \
		$(if $(RECURRENT_GEMMA),--recurrent-gemma $(RECURRENT_GEMMA))

lint: install
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(VENV)/bin/shellcheck --external-sources .ci/run experiments/launch/*.sh \
		experiments/launch/*.sbatch

format: install
	$(RUN) ruff check --fix
	$(RUN) ruff format

clean:
	rm -rf .venv* .cache .mypy_cache .pytest_cache .ruff_cache dist
