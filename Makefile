# make demo: environment, synthetic data, sweep, leaderboard.   make test: environment, tests; make test-long: the others.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PARALLEL := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: venv demo test test-fast test-long test-cluster chaos soak bench gpu docs docs-settings lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | test-fast | test-long | test-cluster | chaos | soak | bench | gpu | docs | docs-settings | lint | format | venv | clean"

# Rebuilt when pyproject.toml changes; the stamp comes last, so that a broken installation is not taken for a whole one.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,mpi,tensorboard,mlflow]'
	touch $@

venv: $(VENV)/.installed

demo: venv
	$(BIN)/rayasd data synth data/synthetic --train 30 --test 10 --seconds 4
	$(BIN)/rayasd sweep --data data/synthetic --preset demo --variants both,shared,untrained,statistics --run-dir runs/demo

# Everything but what is marked long: 12 minutes on 2 idle cores. Two processes: one for all that owns ports, cgroups or
# hosts (Ray, Slurm, MPI), one for the rest (tests/conftest.py).
test: venv
	$(BIN)/python -m pytest -m "not long" $(PARALLEL)

test-fast: venv
	$(BIN)/python -m pytest -m "not slow and not ray and not slurm and not mpi and not long" -n auto

# The long fault matrix: kills, lost hosts, full disks, every fault of Slurm and Ray: half an hour.
test-long: venv
	$(BIN)/python -m pytest -m long --durations=30 $(PARALLEL)

# All tests on a Slurm cluster of three hosts on this machine: root on Debian, where the first line installs what is missing.
test-cluster: venv
	tests/slurm/install.sh
	$(BIN)/python -m pytest tests/slurm -m slurm

# Sweeps killed at random and in the middle of their writes: half an hour on two cores.
chaos: venv
	$(BIN)/python -m tests.faults.chaos --kills 100
	$(BIN)/python -m tests.faults.chaos --kills 30 --executor ray

# 5,000 real units through one driver: half an hour on two cores.
soak: venv
	$(BIN)/python -m tests.faults.soak --units 5000

# Each figure beside the plain way to the same result: a quarter of an hour on two cores.
bench: venv
	$(BIN)/python -m benchmarks

# Correctness and speed on this machine's GPU: 8 minutes at most. Without a GPU: benchmarks/gpu.sh --tiny.
gpu: venv
	PYTHON=$(BIN)/python benchmarks/gpu.sh

# The reference of settings, from rayasd/config/.
docs-settings: venv
	$(BIN)/rayasd settings --format md > docs/settings.md

# README, docs/, commands and Python API as a site in site/; to search it: python -m http.server -d site. Broken links fail.
docs: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	sed 's|(docs/|(|g' README.md > docs/index.md
	cp CHANGELOG.md docs/changes.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) data/synthetic runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist site
