# `make train` shows the method at work, `make test` proves it, `make verify` proves it at length.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
CHECKED := pyproject.toml constraints.txt

.PHONY: train test docs wheel cover verify fuzz lint mutants bench clean

train: $(VENV)/.torch
	$(BIN)/python -c "import spatlib; spatlib.train(backend='torch')"

test: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal

# The pages of docs/ as a site, on port 8000 of this machine, anew at every change.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict

# dist/spatlib-*.whl, to install elsewhere.
wheel: $(VENV)/.torch
	rm -rf build dist # what is left there of removed files would be packed too
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# The same tests, traced, which takes half as long again: fails below 97 % of lines and branches.
cover: $(VENV)/.all
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov

# 500 examples per property, parameter and backend; writes the table of docs/verification.md.
verify: $(VENV)/.all
	HYPOTHESIS_PROFILE=deep $(BIN)/pytest --numprocesses 2 --dist worksteal -m verifies --verification

# Files changed at random, 25,000 for each reader and 2,500 for each look at a run: ten minutes.
fuzz: $(VENV)/.all
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest --numprocesses 2 --dist worksteal tests/test_hostile_*.py

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	! grep -rnE --include='*.py' '# fmt: *(skip|off)' --exclude-dir=$(VENV) .
	$(BIN)/mypy

# Not part of the tests: whether they would notice.
mutants: $(VENV)/.mutants
	$(BIN)/python -m tests.mutants.run

# Against the peers; results in benchmarks/results.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.projection

# A stamp per set of packages: a second run starts at once, a changed pin installs anew.
$(VENV)/.torch: $(CHECKED)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[torch]'
	touch $@

$(VENV)/.all: $(VENV)/.torch
	$(PIP) --editable '.[torch,dev]' tensorflow-cpu keras
	touch $@

$(VENV)/.docs: $(VENV)/.torch
	$(PIP) --editable '.[torch,docs]'
	touch $@

$(VENV)/.mutants: $(VENV)/.all
	$(PIP) --editable '.[torch,dev,mutants]'
	touch $@

# torchattacks asks for old versions of what it shares with us.
$(VENV)/.bench: $(VENV)/.torch
	$(PIP) --editable '.[torch,bench]'
	$(PIP) --no-deps torchattacks
	touch $@

clean:
	rm -rf $(VENV) .coverage* .hypothesis .mutants .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
